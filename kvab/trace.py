"""The workload: find, read, describe, cut and reorder a Mooncake trace.

Input: JSON lines, one request each. Output: arrays by row, in file order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kvab.errors import DependencyError, InputError

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
log = logging.getLogger("kvab")


class Source(Protocol):
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
        return len(self.timestamp_ms)

    @cached_property
    def arrival_ms(self) -> np.ndarray:
        """Scheduled arrivals in ms, counted from the first: float64, shape (rows,)."""
        return self.timestamp_ms - self.timestamp_ms[0]


def read_trace(
    path: str | Path,
    *,
    name: str | None = None,
    block_tokens: int = 512,
    sha256: str | None = None,
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
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: expected a trace of JSON lines, got {error.strerror}; check the name, or "
            "run `kvab trace fetch`"
        ) from None
    got = hashlib.sha256(content).hexdigest()
    if sha256 is not None and got != sha256:
        raise InputError(
            f"{path}: expected sha256 {sha256[:16]}…, got {got[:16]}…; fetch it again, or name it "
            "with --trace to replay another trace on purpose"
        )
    if not content.strip():
        raise InputError(f"{path}: expected a request a line, got an empty file; fetch it again")
    rows = []
    last_ms = 0.0
    for number, line in enumerate(content.splitlines(), start=1):
        row = _checked_row(f"{path}:{number}", line, block_tokens, last_ms)
        last_ms = row["timestamp"]
        rows.append(row)
    return Trace(
        name=name or path.stem,
        path=path,
        sha256=got,
        block_tokens=block_tokens,
        synthetic=bool(rows[0].get("synthetic")),
        timestamp_ms=np.array([row["timestamp"] for row in rows], dtype="float64"),
        input_tokens=np.array([row["input_length"] for row in rows], dtype="int32"),
        output_tokens=np.array([row["output_length"] for row in rows], dtype="int32"),
        hash_ids=tuple(tuple(row["hash_ids"]) for row in rows),
    )


def _checked_row(where: str, line: bytes, block_tokens: int, last_ms: float) -> dict[str, Any]:
    """Return one row, or raise with its line number what is wrong and how to mend it."""
    try:
        row = json.loads(line)
    except ValueError:
        raise InputError(
            f"{where}: expected one JSON object, got {line[:40]!r}; is the file truncated? "
            "fetch it again"
        ) from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected one JSON object, got {line[:40]!r}; mend the line")
    missing = [field for field in FIELDS if field not in row]
    if missing:
        raise InputError(f"{where}: expected the field {missing[0]}, got {sorted(row)}; add it")
    at_ms = row["timestamp"]
    if type(at_ms) not in (int, float) or not math.isfinite(at_ms) or at_ms < 0:
        raise InputError(f"{where}: expected a timestamp of 0 ms or more, got {at_ms!r}; mend it")
    if at_ms < last_ms:
        raise InputError(
            f"{where}: expected timestamps that never fall, got {at_ms} after {last_ms}; sort it"
        )
    for field in ("input_length", "output_length"):
        if type(row[field]) is not int or not 1 <= row[field] < 2**31:
            raise InputError(
                f"{where}: expected {field} of 1 token or more, got {row[field]!r}; mend it"
            )
    ids = row["hash_ids"]
    if not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids):
        raise InputError(f"{where}: expected hash_ids as a list of whole numbers, got {ids!r:.60}")
    needed = math.ceil(row["input_length"] / block_tokens)
    if len(ids) != needed:
        raise InputError(
            f"{where}: expected {needed} hash_ids to cover {row['input_length']} tokens in blocks "
            f"of {block_tokens}, got {len(ids)}; mend the row or the block size"
        )
    return row


def cache_folder() -> Path:
    """Return the folder of downloaded traces: ``KVAB_CACHE``, else the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KVAB_CACHE") or Path(base) / "kvab")


def find_trace(source: Source, path: Path | None = None) -> Trace:
    """Return the workload of a study, or a made-up one where it cannot be had.

    Looked for in this order: ``path`` (another trace on purpose), ``KVAB_TRACE``, the cache, a
    download; each but the first must have the declared sha256.

    Raises
    ------
    InputError
        If a named file is wrong.
    """
    if path is not None:
        trace = read_trace(path, block_tokens=source.block_tokens)
        if trace.sha256 != source.sha256:
            return trace
        return read_trace(path, name=source.name, block_tokens=source.block_tokens)
    named = os.environ.get("KVAB_TRACE")
    cached = cache_folder() / f"{source.sha256[:16]}.jsonl"
    place = Path(named) if named else cached
    if not named and not cached.exists():
        try:
            place = fetch_trace(source, cached)
        except DependencyError as error:
            log.warning("%s; replaying a made-up workload instead: SYNTHETIC WORKLOAD", error)
            return _made_up(source)
    return read_trace(
        place, name=source.name, block_tokens=source.block_tokens, sha256=source.sha256
    )


def _made_up(source: Source) -> Trace:
    from kvab.synthesize import SEED, write_synthetic

    path = cache_folder() / f"synthetic-{source.rows}-{SEED}.jsonl"
    try:
        if not path.exists():
            write_synthetic(path, rows=source.rows, seed=SEED)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="kvab-")) / path.name
        write_synthetic(path, rows=source.rows, seed=SEED)
    return read_trace(
        path, name=f"SYNTHETIC WORKLOAD (seed {SEED})", block_tokens=source.block_tokens
    )


def fetch_trace(source: Source, destination: Path | None = None) -> Path:
    """Download a study's trace, check its sha256, rename it in and return its path.

    Raises
    ------
    DependencyError
        If it cannot be reached after three tries, or is not the declared file.
    """
    from kvab.download import download

    destination = destination or cache_folder() / f"{source.sha256[:16]}.jsonl"
    if destination.exists():
        read_trace(destination, block_tokens=source.block_tokens, sha256=source.sha256)
        return destination
    return download(source.url, source.sha256, destination)


def describe(trace: Trace) -> dict[str, Any]:
    """Return the figures of a trace, the document of ``kvab trace describe --json``.

    Notes
    -----
    A *reference* is one hash id of one prompt; an id is *reused* if more than one request has it;
    a *repeat* is any reference to an id but its first. Cache efficiency is repeats over
    references: what an unlimited cache shared by all workers would save, in blocks. These are the
    figures of the page's setup table.
    """
    ids = np.fromiter((i for row in trace.hash_ids for i in row), dtype="int64")
    requests = np.repeat(np.arange(len(trace)), [len(row) for row in trace.hash_ids])
    unique = len(np.unique(ids))
    pairs = np.unique(np.column_stack([ids, requests]), axis=0)
    reused = int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())
    ticks, bursts = np.unique(trace.timestamp_ms, return_counts=True)
    steps = np.diff(ticks)
    duration_s = float(trace.arrival_ms[-1]) / 1000
    tokens = trace.input_tokens
    return {
        "rows": len(trace),
        "duration_s": duration_s,
        "input_tokens": {
            "mean": float(tokens.mean()),
            "min": int(tokens.min()),
            "max": int(tokens.max()),
        },
        "output_tokens": {"mean": float(trace.output_tokens.mean())},
        "unique_blocks": unique,
        "reused_blocks": reused,
        "block_references": len(ids),
        "repeat_references": len(ids) - unique,
        "cache_efficiency": (len(ids) - unique) / len(ids),
        "distinct_timestamps": len(ticks),
        "largest_burst": int(bursts.max()),
        "one_token_rows": int((trace.output_tokens == 1).sum()),
        "sha256": trace.sha256,
        "name": trace.name,
        "synthetic": trace.synthetic,
        "timestamp_step_s": float(np.median(steps)) / 1000 if len(steps) else None,
        "mean_burst": float(bursts.mean()),
        "longest_prompt_plus_answer_tokens": int((tokens + trace.output_tokens).max()),
        "input_tokens_per_s": float(tokens.sum()) / duration_s if duration_s else None,
    }


def describe_rows(d: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the description as labels and formatted values, the page's own rows first."""
    tokens = d["input_tokens"]
    step_s = d["timestamp_step_s"]
    return [
        ("requests", f"{d['rows']:,}"),
        ("duration [min]", f"{d['duration_s'] / 60:.1f}"),
        ("mean prompt [tokens]", f"{tokens['mean']:,.0f}"),
        ("mean answer [tokens]", f"{d['output_tokens']['mean']:,.0f}"),
        ("shortest to longest prompt [tokens]", f"{tokens['min']:,} to {tokens['max']:,}"),
        ("cache efficiency", f"{d['cache_efficiency']:.2%}"),
        ("unique blocks", f"{d['unique_blocks']:,}"),
        ("blocks in more than one request", f"{d['reused_blocks']:,}"),
        ("block references", f"{d['block_references']:,}"),
        ("repeat references", f"{d['repeat_references']:,}"),
        ("prompt tokens a second", f"{d['input_tokens_per_s'] or 0:,.0f}"),
        ("distinct timestamps", f"{d['distinct_timestamps']:,}"),
        ("step of the clock [s]", "-" if step_s is None else f"{step_s:g}"),
        ("mean and largest burst [requests]", f"{d['mean_burst']:.1f} and {d['largest_burst']}"),
        ("one-token answers", f"{d['one_token_rows']:,}"),
        ("longest prompt + answer [tokens]", f"{d['longest_prompt_plus_answer_tokens']:,}"),
        ("sha256", d["sha256"]),
    ]


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
    if not len(chosen) or (rows is not None and rows < 1):
        raise InputError(
            f"{trace.path}: no rows left by the slice; the trace has {len(trace)} rows from 0 to "
            f"{trace.arrival_ms[-1] / 1000:g} s"
        )
    return chosen


def write_rows(trace: Trace, rows: np.ndarray, path: Path) -> Path:
    """Write chosen rows as a trace of its own, whole or not at all.

    Raises
    ------
    InputError
        If the file exists or its folder cannot be written.
    """
    lines = []
    for row in rows.tolist():
        at_ms = float(trace.timestamp_ms[row])
        record: dict[str, Any] = {
            "timestamp": int(at_ms) if at_ms.is_integer() else at_ms,
            "input_length": int(trace.input_tokens[row]),
            "output_length": int(trace.output_tokens[row]),
            "hash_ids": list(trace.hash_ids[row]),
        }
        lines.append(json.dumps(record | ({"synthetic": True} if trace.synthetic else {})))
    return write_lines(path, lines)


def write_lines(path: Path, lines: list[str]) -> Path:
    """Write lines to a new file, beside its place and renamed in."""
    if path.exists():
        raise InputError(f"{path}: exists already; choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
        beside.rename(path)
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror})") from None
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


def reusable_tokens(trace: Trace) -> np.ndarray:
    """Return, by row, the prompt tokens that an earlier row had already brought.

    Returns
    -------
    ndarray of int32, shape (rows,)
        Tokens in the longest run of leading blocks that all appeared in earlier rows: what an
        unlimited cache shared by all workers would serve.
    """
    seen: set[int] = set()
    result = np.zeros(len(trace), dtype="int32")
    for row, ids in enumerate(trace.hash_ids):
        leading = next((n for n, block in enumerate(ids) if block not in seen), len(ids))
        result[row] = min(leading * trace.block_tokens, trace.input_tokens[row])
        seen.update(ids)
    return result
