"""Numbers as sentences."""

from kvab.wording.outcomes import (
    answer,
    attribution,
    banner,
    headline,
    how_known,
    known_limits,
    lesson,
    outcome,
    requests,
    robustness,
    short_answer,
    variation,
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
