"""Percentiles of many resamples at once, and rank statistics of paired differences.

Input: a sorted sample and burst weights. Output: percentiles, equal to those of copied rows; the
Hodges-Lehmann estimate with its interval, and McNemar's p.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike

from kvab.stats.bootstrap import CHUNK_CELLS, INT, Design, Sample, mean, replicate


def percentiles(sample: Sample, weights: np.ndarray, q: ArrayLike) -> np.ndarray:
    """Return weighted percentiles, shape (n, len(q)); NaN where no value was drawn.

    Notes
    -----
    Equal, to the last bit, to `numpy.percentile` (linear) of the values repeated by their
    weights: the repeated sample's k-th value is found in the cumulated weights.
    """
    q = np.asarray(q, float) / 100
    result = np.full((len(weights), len(q)), np.nan)
    last = np.rint(weights @ sample.counts).astype(INT) - 1
    drawn = last >= 0
    if not q.size or not drawn.any():
        return result
    last = last[drawn, None]
    rank = last * q
    below = rank.astype(INT)
    wanted = np.stack([below, np.minimum(below + 1, last)], axis=-1)
    low, high = np.moveaxis(sample.values[_sought(sample.burst, weights[drawn], wanted)], -1, 0)
    part, gap = rank - below, high - low
    result[drawn] = np.where(part < 0.5, low + gap * part, high - gap * (1 - part))
    return result


def _sought(burst: np.ndarray, weights: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the place of each wanted rank among sorted values, shape of ``wanted``."""
    at = np.empty(wanted.shape, np.intp)
    step = max(1, CHUNK_CELLS // len(burst))

    def fill(start: int) -> None:
        upto = weights[start : start + step].take(burst, axis=1).cumsum(axis=1, dtype=INT)
        for row, drawn in enumerate(upto, start):
            at[row] = drawn.searchsorted(wanted[row], side="right")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy works without the lock
        list(pool.map(fill, range(0, len(weights), step)))
    return at


def mcnemar_p(only_baseline: int, only_comparison: int) -> float:
    """Return the exact two-sided p of McNemar's test from the two discordant counts.

    Notes
    -----
    Binomial(n, 1/2) over the n discordant pairs; 1 without any. It takes pairs as independent,
    which neighbours in time are not: the block bootstrap decides, this is shown beside it.
    Q. McNemar, Psychometrika 12 (1947), DOI 10.1007/BF02295996.

    Examples
    --------
    >>> round(mcnemar_p(1, 5), 5)
    0.21875
    """
    from scipy.stats import binomtest  # imports for seconds

    discordant = only_baseline + only_comparison
    return float(binomtest(only_baseline, discordant).pvalue) if discordant else 1.0


def hodges_lehmann(values: np.ndarray, share: float = 0.5) -> float:
    """Return the median of the pairwise means (the Hodges-Lehmann estimate) of paired differences.

    Parameters
    ----------
    values : ndarray
        Differences, without NaN; empty gives NaN.
    share : float
        Another quantile of the pairwise means than the median, from 0 to 1.

    Notes
    -----
    The median of all n (n + 1) / 2 means of two values, each value with itself too, as R's
    ``wilcox.test`` has it; the two middle ones are averaged. Bisection over x, with the number of
    means not above x counted in the sorted values, leaves as many candidates as there are values;
    only those are formed, so the result is exact in O(n log n).
    J. L. Hodges and E. L. Lehmann, Ann. Math. Statist. 34 (1963), DOI 10.1214/aoms/1177704172;
    J. F. Monahan, ACM Trans. Math. Softw. 10 (1984), DOI 10.1145/1271.319414.

    Examples
    --------
    >>> round(hodges_lehmann(np.array([1.0, 2.0, 9.0])), 9)
    3.5
    """
    values = np.sort(np.asarray(values, float))
    means = values.size * (values.size + 1) // 2
    if not means:
        return math.nan
    at = share * (means - 1) + 1
    return _pairwise(values, math.floor(at), math.ceil(at)) / 2


def _pairwise(values: np.ndarray, first: int, last: int) -> float:
    """Return the mean of the first-th and the last-th of all pairwise sums of sorted values.

    Ranks count from 1; the last is the first or the next.
    """
    own = np.arange(values.size)
    upto = [own, np.full(values.size, values.size)]  # partners of each value, itself and above
    while (count := upto[1] - upto[0]).sum() > values.size:
        some = count > 0
        least = (values[some] + values[upto[0][some]]).min()
        most = (values[some] + values[upto[1][some] - 1]).max()
        middle = least + (most - least) / 2
        partners = np.maximum(np.searchsorted(values, middle - values, side="right"), own)
        below = int((partners - own).sum())
        if first <= below < last:  # the middle lies between the two
            some, more = partners > own, partners < values.size
            nearest = (values[some] + values[partners[some] - 1]).max()
            return float(nearest + (values[more] + values[partners[more]]).min()) / 2
        side = int(below >= last)
        if least == most or (partners == upto[side]).all():  # nothing but ties, to the last bit
            return float(middle)
        upto[side] = partners
    one = np.repeat(own, count)
    other = np.arange(count.sum()) + np.repeat(upto[1] - count.cumsum(), count)
    nth = np.array([first, last]) - 1 - int((upto[0] - own).sum())
    return float(np.partition(values[one] + values[other], nth)[nth].mean())


def hodges_lehmann_interval(sample: Sample, center: float, design: Design) -> tuple[float, float]:
    r"""Return the interval of the Hodges-Lehmann estimate of a sample, ``center``.

    Notes
    -----
    The signed-rank interval with a block-bootstrap standard error: the quantiles
    :math:`1/2 \pm t s` of the pairwise means, where s belongs to the share T of pairwise means
    not above the estimate (Woodruff's inversion, JASA 47 (1952),
    DOI 10.1080/01621459.1952.10483443). T is a U-statistic; its resamples are those of its
    projection :math:`2 F(2 \hat\theta - d_i)` averaged over the rows drawn, which leaves out a
    term of order 1/n and no row pairs need to be formed.
    """
    values = sample.values
    if not values.size:
        return math.nan, math.nan
    share = np.searchsorted(values, 2 * center - values, side="right") / values.size
    projected = Sample.of(2 * share, sample.burst, design.bursts)
    error = float(replicate(design, lambda weights: mean(projected, weights)).error)
    half = design.critical() * error
    if math.isnan(half):
        return math.nan, math.nan
    low, high = max(0.5 - half, 0.0), min(0.5 + half, 1.0)
    return hodges_lehmann(values, low), hodges_lehmann(values, high)
