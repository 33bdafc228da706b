"""How numbers are written, on every page alike.

Input: numbers. Output: text.
"""

from __future__ import annotations

import numpy as np


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with thousands separated and a minus sign; a dash where undefined.

    Examples
    --------
    >>> number(-867.4), number(17.72), number(None)
    ('−867', '17.7', '–')
    """
    if value is None or np.isnan(value):
        return "–"
    if decimals is None:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float | None, decimals: int | None = None) -> str:
    """Return a difference with its sign."""
    return ("+" if value is not None and value > 0 else "") + number(value, decimals)


def percent(share: float | None, decimals: int = 1) -> str:
    """Return a share of 1 in per cent."""
    return f"{number(None if share is None else 100 * share, decimals)} %"


def interval(low: float | None, high: float | None, factor: float = 1, unit: str = "") -> str:
    """Return an interval in words, or why there is none."""
    if low is None or high is None:
        return "no interval: too few blocks"
    bounds = f"{signed(factor * low, 1 if factor != 1 else None)} to "
    return bounds + signed(factor * high, 1 if factor != 1 else None) + unit
