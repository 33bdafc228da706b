"""Which trace row each of AIPerf's records belongs to.

Input: the records of a run and, where there is one, the trace. Output: a row a record.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.metrics import unlike
from kvab.trace import Trace

FITTING = 0.95  # share of the prompts that must be the trace's


def place(records: pd.DataFrame, trace: Trace | None, source: Path) -> tuple[np.ndarray, list[str]]:
    """Return the trace row of each record, -1 where it has none, and what was inferred.

    A seeded run names its conversations by row. Otherwise rows follow the order of sending, which
    is the trace's but for the requests of one burst: those are told apart by prompt length.

    Parameters
    ----------
    records : DataFrame
        See `kvab.requests.aiperf.records.Records`.
    trace : Trace or None
        The trace that was replayed.
    source : Path
        For messages.

    Raises
    ------
    InputError
        If a row stands twice, lies outside the trace, or the prompts are not the trace's.
    """
    known = records["session"].to_numpy() >= 0  # a record that AIPerf lost hold of has none
    named = records["conversation"].to_numpy()
    inferred = []
    if (records["turn"].to_numpy() > 0).any():
        rows = np.where(known, records["session"].to_numpy(), -1)
        inferred.append("rows: the order of sending, as conversations have several turns")
    elif (named[known] >= 0).all():
        rows = np.where(known, named, -1)
    else:
        rows = np.where(known, records["session"].to_numpy(), -1)
        inferred.append("rows: the order of sending, as the run had no --random-seed")
        if trace is not None:
            moved = _told_apart(records, rows, trace, source)
            count = int((moved != rows).sum())
            inferred.append(f"rows: {count} moved within their burst by prompt length")
            rows = moved
    _check_unique(rows[known], source)
    if trace is not None:
        _check_inside(rows, trace, source)
        _check_prompts(records, rows, trace, source)
    return rows, inferred


def prompt_tokens(records: pd.DataFrame) -> np.ndarray:
    """Return prompt lengths, the server's count where there is one; NaN where unknown."""
    server = records["server_input_tokens"]
    return server.fillna(records["client_input_tokens"]).to_numpy(float)


def _told_apart(records: pd.DataFrame, rows: np.ndarray, trace: Trace, source: Path) -> np.ndarray:
    """Return rows with those of each burst assigned so that prompt lengths fit best."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    _check_inside(rows, trace, source)
    lengths, result = prompt_tokens(records), rows.copy()
    burst = np.unique(trace.timestamp_ms, return_inverse=True)[1]
    of_record = np.where(rows >= 0, burst[rows], -1)
    for number in np.unique(of_record[of_record >= 0]):
        members, places = np.flatnonzero(of_record == number), np.flatnonzero(burst == number)
        apart = np.abs(lengths[members, None] - trace.input_tokens[None, places])
        late = np.abs(rows[members, None] - places[None, :])
        cost = np.nan_to_num(apart, nan=0.0) + 1e-6 * late
        chosen, taken = linear_sum_assignment(cost)
        result[members[chosen]] = places[taken]
    return result


def _check_unique(rows: np.ndarray, source: Path) -> None:
    values, counts = np.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"{source}: {int((counts > 1).sum())} requests have more than one record, row "
            f"{values[counts > 1][0]} first: expected one run; put each run in its own folder"
        )


def _check_inside(rows: np.ndarray, trace: Trace, source: Path) -> None:
    if rows.max(initial=-1) >= len(trace):
        raise InputError(
            f"{source}: has a record of row {rows.max()}, {trace.name} has rows 0 to "
            f"{len(trace) - 1}; name the trace that was replayed with --trace"
        )


def _check_prompts(records: pd.DataFrame, rows: np.ndarray, trace: Trace, source: Path) -> None:
    lengths = prompt_tokens(records)
    counted = (rows >= 0) & ~np.isnan(lengths)
    expected = trace.input_tokens[rows[counted]]
    odd = unlike(lengths[counted], expected)
    if odd.size and odd.mean() > 1 - FITTING:
        at = int(np.flatnonzero(odd)[0])
        raise InputError(
            f"{source}: the prompt of row {rows[counted][at]} has {lengths[counted][at]:.0f} "
            f"tokens, that of {trace.name} {expected[at]} ({odd.sum()} of {odd.size} differ): "
            "another trace or other prompts; name the trace that was replayed with --trace"
        )
