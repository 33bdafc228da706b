"""Do intervals of the load that keeps a good share, and of their ratio, cover the truth?

Two configurations at seven loads over 400 bursts whose difficulty is autocorrelated and shared; the
truth is that of a trace 250 times as long. Replicate r is drawn from the seeds (20261123, r).
"""

import numpy as np
import pytest
from scipy.signal import lfilter

from kvab.stats.crossings import at_crossing, crossing, interval, plan, ratio, shares

pytestmark = pytest.mark.slow

BURSTS, REPLICATES, PHI, TARGET = 400, 200, 0.6, 0.8
LOADS = np.array([0.25, 0.5, 0.75, 1, 1.25, 1.5, 2])


def series(rng, bursts):
    """Return requests (bursts,) and good requests (2, loads, bursts)."""
    noise = rng.standard_normal((bursts + 200, 3)) * np.sqrt(1 - PHI**2)
    shared, *own = lfilter([1], [1, -PHI], noise, axis=0)[200:].T
    burst = np.repeat(np.arange(bursts), requests := rng.poisson(9, bursts) + 1)
    row = rng.standard_normal(len(burst))  # the same request at every load
    good = np.empty((2, len(LOADS), bursts))
    for arm, (level, slope) in enumerate([(1.8, 1.6), (2.6, 1.0)]):
        ease = level + 0.5 * shared + 0.4 * own[arm]
        for at, load in enumerate(LOADS):
            good[arm, at] = np.bincount(burst, row < (ease - slope * load)[burst], bursts)
    return requests, good


def found(share):
    return crossing(LOADS, share, TARGET)


def test_intervals_of_loads_and_their_ratio_cover_the_truth():
    requests, good = series(np.random.default_rng(1), 250 * BURSTS)
    truth = found(good.sum(-1) / requests.sum())[:, 0]
    truth = np.array([*truth, truth[1] / truth[0]])
    covered = []
    for replicate in range(REPLICATES):
        requests, good = series(np.random.default_rng([20261123, replicate]), BURSTS)
        known = found(good.sum(-1) / requests.sum())
        near = [at_crossing(LOADS, of, each) for of, each in zip(good, known, strict=True)]
        settings = {"level": 0.95, "resamples": 400, "seed": replicate}
        design = plan(requests, [*near, near[1] - near[0]], **settings)
        draws = shares(requests, good, design).map(found).draws
        draws = np.stack([draws[:, 0], draws[:, 1], ratio(draws[:, 0], draws[:, 1])], axis=1)
        low, high = interval(draws, design)
        covered.append((low <= truth) & (truth <= high))
    rates = np.mean(covered, axis=0)
    print(f"\nbaseline, comparison, ratio: {rates}")
    noise = 2 * np.sqrt(0.95 * 0.05 / REPLICATES)
    assert (rates >= 0.95 - noise).all()
    assert (rates <= 0.99 + noise / 2).all()
