"""Numbers as sentences."""

from kvab.wording.analysis import attribution, robustness, variation
from kvab.wording.outcomes import (
    answer,
    banner,
    headline,
    how_known,
    known_limits,
    lesson,
    outcome,
    requests,
    short_answer,
)

__all__ = [
    "answer",
    "attribution",
    "banner",
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
