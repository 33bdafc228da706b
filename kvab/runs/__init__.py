"""Run folders: planned, replayed, resumed, read from anywhere."""

from kvab.cache import write_beside
from kvab.clusters.base import capacity_path, run_path
from kvab.runs.folder import (
    QUICK,
    SMALL,
    Planned,
    Run,
    RunManifest,
    RunTrace,
    check_bounds,
    check_comparable,
    find_runs,
    find_state,
    parquet_bytes,
    read_manifest,
    read_run,
    requests_bytes,
    state,
    verified_manifest,
    write_run,
)

__all__ = [
    "QUICK",
    "SMALL",
    "Planned",
    "Run",
    "RunManifest",
    "RunTrace",
    "capacity_path",
    "check_bounds",
    "check_comparable",
    "find_runs",
    "find_state",
    "parquet_bytes",
    "read_manifest",
    "read_run",
    "requests_bytes",
    "run_path",
    "state",
    "verified_manifest",
    "write_beside",
    "write_run",
]
