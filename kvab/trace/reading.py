"""A Mooncake trace in memory, checked row by row, and the order of sending.

Input: JSON lines, one request each. Output: arrays by row, in file order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kvab.errors import InputError

FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
log = logging.getLogger("kvab")


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
    fix = "check the name, or run `kvab trace fetch`"
    try:
        found = "a folder" if path.is_dir() else "nothing of that name"
        expect(path.is_file(), path, "a file of JSON lines", found, fix)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            fix = "fetch it again, or name it with --trace to replay another trace on purpose"
            expect(sha256 in (None, digest), path, f"sha256 {sha256}", digest, fix)
            file.seek(0)
            for number, line in enumerate(file, start=1):
                where = f"{path}:{number}"
                row = _parsed(where, line)
                _check(where, row, last_ms, block_tokens)
                last_ms = row["timestamp"]
                rows.append(row)
    except OSError as error:
        expect(False, path, "a file that can be read", error.strerror, "fix its rights")
    expect(bool(rows), path, "a request a line", "an empty file", "fetch it again")
    return rows, digest


def _parsed(where: str, line: bytes) -> dict[str, Any]:
    """Return the JSON object of a line that has all fields."""
    start = line.strip()[:40]
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        expect(False, where, "UTF-8 text", start, "convert the file to UTF-8")
    except (ValueError, RecursionError):
        whole = line.endswith(b"\n")
        fix = "fix the line" if whole else "the file is truncated: fetch it again"
        expect(False, where, "one JSON object", start, fix)
    expect(isinstance(row, dict), where, "one JSON object", start, "fix the line")
    for field in FIELDS:
        expect(field in row, where, f"the field {field}", sorted(row), "add it")
    return row


def _check(where: str, row: dict[str, Any], last_ms: float, block_tokens: int) -> None:
    at_ms, ids = row["timestamp"], row["hash_ids"]
    right = type(at_ms) in (int, float) and 0 <= at_ms < 2**53
    expect(right, where, "a timestamp of 0 ms or more", at_ms, "fix it")
    expected = f"a timestamp that does not fall below the {last_ms} before it"
    expect(at_ms >= last_ms, where, expected, at_ms, "sort the rows by timestamp")
    for field in ("input_length", "output_length"):
        tokens = row[field]
        whole = type(tokens) is int or (type(tokens) is float and tokens.is_integer())
        right = whole and 1 <= tokens < 2**31
        expect(right, where, f"{field} of 1 token or more, a whole number", tokens, "fix it")
    right = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**63 for i in ids)
    expect(right, where, "hash_ids as a list of whole numbers of 0 or more", ids, "fix them")
    needed = math.ceil(row["input_length"] / block_tokens)
    expected = f"{needed} hash_ids ({row['input_length']} tokens in blocks of {block_tokens})"
    expect(len(ids) == needed, where, expected, len(ids), "fix the row or the block size")


def expect(right: bool, where: str | Path, expected: str, got: object, fix: str) -> None:
    """Raise the error of a trace unless something is right."""
    if not right:
        raise InputError(f"{where}: expected {expected}, got {got!r:.80}; {fix}")


def burst_order(timestamp_ms: np.ndarray, seed: int) -> np.ndarray:
    """Return rows in sending order: by timestamp, rows that share one shuffled by the seed.

    Seed 0 keeps the file's order. The trace's clock leaves the order inside a burst undefined, so
    each shuffle is an equally true replay of it.
    """
    if seed == 0:
        return np.argsort(timestamp_ms, kind="stable")
    keys = np.random.default_rng(seed).random(len(timestamp_ms))
    return np.lexsort((keys, timestamp_ms))
