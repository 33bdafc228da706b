"""The workload: read, found, sliced, made up, described."""

from kvab.trace.finding import fetch_trace, find_trace, read_declared, trace_path
from kvab.trace.reading import Trace, burst_order, read_trace
from kvab.trace.slicing import slice_trace, write_lines, write_rows

__all__ = [
    "Trace",
    "burst_order",
    "fetch_trace",
    "find_trace",
    "read_declared",
    "read_trace",
    "slice_trace",
    "trace_path",
    "write_lines",
    "write_rows",
]
