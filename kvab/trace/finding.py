"""Where a study's trace is: named, in the environment, in the cache, or to be downloaded.

Input: what the study declares of its trace. Output: the trace, or a made-up one that says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kvab.cache import cache_folder
from kvab.errors import DependencyError
from kvab.trace.reading import Trace, expect, read_trace

log = logging.getLogger("kvab")


class Declaration(Protocol):
    """What a study declares of its trace."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def url(self) -> str: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def block_tokens(self) -> int: ...  # noqa: D102


def trace_place(declaration: Declaration) -> Path:
    """Return where the study's trace has to be on this machine: ``KVAB_TRACE``, else the cache."""
    named = os.environ.get("KVAB_TRACE")
    return Path(named) if named else _cached(declaration)


def _cached(declaration: Declaration) -> Path:
    return cache_folder() / f"{declaration.sha256[:16]}.jsonl"


def find_trace(declaration: Declaration, path: Path | None = None) -> Trace:
    """Return the workload of a study, or a made-up one where it cannot be had.

    Looked for in this order: ``path`` (another trace on purpose), ``KVAB_TRACE``, the cache, a
    download; each but the first must have the declared sha256.

    Raises
    ------
    InputError
        If a named file is wrong.
    """
    block_tokens = declaration.block_tokens
    if path is not None:
        trace = read_trace(path, block_tokens=block_tokens)
        declared = trace.sha256 == declaration.sha256
        return replace(trace, name=declaration.name) if declared else trace
    try:
        named = bool(os.environ.get("KVAB_TRACE"))
        place = trace_place(declaration) if named else fetch_trace(declaration)
    except (DependencyError, OSError) as error:
        from kvab.trace.synthesize import made_up

        log.warning("%s; replaying a made-up workload instead: SYNTHETIC WORKLOAD", error)
        path = made_up(declaration.rows, block_tokens, cache_folder())
        return read_trace(path, block_tokens=block_tokens)
    return read_trace(
        place, name=declaration.name, block_tokens=block_tokens, sha256=declaration.sha256
    )


def fetch_trace(declaration: Declaration, destination: Path | None = None) -> Path:
    """Download a study's trace, check its sha256, rename it in and return its path.

    A right file already there is kept; a wrong one in the cache is replaced.

    Raises
    ------
    DependencyError
        If it cannot be reached after three tries, or is not the declared file.
    InputError
        If another file lies at ``destination``.
    """
    from kvab.trace.download import download

    place = destination or _cached(declaration)
    with suppress(OSError), place.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == declaration.sha256:
            return place
    free = destination is None or not destination.exists()
    expect(free, place, "the declared trace or nothing", "something else", "choose another name")
    return download(declaration.url, declaration.sha256, place)
