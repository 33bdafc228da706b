"""What AIPerf writes: summaries, records and archives of them."""

from kvab.requests.aiperf.artifacts import (
    PACKED,
    READY,
    RECORDS,
    SERVER_METRICS,
    SUMMARY,
    Artifacts,
    read_artifacts,
    router_counters,
)

__all__ = [
    "PACKED",
    "READY",
    "RECORDS",
    "SERVER_METRICS",
    "SUMMARY",
    "Artifacts",
    "read_artifacts",
    "router_counters",
]
