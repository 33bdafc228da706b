"""A part of a trace, and a trace written as a file.

Input: a trace and rows. Output: JSON lines, whole or not at all.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from kvab.cache import write_beside
from kvab.errors import InputError, writing
from kvab.trace.reading import FIELDS, Trace


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
    lines = []
    for row in rows.tolist():
        at_ms = float(trace.timestamp_ms[row])
        tokens = int(trace.input_tokens[row]), int(trace.output_tokens[row])
        values = (int(at_ms) if at_ms.is_integer() else at_ms, *tokens, trace.hash_ids[row])
        label = {"synthetic": True} if trace.synthetic else {}
        lines.append(json.dumps(dict(zip(FIELDS, values, strict=True)) | label))
    return write_lines(path, lines)


def write_lines(path: Path, lines: list[str], *, overwrite: bool = False) -> Path:
    """Write lines to a file, whole or not at all, and return its path."""
    with writing(path):
        if path.exists() and not overwrite:
            raise InputError("exists already", path=path, fix="choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_beside(path, ("\n".join(lines) + "\n").encode())
    return path
