"""AIPerf's records by trace row: when each was due, and whether it was served.

Input: AIPerf's artifacts and, where there is one, the trace. Output: a table with one row a trace
row, and what had to be inferred.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.aiperf.places import place
from kvab.trace import Trace

if TYPE_CHECKING:
    from kvab.requests.aiperf import Artifacts

INT32_MAX = 2**31 - 1
NO_SCHEDULE = "arrivals: when AIPerf issued each request, for want of a trace"
LOST = "no record"
MOST_REQUESTS = 1_000_000  # of one run; a wrong number of one must not fill the memory


def by_row(
    artifacts: Artifacts,
    trace: Trace | None = None,
    rows: int | np.ndarray | None = None,
    counts: str | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Return the records of a run by trace row, and what was inferred.

    Returns
    -------
    DataFrame
        Indexed by row, sorted: the columns of `kvab.requests.aiperf.records.Records`, and
        ``input_tokens``, ``output_tokens`` int64 (see `counted`; 0 where there is no count),
        ``arrival_ms``, ``send_lag_ms`` float64, ``error`` string (null if served).
        ``attrs["token_counts"]`` says whose counts they are.
    list of str
        What the files did not say and where it was taken from.

    Raises
    ------
    InputError
        See `kvab.requests.tidy.from_aiperf`.
    """
    source = artifacts.folder
    if artifacts.records is None:
        raise InputError(
            f"{source}: expected profile_export.jsonl, got the summary only: single requests "
            "cannot be told apart; run AIPerf without --export-level summary"
        )
    records = artifacts.records.table
    if not isinstance(rows, np.ndarray):
        lines, count, sent = None, rows, trace
    else:
        assert trace is not None  # rows are those of a trace
        lines, count, sent = rows, len(rows), _as_sent(trace, rows)
    placed, inferred = place(records, sent, source)
    if lines is None:
        _check_sent(artifacts, placed, count)
    total = _expected(artifacts, placed, sent, count, inferred)
    if (placed < 0).any():
        inferred.append(f"{(placed < 0).sum()} failed requests that name no row are left out")
    whose, tokens = counted(records, counts, source, inferred)
    got = records.assign(
        **tokens,
        start_ms=_since_first(records["start_ns"]),
        issued_ms=_since_first(records["issued_ns"]),
    )[placed >= 0]
    got = got.set_axis(placed[placed >= 0]).reindex(np.arange(total))
    got["error"] = _errors(got)
    due_ms = (
        None if sent is None or trace is None else sent.timestamp_ms[:total] - trace.timestamp_ms[0]
    )
    got["arrival_ms"], got["send_lag_ms"] = _schedule(got, due_ms, inferred)
    for column in ("input_tokens", "output_tokens"):
        got[column] = got[column].where(_countable(got[column]), 0).round().astype("int64")
    got["cached_tokens"] = got["cached_tokens"].where(_countable(got["cached_tokens"])).round()
    if lines is not None:
        got = got.set_axis(lines).sort_index()
    got.attrs["token_counts"] = whose
    return got, inferred


def counted(
    records: pd.DataFrame, counts: str | None, source: Path, inferred: list[str]
) -> tuple[str, dict[str, pd.Series]]:
    """Return whose token counts are used, and those of each record.

    By default they are the server's, who made the tokens, where it reports any.

    Raises
    ------
    InputError
        If those that are asked for are in no record.
    """
    there = {whose: records[f"{whose}_output_tokens"].notna() for whose in ("server", "client")}
    if counts and not there[counts].any():
        raise InputError(
            f"{source}: --token-counts {counts}: no record has the {counts}'s count of its answer; "
            "leave the option out"
        )
    whose = counts or ("server" if there["server"].any() else "client")
    other = "client" if whose == "server" else "server"
    if instead := int((~there[whose] & there[other]).sum()):
        inferred.append(f"token counts: the {other}'s for {instead} requests without the {whose}'s")
    return whose, {
        f"{kind}_tokens": records[f"{whose}_{kind}_tokens"].fillna(
            records[f"{other}_{kind}_tokens"]
        )
        for kind in ("input", "output")
    }


def _as_sent(trace: Trace, lines: np.ndarray) -> Trace:
    """Return the trace as AIPerf read it: some of its rows, in their order."""
    return replace(
        trace,
        timestamp_ms=trace.timestamp_ms[lines],
        input_tokens=trace.input_tokens[lines],
        output_tokens=trace.output_tokens[lines],
        hash_ids=(),
    )


def _check_sent(artifacts: Artifacts, placed: np.ndarray, rows: int | None) -> None:
    """Reject a number of requests above what AIPerf says, or what is left of a whole run."""
    ended = max(len(placed), int(placed.max()) + 1) if artifacts.whole else None
    sent = artifacts.expected or ended
    if rows and sent and rows > sent:
        raise InputError(
            f"{artifacts.folder}: --rows {rows}: AIPerf sent {sent} requests; leave the option out"
        )


def _expected(
    artifacts: Artifacts,
    placed: np.ndarray,
    trace: Trace | None,
    rows: int | None,
    inferred: list[str],
) -> int:
    """Return how many requests were to be sent."""
    total, highest = rows or artifacts.expected, int(placed.max())
    if total is None:
        total = highest + 1
        inferred.append(f"expected requests: {total}, the last row that has a record")
    if highest >= total:
        raise InputError(
            f"{artifacts.folder}: expected rows 0 to {total - 1}, got a record of row {highest}; "
            "name the number of requests that were sent with --rows"
        )
    if total > MOST_REQUESTS:
        raise InputError(
            f"{artifacts.folder}: expected a run of at most {MOST_REQUESTS:,} requests, got row "
            f"numbers or a count up to {total:,}; name the number that were sent with --rows"
        )
    if trace is not None and total > len(trace):
        raise InputError(
            f"{artifacts.folder}: {total} requests were to be sent, {trace.name} has {len(trace)} "
            "rows; name the trace that was replayed with --trace"
        )
    return total


def _errors(got: pd.DataFrame) -> pd.Series:
    """Return why each row was not served; null if it was."""
    ttft_ms, latency_ms = got["ttft_ms"], got["latency_ms"]
    sound = np.isfinite(latency_ms) & (latency_ms >= 0)
    if ttft_ms.notna().any():  # otherwise the answers were not streamed
        sound &= (ttft_ms >= 0) & (ttft_ms <= latency_ms)
    counted = _countable(got["input_tokens"]) & _countable(got["output_tokens"])
    counted &= got["output_tokens"].round() > 0
    error = got["error"].astype("string")
    error = error.mask(error.isna() & ~sound, "unusable record: no sound TTFT and latency")
    error = error.mask(error.isna() & ~counted, "unusable record: no sound token counts")
    return error.mask(got["session"].isna(), LOST)


def _countable(counts: pd.Series) -> pd.Series:
    return counts.between(0, INT32_MAX)


def _schedule(
    got: pd.DataFrame, due_ms: np.ndarray | None, inferred: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return when each row was due, from 0, and how much later it was sent, both in ms."""
    start_ms, issued_ms = got["start_ms"].to_numpy(), got["issued_ms"].to_numpy()
    if due_ms is None:
        inferred.append(NO_SCHEDULE)
        due_ms = issued_ms if not np.isnan(issued_ms).all() else start_ms
        rows, known = np.arange(len(got)), np.flatnonzero(~np.isnan(due_ms))
        due_ms = np.interp(rows, known, due_ms[known]) if known.size else rows * 0.0
    offset_ms = start_ms - due_ms
    zero_ms = offset_ms[~np.isnan(offset_ms)].min(initial=np.inf)  # AIPerf does not record it
    return due_ms, offset_ms - zero_ms


def _since_first(at_ns: pd.Series) -> np.ndarray:
    """Return times in ms since the first; NaN where unknown."""
    at_ns = at_ns.to_numpy("int64")
    known = at_ns > 0
    first = at_ns[known].min(initial=np.iinfo("int64").max)
    return np.where(known, (at_ns - first) / 1e6, np.nan)
