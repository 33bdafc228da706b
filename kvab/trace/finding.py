"""Where a study's trace is: named, in the environment, in the cache, or to be downloaded.

Input: what the study declares of its trace. Output: the trace, or a generated one that says so.
"""

from __future__ import annotations

import http.client
import logging
import os
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from kvab.cache import cache_folder, sha256_of, write_beside
from kvab.declarations import Declared
from kvab.errors import DependencyError, InputError
from kvab.trace.reading import Trace, read_trace

log = logging.getLogger("kvab")
TIMEOUT_S, TRIES = 20, 3
PASSING = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


class TraceSource(Declared):
    """Where a workload comes from and how it is recognised.

    ``first`` is set by the study: whether it is the first that it declares, for which
    ``KVAB_TRACE`` may name a file and a generated one stands in.
    """

    name: str
    url: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    rows: Annotated[int, Field(ge=1)]
    block_tokens: Annotated[int, Field(ge=1)]
    first: bool = Field(True, exclude=True)


def trace_path(source: TraceSource) -> Path:
    """Return where a study's trace has to be on this machine, in the environment or the cache."""
    return _named(source) or _cached(source)


def _named(source: TraceSource) -> Path | None:
    """Return the file that the environment names, None if it names none.

    ``KVAB_TRACE`` is a file of the first workload, ``KVAB_TRACES`` a folder that may hold those of
    all, called as their addresses end.
    """
    if source.first and (file := os.environ.get("KVAB_TRACE")):
        return Path(file)
    folder = os.environ.get("KVAB_TRACES")
    path = Path(folder or "", source.url.rpartition("/")[2])
    return path if folder and path.is_file() else None


def _cached(source: TraceSource) -> Path:
    return cache_folder() / f"{source.sha256[:16]}.jsonl"


def read_declared(source: TraceSource, path: Path | None = None) -> Trace:
    """Return the study's trace from a file, by default where it has to be."""
    return read_trace(
        path or trace_path(source),
        name=source.name, block_tokens=source.block_tokens, sha256=source.sha256,
    )  # fmt: skip


def find_trace(source: TraceSource, path: Path | None = None) -> Trace:
    """Return the workload of a study; for the first a generated one where it cannot be had.

    Looked for in this order: ``path`` (another trace on purpose), ``KVAB_TRACE``, ``KVAB_TRACES``,
    the cache, a download; each but the first must have the declared sha256.

    Raises
    ------
    InputError
        If a named file is wrong.
    DependencyError
        If another workload than the first cannot be had.
    """
    if path is not None:
        trace = read_trace(path, block_tokens=source.block_tokens)
        return replace(trace, name=source.name) if trace.sha256 == source.sha256 else trace
    try:
        path = _named(source) or fetch_trace(source)
    except (DependencyError, OSError) as error:
        if not source.first:
            raise
        from kvab.trace.synthesize import generated

        log.warning("%s; replaying a generated workload instead: GENERATED WORKLOAD", error)
        path = generated(source.rows, source.block_tokens, cache_folder())
        return read_trace(path, block_tokens=source.block_tokens)
    return read_declared(source, path)


def fetch_trace(source: TraceSource, destination: Path | None = None) -> Path:
    """Download a study's trace, check its sha256, rename it in and return its path.

    A right file already there is kept; a wrong one in the cache is replaced.

    Raises
    ------
    DependencyError
        If it cannot be reached after three tries, or is not the declared file.
    InputError
        If another file lies at ``destination``.
    """
    path = destination or _cached(source)
    with suppress(OSError):
        if sha256_of(path) == source.sha256:
            return path
    if destination and destination.exists():
        raise InputError(expected="the declared trace or nothing", got="something else", path=path,
                         fix="choose another name")  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _fetch(source.url)
        if (got := sha256_of(content)) != source.sha256:
            problem = f"{source.url}: expected sha256 {source.sha256[:16]}…, got {got[:16]}…"
            raise DependencyError(f"{problem}; name the folder of a right copy in KVAB_TRACES")
        write_beside(path, content)
    except (http.client.HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DependencyError(
            f"{source.url}: cannot be fetched ({reason}); name a copy with --trace, or its folder "
            "in KVAB_TRACES"
        ) from None
    return path


@retry(
    stop=stop_after_attempt(TRIES),
    wait=wait_exponential(multiplier=0.2, max=2),
    retry=retry_if_exception_type(PASSING),
    reraise=True,
)
def _fetch(url: str) -> bytes:
    """Return what lies at an address; a short body is an error."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        content: bytes = answer.read()
        return content
