"""Percentiles of many resamples at once, from the number of times that each burst was drawn.

Input: a sorted sample and burst weights. Output: percentiles, equal to those of copied rows.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from kvab.stats.bootstrap import CHUNK_CELLS, INT, Sample

LARGE = 100_000  # values from which looking near each percentile beats cumulating all weights
MARGIN, LEAST = 1.5, 256  # of the window around a percentile, as multiple of its move; in values


def percentiles(sample: Sample, weights: np.ndarray, q: ArrayLike) -> np.ndarray:
    """Return weighted percentiles, shape (n, len(q)); NaN where no value was drawn.

    Notes
    -----
    Equal, to the last bit, to `numpy.percentile` (linear) of the values repeated by their
    weights: the repeated sample's k-th value is found in the cumulated weights. Of a large sample
    they are cumulated only near each percentile; what lies further off is sought in all of it.
    """
    q = np.asarray(q, float) / 100
    result = np.full((len(weights), len(q)), np.nan)
    last = np.rint(weights @ sample.counts).astype(INT) - 1
    drawn = last >= 0
    if not q.size or not drawn.any():
        return result
    last, weights = last[drawn, None], weights[drawn]
    rank = last * q
    below = rank.astype(INT)
    wanted = np.stack([below, np.minimum(below + 1, last)], axis=-1)
    at = np.full(wanted.shape, -1)
    for column, (first, end) in enumerate(_windows(sample, weights, q)):
        at[:, column] = _sought(sample, weights, wanted[:, column], first, end)
    far = (at < 0).any(axis=(1, 2))
    if far.any():
        flat = wanted[far].reshape(far.sum(), -1)
        at[far] = _sought(sample, weights[far], flat).reshape(wanted[far].shape)
    low, high = np.moveaxis(sample.values[at], -1, 0)
    part, gap = rank - below, high - low
    result[drawn] = np.where(part < 0.5, low + gap * part, high - gap * (1 - part))
    return result


def _windows(sample: Sample, weights: np.ndarray, q: np.ndarray) -> list[tuple[int, int]]:
    """Return the places in which each percentile lies, most likely; none where all is as fast."""
    size, windows = sample.values.size, []
    if size < LARGE:
        return []
    for share in q:
        centre = int(share * (size - 1))
        surplus = weights @ (_counts(sample, centre) - share * sample.counts)
        slack = LEAST + (MARGIN - 1) * np.abs(surplus).max()
        ends = centre - surplus.max() - slack, centre - surplus.min() + slack
        windows.append((max(int(ends[0]), 0), min(int(ends[1]), size)))
    return windows if 2 * sum(end - first for first, end in windows) < size else []


def _counts(sample: Sample, end: int) -> np.ndarray:
    """Return how many of the smallest values each burst has."""
    return np.bincount(sample.burst[:end], minlength=len(sample.counts))


def _sought(
    sample: Sample, weights: np.ndarray, wanted: np.ndarray, first: int = 0, end: int | None = None
) -> np.ndarray:
    """Return the place of each wanted rank, shape of ``wanted``; -1 if outside first to end."""
    burst = sample.burst[first:end]
    before = np.rint(weights @ _counts(sample, first).astype(float)).astype(INT)
    inside, at = wanted - before[:, None], np.empty(wanted.shape, np.intp)
    step = max(1, CHUNK_CELLS // len(burst))

    def fill(start: int) -> None:
        upto = weights[start : start + step].take(burst, axis=1).cumsum(axis=1, dtype=INT)
        for row, drawn in enumerate(upto, start):
            at[row] = drawn.searchsorted(inside[row], side="right")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy works without the lock
        list(pool.map(fill, range(0, len(weights), step)))
    return np.where((inside >= 0) & (at < len(burst)), at + first, -1)
