"""A Mooncake trace: read and checked row by row, described, cut, written; the order of sending.

Input: JSON lines, one request each. Output: arrays by row, in file order, their figures, those of
the page's setup table among them, and such lines again.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from kvab.cache import sha256_of, write_beside
from kvab.console import percent
from kvab.declarations import Json
from kvab.errors import InputError, writing

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
Tokens = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Block = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Row(msgspec.Struct, gc=False):
    """A request as Mooncake writes it; its times are in ms."""

    timestamp: Annotated[float, msgspec.Meta(ge=0, lt=2**53)]
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[Block, ...]
    synthetic: object = None


_decode = msgspec.json.Decoder(_Row, strict=False).decode  # 600.0 is a whole number too


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
        Whether it was generated.
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

    def take(self, rows: np.ndarray) -> Trace:
        """Return the trace of some of its rows, in their order."""
        return replace(
            self,
            timestamp_ms=self.timestamp_ms[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            hash_ids=tuple(self.hash_ids[row] for row in rows.tolist()),
        )

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
        synthetic=any(row.synthetic is True for row in rows),
        timestamp_ms=np.array([row.timestamp for row in rows], dtype="float64"),
        input_tokens=np.array([row.input_length for row in rows], dtype="int32"),
        output_tokens=np.array([row.output_length for row in rows], dtype="int32"),
        hash_ids=tuple(row.hash_ids for row in rows),
    )


def _checked_rows(path: Path, block_tokens: int, sha256: str | None) -> tuple[list[_Row], str]:
    """Return every row, and the sha256 of the file they came from."""
    try:
        content = path.read_bytes()
    except OSError as error:
        fix = "check the name, or run `kvab trace fetch`"
        raise InputError(expected="a file of JSON lines", got=error.strerror, path=path,
                         fix=fix) from None  # fmt: skip
    digest = sha256_of(content)
    if sha256 not in (None, digest):
        fix = "fetch it again, or name it with --trace to replay another trace on purpose"
        raise InputError(expected=f"sha256 {sha256}", got=digest, path=path, fix=fix)
    rows: list[_Row] = []
    last_ms = 0.0
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            rows.append(_checked_row(line, last_ms, block_tokens))
        except InputError as error:
            error.path, error.line = path, number
            raise
        last_ms = rows[-1].timestamp
    if not rows:
        raise InputError(expected="a request a line", got="an empty file", path=path,
                         fix="fetch it again")  # fmt: skip
    return rows, digest


def _checked_row(line: bytes, last_ms: float, block_tokens: int) -> _Row:
    """Return the request of a line; its error does not know the line's place yet."""
    try:
        row = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem, _, key = str(error).partition(" - at `$.")
        start = line.strip()[:60].decode(errors="replace")
        fix = "fix it" if line.endswith(b"\n") else "the file is cut off here: fetch it again"
        raise InputError(f"{problem.lower()} in {start!r}", key=key.rstrip("`"), fix=fix) from None
    if row.timestamp < last_ms:
        expected = f"{last_ms:g} or more, as in the row before"
        raise InputError(expected=expected, got=f"{row.timestamp:g}", key="timestamp",
                         fix="sort the rows by timestamp")  # fmt: skip
    tokens, needed = row.input_length, math.ceil(row.input_length / block_tokens)
    if len(row.hash_ids) != needed:
        expected = f"{needed} hash_ids ({tokens} tokens in blocks of {block_tokens})"
        raise InputError(expected=expected, got=f"{len(row.hash_ids)}",
                         fix="fix the row or the block size")  # fmt: skip
    return row


def burst_order(timestamp_ms: np.ndarray, seed: int) -> np.ndarray:
    """Return rows in sending order: by timestamp, rows that share one shuffled by the seed.

    Seed 0 keeps the file's order. The trace's clock leaves the order inside a burst undefined, so
    each shuffle is an equally true replay of it.
    """
    if seed == 0:
        return np.argsort(timestamp_ms, kind="stable")
    keys = np.random.default_rng(seed).random(len(timestamp_ms))
    return np.lexsort((keys, timestamp_ms))


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
        expected = f"a part of {len(trace)} rows from 0 to {trace.arrival_ms[-1] / 1000:g} s"
        raise InputError(expected=expected, got="a slice without rows", path=trace.path,
                         fix="widen the slice")  # fmt: skip
    return chosen


def write_rows(trace: Trace, rows: np.ndarray, path: Path) -> Path:
    """Write chosen rows as a trace of its own, whole or not at all.

    Raises
    ------
    InputError
        If the file exists, or its folder cannot be written.
    """
    return write_lines(path, row_lines(trace, rows))


def row_lines(trace: Trace, rows: np.ndarray) -> list[str]:
    """Return chosen rows as Mooncake writes them, a line each."""
    lines = []
    for row in rows.tolist():
        at_ms = float(trace.timestamp_ms[row])
        tokens = int(trace.input_tokens[row]), int(trace.output_tokens[row])
        values = (int(at_ms) if at_ms.is_integer() else at_ms, *tokens, trace.hash_ids[row])
        label = {"synthetic": True} if trace.synthetic else {}
        lines.append(json.dumps(dict(zip(FIELDS, values, strict=True)) | label))
    return lines


def write_lines(path: Path, lines: list[str], *, overwrite: bool = False) -> Path:
    """Write lines to a file, whole or not at all, and return its path."""
    with writing(path):
        if path.exists() and not overwrite:
            raise InputError("exists already", path=path, fix="choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, ("\n".join(lines) + "\n").encode())
    return path


# --- its figures -------------------------------------------------------------------------------


def describe(trace: Trace) -> Json:
    """Return the figures of a trace, the document of ``kvab trace describe --json``.

    Notes
    -----
    A *reference* is one hash id of one prompt; an id is *reused* if more than one request has it;
    a *repeat* is any reference to an id but its first. Cache efficiency is repeats over
    references: what an unlimited cache shared by all workers would save, in blocks. These are the
    figures of the page's setup table.
    """
    ticks, bursts = np.unique(trace.timestamp_ms, return_counts=True)
    duration_s = float(trace.arrival_ms[-1]) / 1000
    tokens = trace.input_tokens.astype("int64")
    shortest, longest = int(tokens.min()), int(tokens.max())
    return {
        "rows": len(trace),
        "duration_s": duration_s,
        "input_tokens": {"mean": float(tokens.mean()), "min": shortest, "max": longest},
        "output_tokens": {"mean": float(trace.output_tokens.mean())},
        **_block_counts(trace),
        "distinct_timestamps": len(ticks),
        "largest_burst": int(bursts.max()),
        "one_token_rows": int((trace.output_tokens == 1).sum()),
        "sha256": trace.sha256,
        "name": trace.name,
        "synthetic": trace.synthetic,
        "timestamp_step_s": float(np.median(np.diff(ticks))) / 1000 if len(ticks) > 1 else None,
        "mean_burst": float(bursts.mean()),
        "longest_prompt_plus_answer_tokens": int((tokens + trace.output_tokens).max()),
        "input_tokens_per_s": float(tokens.sum()) / duration_s if duration_s else None,
    }


def _block_counts(trace: Trace) -> dict[str, float]:
    requests = Counter(block for ids in trace.hash_ids for block in set(ids))
    references = sum(map(len, trace.hash_ids))
    repeats = references - len(requests)
    return {
        "unique_blocks": len(requests),
        "reused_blocks": sum(count > 1 for count in requests.values()),
        "block_references": references,
        "repeat_references": repeats,
        "cache_efficiency": repeats / references,
    }


def describe_rows(d: Json) -> list[tuple[str, str]]:
    """Return the description as labels and formatted values, the page's own rows first."""
    tokens = d["input_tokens"]
    step_s = d["timestamp_step_s"]
    return [
        ("requests", f"{d['rows']:,}"),
        ("duration [min]", f"{d['duration_s'] / 60:.1f}"),
        ("mean prompt [tokens]", f"{tokens['mean']:,.0f}"),
        ("mean answer [tokens]", f"{d['output_tokens']['mean']:,.0f}"),
        ("shortest to longest prompt [tokens]", f"{tokens['min']:,} to {tokens['max']:,}"),
        ("cache efficiency", percent(d["cache_efficiency"], 2)),
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


def reusable_tokens(trace: Trace) -> np.ndarray:
    """Return, by row, the prompt tokens that an earlier row had already brought.

    Returns
    -------
    ndarray of int32, shape (rows,)
        Tokens in the longest run of leading blocks that all appeared in earlier rows: what an
        unlimited cache shared by all workers would serve. A last block counts with the tokens
        that the prompt has of it, so the sum is not the repeat references of `describe` times
        the block size.
    """
    seen: set[int] = set()
    result = np.zeros(len(trace), dtype="int32")
    for row, ids in enumerate(trace.hash_ids):
        leading = next((n for n, block in enumerate(ids) if block not in seen), len(ids))
        result[row] = min(leading * trace.block_tokens, trace.input_tokens[row])
        seen.update(ids)
    return result
