"""How a load, its interval and a ratio of loads are written.

Input: a row of a sweep's curves. Output: plain text.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvab.console import number


def load_text(low: float, high: float) -> str:
    """Return what is known of a load: a number, or beyond which replayed load it lies.

    Examples
    --------
    >>> load_text(1.3, 1.3), load_text(2.0, float("inf")), load_text(0.0, 0.125)
    ('1.30x', 'above 2x', 'below 0.125x')
    """
    if np.isinf(high):
        return f"above {low:g}x"
    return f"{number(high, 2)}x" if low > 0 else f"below {high:g}x"


def ends_text(row: pd.Series, loads: list[float] | None = None) -> str:
    """Return an interval in words; an end beyond the replayed loads says so."""
    low, high = row["ci_low"], row["ci_high"]
    if np.isnan(low):
        return "no interval: too few blocks"
    if not found(row):
        return "–"
    first = number(low, 2) if low > 0 else f"below {loads[0]:g}" if loads else "open"
    last = f"above {loads[-1]:g}" if np.isinf(high) and loads else "open"
    return f"{first} to {last if np.isinf(high) else number(high, 2)}"


def ratio_text(row: pd.Series) -> str:
    """Return a ratio of loads, a bound of it, or that it is not known."""
    if found(row):
        return f"{number(row['low'], 2)} times"
    if row["low"] > 0:
        return f"more than {number(row['low'], 2)} times"
    return "not known" if np.isinf(row["high"]) else f"less than {number(row['high'], 2)} times"


def found(row: pd.Series) -> bool:
    """Return whether a load or a ratio is known, and not only bounded."""
    return bool(row["low"] == row["high"])
