"""The workload: find, read, describe, cut and reorder a Mooncake trace.

Input: JSON lines, one request each. Output: arrays by row, in file order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvab.errors import DependencyError, InputError

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
log = logging.getLogger("kvab")


class Declaration(Protocol):
    """What a study declares of its trace."""

    name: str
    url: str
    sha256: str
    rows: int
    block_tokens: int


@dataclass(frozen=True)
class Trace:
    """A trace in memory.

    Attributes
    ----------
    name, path, sha256 : str, Path, str
        What it is called, where it lies, the digest of its file.
    block_tokens : int
        Prompt tokens that one hash id stands for.
    synthetic : bool
        Whether it was made up.
    timestamp_ms : ndarray of float64, shape (rows,)
        Scheduled arrival on the trace's own clock; never falls.
    input_tokens, output_tokens : ndarray of int32, shape (rows,)
        Prompt and answer lengths.
    hash_ids : tuple of tuple of int
        The blocks of each prompt, in order; equal ids are equal tokens.
    """

    name: str
    path: Path
    sha256: str
    block_tokens: int
    synthetic: bool
    timestamp_ms: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    hash_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.timestamp_ms)

    @cached_property
    def arrival_ms(self) -> np.ndarray:
        """Scheduled arrivals in ms, counted from the first: float64, shape (rows,)."""
        return self.timestamp_ms - self.timestamp_ms[0]


def read_trace(
    path: str | Path, *, name: str | None = None, block_tokens: int = 512, sha256: str | None = None
) -> Trace:
    """Return a trace after checking every row of its file.

    Parameters
    ----------
    path : path
        A file of JSON lines in Mooncake's format; unknown fields are allowed.
    name : str, optional
        How pages call it; by default the file's stem.
    block_tokens : int
        Prompt tokens for each hash id.
    sha256 : str, optional
        The digest that the file must have.

    Raises
    ------
    InputError
        If the file cannot be read, has another digest or holds a wrong row; the line is named.
    """
    rows, digest = _checked_rows(path := Path(path), block_tokens, sha256)
    return Trace(
        name=name or path.stem,
        path=path,
        sha256=digest,
        block_tokens=block_tokens,
        synthetic=any(row.get("synthetic") is True for row in rows),
        timestamp_ms=np.array([row["timestamp"] for row in rows], dtype="float64"),
        input_tokens=np.array([row["input_length"] for row in rows], dtype="int32"),
        output_tokens=np.array([row["output_length"] for row in rows], dtype="int32"),
        hash_ids=tuple(tuple(row["hash_ids"]) for row in rows),
    )


def _checked_rows(
    path: Path, block_tokens: int, sha256: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Return every row, and the sha256 of the file they came from."""
    rows: list[dict[str, Any]] = []
    last_ms = 0.0
    mend = "check the name, or run `kvab trace fetch`"
    try:
        found = "a folder" if path.is_dir() else "nothing of that name"
        _expect(path.is_file(), path, "a file of JSON lines", found, mend)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            mend = "fetch it again, or name it with --trace to replay another trace on purpose"
            _expect(sha256 in (None, digest), path, f"sha256 {sha256}", digest, mend)
            file.seek(0)
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                row = _parsed(where, line)
                _check(where, row, last_ms, block_tokens)
                last_ms = row["timestamp"]
                rows.append(row)
    except OSError as error:
        _expect(False, path, "a file that can be read", error.strerror, "mend its rights")
    _expect(bool(rows), path, "a request a line", "an empty file", "fetch it again")
    return rows, digest


def _parsed(where: str, line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line that has all fields."""
    start = line.strip()[:40]
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        _expect(False, where, "UTF-8 text", start, "convert the file to UTF-8")
    except (ValueError, RecursionError):
        whole = line.endswith(b"\n")
        mend = "mend the line" if whole else "the file is truncated: fetch it again"
        _expect(False, where, "one JSON object", start, mend)
    _expect(isinstance(row, dict), where, "one JSON object", start, "mend the line")
    for field in FIELDS:
        _expect(field in row, where, f"the field {field}", sorted(row), "add it")
    return row


def _check(where: str, row: dict[str, Any], last_ms: float, block_tokens: int) -> None:
    at_ms, ids = row["timestamp"], row["hash_ids"]
    right = type(at_ms) in (int, float) and 0 <= at_ms < 2**53
    _expect(right, where, "a timestamp of 0 ms or more", at_ms, "mend it")
    expected = f"a timestamp that does not fall below the {last_ms} before it"
    _expect(at_ms >= last_ms, where, expected, at_ms, "sort the rows by timestamp")
    for field in ("input_length", "output_length"):
        tokens = row[field]
        whole = type(tokens) is int or (type(tokens) is float and tokens.is_integer())
        right = whole and 1 <= tokens < 2**31
        _expect(right, where, f"{field} of 1 token or more, a whole number", tokens, "mend it")
    right = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**63 for i in ids)
    _expect(right, where, "hash_ids as a list of whole numbers of 0 or more", ids, "mend them")
    needed = math.ceil(row["input_length"] / block_tokens)
    expected = f"{needed} hash_ids ({row['input_length']} tokens in blocks of {block_tokens})"
    _expect(len(ids) == needed, where, expected, len(ids), "mend the row or the block size")


def _expect(right: bool, where: str | Path, expected: str, got: object, mend: str) -> None:
    if not right:
        raise InputError(f"{where}: expected {expected}, got {got!r:.80}; {mend}")


def cache_folder() -> Path:
    """Return the folder of downloaded traces: ``KVAB_CACHE``, else the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KVAB_CACHE") or Path(base) / "kvab")


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
    named = os.environ.get("KVAB_TRACE")
    try:
        place = Path(named) if named else fetch_trace(declaration)
    except (DependencyError, OSError) as error:
        from kvab.trace.synthesize import made_up

        log.warning("%s; replaying a made-up workload instead: SYNTHETIC WORKLOAD", error)
        path, name = made_up(declaration.rows, block_tokens, cache_folder())
        return read_trace(path, name=name, block_tokens=block_tokens)
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

    place = destination or cache_folder() / f"{declaration.sha256[:16]}.jsonl"
    with suppress(OSError), place.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == declaration.sha256:
            return place
    free = destination is None or not destination.exists()
    _expect(free, place, "the declared trace or nothing", "something else", "choose another name")
    return download(declaration.url, declaration.sha256, place)


def slice_trace(
    trace: Trace,
    *,
    rows: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """Return the row numbers of a part: within [start, end) seconds, then the first ``rows``.

    Raises
    ------
    InputError
        If nothing is left.
    """
    start_ms = -math.inf if start_s is None else 1000 * start_s
    end_ms = math.inf if end_s is None else 1000 * end_s
    chosen = np.flatnonzero((trace.arrival_ms >= start_ms) & (trace.arrival_ms < end_ms))[:rows]
    right = len(chosen) > 0 and (rows is None or rows >= 1)
    expected = f"a part of {len(trace)} rows from 0 to {trace.arrival_ms[-1] / 1000:g} s"
    _expect(right, trace.path, expected, "a slice without rows", "widen the slice")
    return chosen


def write_rows(trace: Trace, rows: np.ndarray, path: Path, *, overwrite: bool = False) -> Path:
    """Write chosen rows as a trace of its own, whole or not at all.

    Raises
    ------
    InputError
        If the file exists and is not to be overwritten, or its folder cannot be written.
    """
    lines = []
    for row in rows.tolist():
        at_ms = float(trace.timestamp_ms[row])
        tokens = int(trace.input_tokens[row]), int(trace.output_tokens[row])
        values = (int(at_ms) if at_ms.is_integer() else at_ms, *tokens, trace.hash_ids[row])
        mark = {"synthetic": True} if trace.synthetic else {}
        lines.append(json.dumps(dict(zip(FIELDS, values, strict=True)) | mark))
    return write_lines(path, lines, overwrite=overwrite)


def write_lines(path: Path, lines: list[str], *, overwrite: bool = False) -> Path:
    """Write lines to a file, beside its place and renamed in."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        free = overwrite or not path.exists()
        _expect(free, path, "a new file", "one that exists already", "choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        _expect(False, path, "a place to write", error.strerror, "choose another")
    return path


def burst_order(timestamp_ms: np.ndarray, seed: int) -> np.ndarray:
    """Return rows in sending order: by timestamp, rows that share one shuffled by the seed.

    Seed 0 keeps the file's order. The trace's clock leaves the order inside a burst undefined, so
    each shuffle is an equally true replay of it.
    """
    if seed == 0:
        return np.argsort(timestamp_ms, kind="stable")
    keys = np.random.default_rng(seed).random(len(timestamp_ms))
    return np.lexsort((keys, timestamp_ms))
