"""What is tabled."""

from kvab.pages.tables.outcomes import (
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
