"""Runs -> the small tables that figures and pages show; all statistics come from elsewhere.

Input: requests tables by configuration. Output: tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES
from kvab.runs.folder import Run

Tables = Mapping[str, Sequence[pd.DataFrame]]


def reuse(run: Run) -> float | None:
    """Return the share of prompt tokens from cache: of the requests, else as the router counted."""
    share, table = metrics.cached_share(run.requests), run.requests
    counted = run.manifest.host.get("router") or {}
    if share is None and "cached_prefix_tokens" in counted:
        return counted["cached_prefix_tokens"] / int(table["input_tokens"].sum())
    return share


def minutes(requests: pd.DataFrame) -> pd.DataFrame:
    """Return good share and median TTFT by configuration and arrival minute, repeats pooled.

    Returns
    -------
    DataFrame
        Indexed by ``configuration`` and ``minute``: ``good`` share of 1, ``ttft_ms`` median.
    """
    minute = (requests["arrival_ms"] // 60_000).astype(int).rename("minute")
    grouped = requests.groupby(["configuration", minute])
    return grouped.agg(good=("good", "mean"), ttft_ms=("ttft_ms", "median"))


def percentiles(tables: Tables) -> pd.DataFrame:
    """Return the percentiles of each latency by configuration, repeats pooled.

    Returns
    -------
    DataFrame
        Indexed by ``configuration`` and ``percentile`` (0 to 100 in steps of 1/8): ``ttft_ms``,
        ``itl_ms``, ``latency_ms``.
    """
    places = pd.Index(np.linspace(0, 100, 801), name="percentile")
    parts = {}
    for name, repeats in tables.items():
        pooled = pd.concat(repeats)
        columns = {key: metrics.percentile(pooled[key], places.to_numpy()) for key in LATENCIES}
        parts[name] = pd.DataFrame(columns, places)
    return pd.concat(parts, names=["configuration"])


def worker_balance(requests: pd.DataFrame) -> pd.DataFrame:
    """Return the work of each worker relative to the mean of those that do this work.

    Returns
    -------
    DataFrame
        Columns ``work`` (prompt tokens computed, answer tokens made), ``configuration``,
        ``repeat``, ``worker`` and ``relative`` (1 is an even share).
    """
    computed = requests["input_tokens"] - requests["cached_tokens"].fillna(0)
    parts = []
    for work, worker, amount in (
        ("prompt tokens computed", "prefill_worker", computed.astype(float)),
        ("answer tokens made", "decode_worker", requests["output_tokens"].astype(float)),
    ):
        totals = amount.groupby(
            [requests["configuration"], requests["repeat"], requests[worker].rename("worker")]
        ).sum()
        relative = totals / totals.groupby(level=[0, 1]).transform("mean")
        part = relative.rename("relative").reset_index()
        parts.append(part.assign(work=work))
    return pd.concat(parts, ignore_index=True)
