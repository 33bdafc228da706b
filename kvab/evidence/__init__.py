"""What pages know: runs and statistics of one cluster, loaded once and kept."""

from kvab.evidence.outcomes import (
    Evidence,
    load_evidence,
    load_published,
)

__all__ = [
    "Evidence",
    "load_evidence",
    "load_published",
]
