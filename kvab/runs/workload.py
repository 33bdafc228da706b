"""The trace as the pages need it: a small table and its description, kept beside the runs.

Input: a trace. Output: two files from which the book is built where the trace itself is missing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.cache import write_beside
from kvab.declarations import Json
from kvab.errors import InputError
from kvab.runs import folder as runs
from kvab.trace import Trace
from kvab.trace.describe import describe, reusable_tokens


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
    write_beside(path, runs.parquet_bytes([table]))
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
