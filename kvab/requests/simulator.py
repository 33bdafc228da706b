"""The simulator's records -> the requests table.

Input: the records of a simulated replay. Output: a table of the columns in `kvab.requests.table`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvab.errors import DependencyError
from kvab.requests.table import itl_ms, typed
from kvab.trace.reading import Trace

FIELDS = [
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
        Columns of `kvab.requests.table.SCHEMA`, sorted by row. A row without a record is lost and
        says so in ``error``.

    Raises
    ------
    DependencyError
        If a record fits no row.
    """
    got = pd.DataFrame.from_records(records, columns=FIELDS)
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
