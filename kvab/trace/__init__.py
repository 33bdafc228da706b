"""The workload: found, read, cut, made up, described."""

from kvab.trace.reading import (
    Trace,
    burst_order,
    cache_folder,
    fetch_trace,
    find_trace,
    read_trace,
    slice_trace,
    write_lines,
    write_rows,
)

__all__ = [
    "Trace",
    "burst_order",
    "cache_folder",
    "fetch_trace",
    "find_trace",
    "read_trace",
    "slice_trace",
    "write_lines",
    "write_rows",
]
