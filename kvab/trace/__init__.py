"""The workload: read, found, sliced, made up, described."""

from kvab.trace.finding import fetch_trace, find_trace, trace_place
from kvab.trace.reading import Trace, burst_order, read_trace
from kvab.trace.slicing import slice_trace, write_lines, write_rows

__all__ = [
    "Trace",
    "burst_order",
    "fetch_trace",
    "find_trace",
    "read_trace",
    "slice_trace",
    "trace_place",
    "write_lines",
    "write_rows",
]
