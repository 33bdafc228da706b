"""Records of any origin -> the requests table, one row a trace row.

Input: the simulator's records or AIPerf's. Output: a table of the columns in ``SCHEMA``; times in
ms, NaN or null where undefined. Everything after the replay reads this table and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa

from kvab.errors import DependencyError, InputError
from kvab.requests.aiperf.rows import by_row
from kvab.trace import Trace

if TYPE_CHECKING:
    from kvab.requests.aiperf import Artifacts

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("arrival_ms", pa.float64(), nullable=False),
        pa.field("input_tokens", pa.int32(), nullable=False),
        pa.field("output_tokens", pa.int32(), nullable=False),
        pa.field("requested_output_tokens", pa.int32(), nullable=False),
        pa.field("ttft_ms", pa.float64()),
        pa.field("itl_ms", pa.float64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("prefill_worker", pa.int16()),
        pa.field("decode_worker", pa.int16()),
        pa.field("send_lag_ms", pa.float64()),
        pa.field("error", pa.string()),
    ]
)
PANDAS_TYPES = {
    field.name: "string" if pa.types.is_string(field.type)
    else "float64" if pa.types.is_floating(field.type)
    else str(field.type).replace("int", "Int" if field.nullable else "int")
    for field in SCHEMA
}  # fmt: skip
SIMULATOR_FIELDS = [
    "arrival_time_ms", "input_length", "requested_output_length", "output_length", "ttft_ms",
    "e2e_latency_ms", "reused_input_tokens", "prefill_worker_idx", "decode_worker_idx",
    "terminal_status",
]  # fmt: skip


def from_simulator(
    records: list[dict], trace: Trace, order: np.ndarray, sent_ms: np.ndarray
) -> pd.DataFrame:
    """Return the requests table of a simulated replay.

    Parameters
    ----------
    records : list of dict
        The simulator's per-request records, in completion order and without row ids.
    trace : Trace
        The trace that was replayed.
    order, sent_ms : ndarray
        Trace rows in sending order and when each was sent; a record belongs to the row that was
        sent at its arrival time with its lengths.

    Returns
    -------
    DataFrame
        Columns of ``SCHEMA``, sorted by row. A row without a record is lost and says so in
        ``error``.

    Raises
    ------
    DependencyError
        If a record fits no row.
    """
    got = pd.DataFrame.from_records(records, columns=SIMULATOR_FIELDS)
    got["sent_ms"] = got["arrival_time_ms"].round(6)
    sent = pd.DataFrame({"sent_ms": sent_ms.round(6), "row": order})
    sent["input_length"] = trace.input_tokens[order]
    sent["requested_output_length"] = trace.output_tokens[order]
    key = ["sent_ms", "input_length", "requested_output_length"]
    joined = sent.merge(got, on=key, how="left", validate="one_to_one", indicator=True)
    if len(got) > (joined["_merge"] == "both").sum():
        raise DependencyError(
            f"the simulator returned {len(got)} records, but only "
            f"{(joined['_merge'] == 'both').sum()} are a row of the trace by time and lengths"
        )
    joined = joined.sort_values("row", ignore_index=True)
    rows = joined["row"].to_numpy()
    served = (joined["terminal_status"] == "completed").to_numpy()
    aggregated = joined["prefill_worker_idx"].isna().all()
    prefill = joined["decode_worker_idx" if aggregated else "prefill_worker_idx"]
    ttft_ms, latency_ms = (joined[c].where(served) for c in ("ttft_ms", "e2e_latency_ms"))
    output_tokens = joined["output_length"].fillna(0).to_numpy()
    status = joined["terminal_status"].fillna("lost: the simulator returned no record")
    return typed(
        {
            "row": rows,
            "arrival_ms": trace.arrival_ms[rows],
            "input_tokens": trace.input_tokens[rows],
            "output_tokens": output_tokens,
            "requested_output_tokens": trace.output_tokens[rows],
            "ttft_ms": ttft_ms,
            "itl_ms": itl_ms(latency_ms, ttft_ms, output_tokens),
            "latency_ms": latency_ms,
            "cached_tokens": joined["reused_input_tokens"],
            "prefill_worker": prefill,
            "decode_worker": joined["decode_worker_idx"],
            "send_lag_ms": joined["sent_ms"].to_numpy() - trace.arrival_ms[rows],
            "error": status.mask(served),
        }
    )


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
        Columns of ``SCHEMA`` and ``client_itl_ms`` (AIPerf's own, on its own token counts), sorted
        by row. A row without a record says ``no record`` in ``error``. ``attrs["inferred"]`` lists
        what the files did not say, ``attrs["token_counts"]`` says whose counts are used.

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


def without_cached(table: pd.DataFrame) -> pd.DataFrame:
    """Return a requests table whose cached tokens are not known.

    A disaggregated frontend reports those of the decode worker, which reuses nothing; what the
    prefill worker reused is counted by the router alone.
    """
    return table.assign(cached_tokens=pd.Series(pd.NA, table.index, dtype="Int32"))


def not_replayed(trace: Trace, rows: int, reason: str) -> pd.DataFrame:
    """Return the requests table of a replay that failed: every row is lost, for that reason."""
    return typed(
        {
            "row": range(rows),
            "arrival_ms": trace.arrival_ms[:rows],
            "input_tokens": trace.input_tokens[:rows],
            "output_tokens": [0] * rows,
            "requested_output_tokens": trace.output_tokens[:rows],
            "error": [f"not replayed: {reason}"] * rows,
        }
    )


def itl_ms(latency_ms: pd.Series, ttft_ms: pd.Series, output_tokens: np.ndarray) -> np.ndarray:
    """Return the mean inter-token latency of each request, in ms.

    Notes
    -----
    (latency - TTFT) / (output tokens - 1), undefined (NaN) for one token: AIPerf 0.13.0,
    ``inter_token_latency_metric``.
    """
    gaps = np.where(output_tokens > 1, output_tokens - 1, np.nan)
    return (latency_ms.to_numpy(float) - ttft_ms.to_numpy(float)) / gaps


def typed(columns: dict) -> pd.DataFrame:
    """Return a requests table with the types of ``SCHEMA``; missing columns become null."""
    frame = pd.DataFrame(
        {name: pd.Series(columns[name]) for name in PANDAS_TYPES if name in columns}
    )
    for name in PANDAS_TYPES:
        if name not in frame:
            frame[name] = pd.Series([None] * len(frame))
    return frame[list(PANDAS_TYPES)].astype(PANDAS_TYPES)


def check(table: pd.DataFrame, source: object) -> pd.DataFrame:
    """Return a requests table that was read back, with its types checked.

    Raises
    ------
    InputError
        If a column is missing or unknown, a row stands twice or the table is empty.
    """
    missing = [name for name in PANDAS_TYPES if name not in table]
    unknown = [name for name in table if name not in PANDAS_TYPES]
    if missing or unknown:
        raise InputError(
            f"{source}: expected the columns of requests schema 1, got none named "
            f"{', '.join(missing) or '-'} and unknown {', '.join(unknown) or '-'}; rerun the replay"
        )
    if table.empty:
        raise InputError(f"{source}: expected one row a request, got an empty table")
    if table["row"].duplicated().any():
        row = table["row"][table["row"].duplicated()].iloc[0]
        raise InputError(f"{source}: row {row} stands twice; every trace row stands once")
    return table[list(PANDAS_TYPES)].astype(PANDAS_TYPES)
