"""What is tabled."""

from kvab.tables.outcomes import (
    Table,
    attribution,
    cells,
    goodput,
    headline,
    outcome,
    robustness,
    variation,
)

__all__ = [
    "Table",
    "attribution",
    "cells",
    "goodput",
    "headline",
    "outcome",
    "robustness",
    "variation",
]
