"""Numbers as sentences."""

from kvab.pages.wording.analysis import all_factors, attribution, factors, robustness, variation
from kvab.pages.wording.outcomes import (
    answer,
    headline,
    how_known,
    known_limits,
    lesson,
    outcome,
    requests,
    short_answer,
)

__all__ = [
    "all_factors",
    "answer",
    "attribution",
    "factors",
    "headline",
    "how_known",
    "known_limits",
    "lesson",
    "outcome",
    "requests",
    "robustness",
    "short_answer",
    "variation",
]
