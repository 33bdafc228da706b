"""A part of a trace, and a trace written as a file.

Input: a trace and rows. Output: JSON lines, whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from kvab.trace.reading import FIELDS, Trace, expect


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
    expect(right, trace.path, expected, "a slice without rows", "widen the slice")
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
        mark = {"synthetic": True} if trace.synthetic else {}
        lines.append(json.dumps(dict(zip(FIELDS, values, strict=True)) | mark))
    return write_lines(path, lines)


def write_lines(path: Path, lines: list[str], *, overwrite: bool = False) -> Path:
    """Write lines to a file, beside its place and renamed in."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        free = overwrite or not path.exists()
        expect(free, path, "a new file", "one that exists already", "choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text("\n".join(lines) + "\n", encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        expect(False, path, "a place to write", error.strerror, "choose another")
    return path
