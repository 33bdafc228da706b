"""Runs and what they replayed -> the small tables that pages show; statistics are elsewhere.

Input: requests tables by configuration, a trace. Output: tables. That of a trace is kept beside the
runs, so that the book can be built where the trace itself is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.cache import write_beside
from kvab.declarations import Json
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES
from kvab.runs.folder import Run, parquet_bytes
from kvab.trace.reading import Trace, describe, reusable_tokens

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


@dataclass(frozen=True)
class Workload:
    """A trace without its hash ids.

    Attributes
    ----------
    table : DataFrame
        One row a trace row: ``row`` int32, ``arrival_ms`` float64 (from 0), ``input_tokens``,
        ``output_tokens`` and ``reusable_tokens`` int32 (prompt tokens that an earlier row had
        already brought: what an unlimited cache would reuse).
    description : dict
        What ``kvab trace describe --json`` prints.
    """

    table: pd.DataFrame
    description: Json


def workload_path(folder: Path, sha256: str) -> Path:
    """Return where a trace's workload lies in a study's folder of runs."""
    return folder / "workloads" / f"{sha256[:12]}.parquet"


def save_workload(trace: Trace, folder: Path) -> Path:
    """Write the workload of a trace into a study's folder of runs, once, and return its path."""
    path = workload_path(folder, trace.sha256)
    if path.exists() and path.with_suffix(".json").exists():
        return path
    table = pd.DataFrame(
        {
            "row": np.arange(len(trace), dtype="int32"),
            "arrival_ms": trace.arrival_ms,
            "input_tokens": trace.input_tokens,
            "output_tokens": trace.output_tokens,
            "reusable_tokens": reusable_tokens(trace).astype("int32"),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(describe(trace), indent=2) + "\n"
    write_beside(path.with_suffix(".json"), text.encode())
    write_beside(path, parquet_bytes([table]))
    return path


def load_workload(folder: Path, sha256: str) -> Workload:
    """Return the workload of the trace with this sha256.

    Raises
    ------
    InputError
        If the study's folder of runs does not hold it.
    """
    path = workload_path(folder, sha256)
    try:
        description = json.loads(path.with_suffix(".json").read_bytes())
        return Workload(pd.read_parquet(path), description)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the workload of the runs, got {error}; "
            "run `kvab report` where the trace is"
        ) from None
