"""Run folders: planned, replayed, resumed, read from anywhere."""

from kvab.runs.folder import (
    Planned,
    Run,
    RunManifest,
    RunTrace,
    capacity_path,
    check_comparable,
    find_runs,
    parquet_bytes,
    read_manifest,
    read_run,
    requests_bytes,
    restore,
    run_path,
    state,
    write_beside,
    write_run,
)

__all__ = [
    "Planned",
    "Run",
    "RunManifest",
    "RunTrace",
    "capacity_path",
    "check_comparable",
    "find_runs",
    "parquet_bytes",
    "read_manifest",
    "read_run",
    "requests_bytes",
    "restore",
    "run_path",
    "state",
    "write_beside",
    "write_run",
]
