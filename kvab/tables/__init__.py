"""What is tabled."""

from kvab.tables.outcomes import (
    attribution,
    cells,
    goodput,
    headline,
    outcome,
    robustness,
    variation,
)

__all__ = [
    "attribution",
    "cells",
    "goodput",
    "headline",
    "outcome",
    "robustness",
    "variation",
]
