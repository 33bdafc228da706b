"""AIPerf's records -> the requests table: which trace row each record belongs to.

Input: AIPerf's artifacts and, where there is one, the trace. Output: a table of the columns in
`kvab.requests.table`, and what had to be inferred.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.aiperf import Artifacts
from kvab.requests.metrics import unlike
from kvab.requests.table import itl_ms, typed
from kvab.trace.reading import Trace

INT32_MAX = 2**31 - 1
FITTING = 0.95  # share of the prompts that must be the trace's
MOST_REQUESTS = 1_000_000  # of one run; a wrong number of one must not fill the memory
LOST = "no record"
NO_SCHEDULE = "arrivals: when AIPerf issued each request, for want of a trace"
NO_ANSWERS = "requested output tokens: those that came, for want of a trace"
NAME_TRACE = "name the trace that was replayed with --trace"
LEAVE_OUT = "leave the option out"
NAME_ROWS = "name the number of requests that were sent with --rows"


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
    lines = rows if isinstance(rows, np.ndarray) else None
    sent = trace if trace is None or lines is None else trace.take(lines)
    by_row, whose, inferred = _by_row(artifacts, sent, rows, counts)
    total = len(by_row)
    served = by_row["error"].isna()
    answers = by_row[["ttft_ms", "latency_ms", "client_itl_ms", "cached_tokens"]].where(served)
    input_tokens, requested, due_ms = by_row["input_tokens"], by_row["output_tokens"], None
    output_tokens = requested.where(served, 0)
    if sent is None:
        inferred += [NO_SCHEDULE, NO_ANSWERS]
    else:
        due_ms = sent.arrival_ms[:total]
        requested = pd.Series(sent.output_tokens[:total])
        input_tokens = input_tokens.where(served, sent.input_tokens[:total])
    arrival_ms, send_lag_ms = _schedule(by_row, due_ms)
    table = typed(
        {
            **{name: answers[name] for name in ("ttft_ms", "latency_ms", "cached_tokens")},
            "row": np.arange(total) if lines is None else lines,
            "arrival_ms": arrival_ms,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "requested_output_tokens": requested,
            "itl_ms": itl_ms(answers["latency_ms"], answers["ttft_ms"], output_tokens.to_numpy()),
            "send_lag_ms": send_lag_ms,
            "error": by_row["error"],
        }
    )
    table["client_itl_ms"] = answers["client_itl_ms"]
    table = table.sort_values("row", ignore_index=True)
    table.attrs |= {"inferred": inferred, "token_counts": whose}
    return table


def _by_row(
    artifacts: Artifacts, sent: Trace | None, rows: int | np.ndarray | None, counts: str | None
) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the records by the row that was sent, whose tokens they count, and what was inferred.

    To the columns of `kvab.requests.aiperf.Records` come ``input_tokens``, ``output_tokens``,
    ``start_ms`` and ``issued_ms``; ``error`` is null if a row was served. Counts that none can have
    are 0 or, of cached tokens, undefined.
    """
    folder = artifacts.folder
    if artifacts.records is None:
        raise InputError(expected="profile_export.jsonl", got="the summary only", path=folder,
                         fix="run AIPerf without --export-level summary")  # fmt: skip
    records = artifacts.records.table
    row_of, inferred = _match_rows(records, sent, folder)
    total, matched = _expected(artifacts, row_of, sent, rows, inferred), row_of >= 0
    if not matched.all():
        inferred.append(f"{(~matched).sum()} failed requests that name no row are left out")
    whose, tokens = _token_counts(records, counts, folder, inferred)
    times = {f"{name}_ms": _since_first(records[f"{name}_ns"]) for name in ("start", "issued")}
    by_row = records.assign(**tokens, **times)[matched].set_axis(row_of[matched])
    by_row = by_row.reindex(np.arange(total))
    by_row["error"] = _errors(by_row)
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        by_row[name] = by_row[name].where(_countable(by_row[name])).round()
    return by_row.fillna({"input_tokens": 0, "output_tokens": 0}), whose, inferred


def _expected(
    artifacts: Artifacts,
    row_of: np.ndarray,
    trace: Trace | None,
    rows: int | np.ndarray | None,
    inferred: list[str],
) -> int:
    """Return how many requests were to be sent."""
    folder, sent, highest = artifacts.folder, artifacts.expected, int(row_of.max())
    total = len(rows) if isinstance(rows, np.ndarray) else rows or sent
    if isinstance(rows, int) and sent and rows > sent:
        problem = f"AIPerf sent {sent} requests"
        raise InputError(problem, path=folder, key=f"--rows {rows}", fix=LEAVE_OUT)
    if total is None:
        total = highest + 1
        inferred.append(f"expected requests: {total}, the last row that has a record")
    if highest >= total:
        problem = f"expected rows 0 to {total - 1}, got a record of row {highest}"
        raise InputError(problem, path=folder, fix=NAME_ROWS)
    if total > MOST_REQUESTS:
        problem = f"expected at most {MOST_REQUESTS:,} requests, got a row or count of {total:,}"
        raise InputError(problem, path=folder, fix=NAME_ROWS)
    if trace is not None and total > len(trace):
        problem = f"{total} requests were to be sent, {trace.name} has {len(trace)} rows"
        raise InputError(problem, path=folder, fix=NAME_TRACE)
    return total


def _token_counts(
    records: pd.DataFrame, counts: str | None, folder: Path, inferred: list[str]
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
        problem = f"no record has the {counts}'s count of its answer"
        raise InputError(problem, path=folder, key=f"--token-counts {counts}", fix=LEAVE_OUT)
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


def _errors(by_row: pd.DataFrame) -> pd.Series:
    """Return why each row was not served; null if it was."""
    ttft_ms, latency_ms = by_row["ttft_ms"], by_row["latency_ms"]
    sound = np.isfinite(latency_ms) & (latency_ms >= 0)
    if ttft_ms.notna().any():  # otherwise the answers were not streamed
        sound &= (ttft_ms >= 0) & (ttft_ms <= latency_ms)
    counted = _countable(by_row["input_tokens"]) & _countable(by_row["output_tokens"])
    counted &= by_row["output_tokens"].round() > 0
    error = by_row["error"].astype("string")
    error = error.mask(error.isna() & ~sound, "unusable record: no sound TTFT and latency")
    error = error.mask(error.isna() & ~counted, "unusable record: no sound token counts")
    return error.mask(by_row["session"].isna(), LOST)


def _countable(counts: pd.Series) -> pd.Series:
    return counts.between(0, INT32_MAX)


def _schedule(by_row: pd.DataFrame, due_ms: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return when each row was due, from 0, and how much later it was sent, both in ms."""
    start_ms, issued_ms = by_row["start_ms"].to_numpy(), by_row["issued_ms"].to_numpy()
    if due_ms is None:
        due_ms = issued_ms if not np.isnan(issued_ms).all() else start_ms
        rows, known = np.arange(len(by_row)), np.flatnonzero(~np.isnan(due_ms))
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


def _match_rows(
    records: pd.DataFrame, trace: Trace | None, folder: Path
) -> tuple[np.ndarray, list[str]]:
    """Return the trace row of each record, -1 where it has none, and what was inferred.

    A seeded run names its conversations by row. Otherwise rows follow the order of sending, which
    is the trace's but for the requests of one burst: those are told apart by prompt length.

    Parameters
    ----------
    records : DataFrame
        See `kvab.requests.aiperf.Records`.
    trace : Trace or None
        The trace that was replayed.
    folder : Path
        For messages.

    Raises
    ------
    InputError
        If a row stands twice, lies outside the trace, or the prompts are not the trace's.
    """
    session, named = records["session"].to_numpy(), records["conversation"].to_numpy()
    known = session >= 0  # a record that AIPerf lost hold of has none
    several_turns = (records["turn"].to_numpy() > 0).any()
    by_name = not several_turns and (named[known] >= 0).all()
    rows, inferred = np.where(known, named if by_name else session, -1), []
    if several_turns:
        inferred.append("rows: the order of sending, as conversations have several turns")
    elif not by_name:
        inferred.append("rows: the order of sending, as the run had no --random-seed")
    if trace is not None and rows.max(initial=-1) >= len(trace):
        problem = f"has a record of row {rows.max()}, {trace.name} has rows 0 to {len(trace) - 1}"
        raise InputError(problem, path=folder, fix=NAME_TRACE)
    if trace is not None and not (by_name or several_turns):
        moved = _by_length(records, rows, trace)
        inferred.append(f"rows: {(moved != rows).sum()} moved within their burst by prompt length")
        rows = moved
    values, counts = np.unique(rows[known], return_counts=True)
    if (counts > 1).any():
        first, count = values[counts > 1][0], (counts > 1).sum()
        problem = f"{count} requests have more than one record, row {first} first: not one run"
        raise InputError(problem, path=folder, fix="put each run in its own folder")
    if trace is not None:
        _check_prompts(records, rows, trace, folder)
    return rows, inferred


def _prompt_tokens(records: pd.DataFrame) -> np.ndarray:
    """Return prompt lengths, the server's count where there is one; NaN where unknown."""
    server = records["server_input_tokens"]
    return server.fillna(records["client_input_tokens"]).to_numpy(float)


def _by_length(records: pd.DataFrame, rows: np.ndarray, trace: Trace) -> np.ndarray:
    """Return rows with those of each burst assigned so that prompt lengths fit best."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    lengths, result = _prompt_tokens(records), rows.copy()
    burst = np.unique(trace.timestamp_ms, return_inverse=True)[1]
    burst_of = np.where(rows >= 0, burst[rows], -1)
    for number in np.unique(burst_of[burst_of >= 0]):
        members, candidates = np.flatnonzero(burst_of == number), np.flatnonzero(burst == number)
        unlike_tokens = np.abs(lengths[members, None] - trace.input_tokens[None, candidates])
        moved_rows = np.abs(rows[members, None] - candidates[None, :])
        cost = np.nan_to_num(unlike_tokens, nan=0.0) + 1e-6 * moved_rows
        chosen, taken = linear_sum_assignment(cost)
        result[members[chosen]] = candidates[taken]
    return result


def _check_prompts(records: pd.DataFrame, rows: np.ndarray, trace: Trace, folder: Path) -> None:
    lengths = _prompt_tokens(records)
    counted = (rows >= 0) & ~np.isnan(lengths)
    lengths, expected = lengths[counted], trace.input_tokens[rows[counted]]
    odd = unlike(lengths, expected)
    if odd.size and odd.mean() > 1 - FITTING:
        first = int(np.flatnonzero(odd)[0])
        row, differ = rows[counted][first], f"{odd.sum()} of {odd.size} differ"
        lengths_of_row = f"{lengths[first]:.0f} tokens, not the {expected[first]} of {trace.name}"
        problem = f"the prompt of row {row} has {lengths_of_row} ({differ})"
        raise InputError(f"{problem}: another trace or other prompts", path=folder, fix=NAME_TRACE)
