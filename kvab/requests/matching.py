"""AIPerf's records -> the requests table: which trace row each record belongs to.

Input: AIPerf's artifacts and, where there is one, the trace. Output: a table of the columns in
`kvab.requests.table`, and what had to be inferred.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.aiperf import Artifacts
from kvab.requests.metrics import unlike
from kvab.requests.table import itl_ms, typed
from kvab.trace import Trace

FITTING = 0.95  # share of the prompts that must be the trace's
INT32_MAX = 2**31 - 1
NO_SCHEDULE = "arrivals: when AIPerf issued each request, for want of a trace"
LOST = "no record"
MOST_REQUESTS = 1_000_000  # of one run; a wrong number of one must not fill the memory


def from_aiperf(
    artifacts: Artifacts,
    trace: Trace | None = None,
    rows: int | np.ndarray | None = None,
    counts: str | None = None,
) -> pd.DataFrame:
    """Return the requests table of a run under AIPerf.

    Parameters
    ----------
    artifacts : Artifacts
        What AIPerf left, see `kvab.requests.aiperf.read_artifacts`.
    trace : Trace, optional
        The trace that was replayed. Without it rows arrive when AIPerf issued them.
    rows : int or ndarray of int, optional
        Requests that were to be sent: the first rows of the trace, or the trace row of each line
        of AIPerf's input file. By default as many as the summary says, else those up to the last
        that has a record.
    counts : {'server', 'client'}, optional
        Whose token counts to use, by default the server's where it reports them.

    Returns
    -------
    DataFrame
        Columns of `kvab.requests.table.SCHEMA` and ``client_itl_ms`` (AIPerf's own, on its own
        token counts), sorted by row. A row without a record says ``no record`` in ``error``.
        ``attrs["inferred"]`` lists what the files did not say, ``attrs["token_counts"]`` says whose
        counts are used.

    Raises
    ------
    InputError
        If only aggregates were kept, or the records are not of one run of this trace.

    Notes
    -----
    AIPerf does not record when its schedule began, so ``send_lag_ms`` counts from the request that
    was least late, as AIPerf's own ``replay_sched_lag`` does (0.13.0).
    """
    got, inferred = by_row(artifacts, trace, rows, counts)
    whose = got.attrs["token_counts"]
    at = got.index.to_numpy()
    got = got.reset_index(drop=True)
    served = got["error"].isna()
    sent_tokens, output_tokens = got["input_tokens"], got["output_tokens"].where(served, 0)
    if trace is None:
        requested = got["output_tokens"]
        inferred.append("requested output tokens: those that came, for want of a trace")
    else:
        requested = trace.output_tokens[at]
        sent_tokens = sent_tokens.where(served, trace.input_tokens[at])
    ttft_ms, latency_ms = got["ttft_ms"].where(served), got["latency_ms"].where(served)
    table = typed(
        {
            "row": at,
            "arrival_ms": got["arrival_ms"],
            "input_tokens": sent_tokens,
            "output_tokens": output_tokens,
            "requested_output_tokens": requested,
            "ttft_ms": ttft_ms,
            "itl_ms": itl_ms(latency_ms, ttft_ms, output_tokens.to_numpy()),
            "latency_ms": latency_ms,
            "cached_tokens": got["cached_tokens"].where(served),
            "send_lag_ms": got["send_lag_ms"],
            "error": got["error"],
        }
    )
    table["client_itl_ms"] = got["client_itl_ms"].where(served).to_numpy(float)
    table.attrs |= {"inferred": inferred, "token_counts": whose}
    return table


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
        Indexed by row, sorted: the columns of `kvab.requests.records.Records`, and
        ``input_tokens``, ``output_tokens`` int64 (see `counted`; 0 where there is no count),
        ``arrival_ms``, ``send_lag_ms`` float64, ``error`` string (null if served).
        ``attrs["token_counts"]`` says whose counts they are.
    list of str
        What the files did not say and where it was taken from.

    Raises
    ------
    InputError
        See `from_aiperf`.
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


def place(records: pd.DataFrame, trace: Trace | None, source: Path) -> tuple[np.ndarray, list[str]]:
    """Return the trace row of each record, -1 where it has none, and what was inferred.

    A seeded run names its conversations by row. Otherwise rows follow the order of sending, which
    is the trace's but for the requests of one burst: those are told apart by prompt length.

    Parameters
    ----------
    records : DataFrame
        See `kvab.requests.records.Records`.
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
