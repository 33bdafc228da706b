"""What pages know: runs and statistics of one cluster, loaded once and kept."""

from kvab.pages.evidence.loading import load_evidence, load_published
from kvab.pages.evidence.outcomes import Evidence

__all__ = ["Evidence", "load_evidence", "load_published"]
