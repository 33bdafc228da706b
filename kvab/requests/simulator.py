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
    "e2e_latency_ms", "first_token_ms", "first_admit_ms", "source_held_ms", "decode_admit_ms",
    "reused_input_tokens", "prefill_worker_idx", "decode_worker_idx", "terminal_status",
]  # fmt: skip


def from_simulator(
    records: list[dict],
    trace: Trace,
    order: np.ndarray,
    sent_ms: np.ndarray,
    reached_ms: np.ndarray,
) -> pd.DataFrame:
    """Return the requests table of a simulated replay.

    Parameters
    ----------
    records : list of dict
        The simulator's per-request records, in completion order and without row ids.
    trace : Trace
        The trace that was replayed.
    order, sent_ms, reached_ms : ndarray
        Trace rows in sending order, when each was sent and when it reached the router; a record
        belongs to the row that reached it at the record's arrival time with its lengths. The
        simulator counts from the first of these times.

    Returns
    -------
    DataFrame
        Columns of `kvab.requests.table.SCHEMA`, sorted by row. A row without a record is lost and
        says so in ``error``. Times count from the sending. A request waits (``queue_ms``, the
        frontend's share included) until a worker admits it first; ``prefill_ms`` ends with the
        prompt's last step, of an aggregated worker with the first token; ``transfer_ms`` is until
        the decode worker admits the request, the wait for its room included; ``first_decode_ms``
        is the decode worker's step to the first token.

    Raises
    ------
    DependencyError
        If a record fits no row.
    """
    joined = _joined(records, trace, order, sent_ms, reached_ms)
    rows = joined["row"].to_numpy()
    served = joined["terminal_status"] == "completed"
    aggregated = joined["prefill_worker_idx"].isna().all()
    prefill = joined["decode_worker_idx" if aggregated else "prefill_worker_idx"]
    frontend_ms = joined["frontend_ms"]
    ttft_ms, latency_ms = (
        (joined[c] + frontend_ms).where(served) for c in ("ttft_ms", "e2e_latency_ms")
    )
    output_tokens = joined["output_length"].fillna(0).to_numpy()
    status = joined["terminal_status"].fillna("lost: the simulator returned no record")
    status = status.replace("rejected", "rejected: longer than a worker takes")
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
            **_parts(joined[served], aggregated),
        }
    )


def _joined(
    records: list[dict],
    trace: Trace,
    order: np.ndarray,
    sent_ms: np.ndarray,
    reached_ms: np.ndarray,
) -> pd.DataFrame:
    """Return the records beside the rows that they are of, sorted by row."""
    got = pd.DataFrame.from_records(records, columns=FIELDS)
    start_ms = reached_ms.min()
    got["reached_ms"] = got["arrival_time_ms"].round(4)
    sent = pd.DataFrame({"reached_ms": (reached_ms - start_ms).round(4), "row": order})
    sent["sent_ms"], sent["frontend_ms"] = sent_ms, reached_ms - sent_ms
    sent["input_length"] = trace.input_tokens[order]
    sent["requested_output_length"] = trace.output_tokens[order]
    key = ["reached_ms", "input_length", "requested_output_length"]
    joined = sent.merge(got, on=key, how="left", validate="one_to_one", indicator=True)
    if len(got) > (joined["_merge"] == "both").sum():
        raise DependencyError(
            f"the simulator returned {len(got)} records, but only "
            f"{(joined['_merge'] == 'both').sum()} are a row of the trace by time and lengths"
        )
    return joined.sort_values("row", ignore_index=True)


def _parts(joined: pd.DataFrame, aggregated: bool) -> dict[str, pd.Series]:
    """Return the parts of the TTFT, which add up to it; NaN where a request was not served."""
    queue_ms = joined["first_admit_ms"] - joined["arrival_time_ms"] + joined["frontend_ms"]
    first = joined["first_token_ms"]
    held = first if aggregated else joined["source_held_ms"]
    decoding = first if aggregated else joined["decode_admit_ms"]
    return {
        "queue_ms": queue_ms,
        "prefill_ms": held - joined["first_admit_ms"],
        "transfer_ms": decoding - held,
        "first_decode_ms": first - decoding,
    }
