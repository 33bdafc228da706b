"""Records of any origin -> the requests table (schema 2), one row a trace row.

Input: the simulator's records or AIPerf's. Output: a table of the columns in ``SCHEMA``; times in
ms, NaN or null where undefined. Everything after the replay reads this table and nothing else.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa

from kvab.errors import InputError
from kvab.trace.reading import Trace

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
        pa.field("queue_ms", pa.float64()),
        pa.field("prefill_ms", pa.float64()),
        pa.field("transfer_ms", pa.float64()),
        pa.field("first_decode_ms", pa.float64()),
    ]
)
# Parts of the TTFT, which they add up to. New in schema 2, and known of a simulation alone.
PARTS = ("queue_ms", "prefill_ms", "transfer_ms", "first_decode_ms")
PANDAS_TYPES = {
    field.name: "string" if pa.types.is_string(field.type)
    else "float64" if pa.types.is_floating(field.type)
    else str(field.type).replace("int", "Int" if field.nullable else "int")
    for field in SCHEMA
}  # fmt: skip


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
    frame = pd.DataFrame({name: pd.Series(column) for name, column in columns.items()})
    return frame.reindex(columns=[*PANDAS_TYPES]).astype(PANDAS_TYPES)


def check_table(table: pd.DataFrame, source: object) -> pd.DataFrame:
    """Return a requests table that was read back, with its types checked.

    Raises
    ------
    InputError
        If a column is missing or unknown, a row stands twice or the table is empty.
    """
    if not set(PARTS) & {*table}:  # schema 1
        table = table.assign(**dict.fromkeys(PARTS))
    missing = [name for name in PANDAS_TYPES if name not in table]
    unknown = [name for name in table if name not in PANDAS_TYPES]
    if missing or unknown:
        raise InputError(
            f"{source}: expected the columns of requests schema 2, got none named "
            f"{', '.join(missing) or '-'} and unknown {', '.join(unknown) or '-'}; rerun the replay"
        )
    if table.empty:
        raise InputError(f"{source}: expected one row a request, got an empty table")
    if table["row"].duplicated().any():
        row = table["row"][table["row"].duplicated()].iloc[0]
        raise InputError(f"{source}: row {row} stands twice; every trace row stands once")
    return table[[*PANDAS_TYPES]].astype(PANDAS_TYPES)
