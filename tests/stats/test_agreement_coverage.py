"""Does the gap between two places cover its truth 95 times in 100, and is "differ" rarely wrong?"""

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from kvab.stats.robustness import DIFFER, agreement
from kvab.study import Slo

pytestmark = pytest.mark.slow

BURSTS, REPLICATES, RESAMPLES, NOISE = 200, 200, 300, 0.3
SLO = Slo(ttft_ms=1500, itl_ms=25)


def table(burst, ttft_ms):
    rows = np.arange(len(burst))
    return pd.DataFrame({
        "row": rows, "arrival_ms": 3000.0 * burst, "input_tokens": 1000, "output_tokens": 101,
        "ttft_ms": ttft_ms, "itl_ms": 0.015 * ttft_ms, "latency_ms": 2.5 * ttft_ms, "error": None,
    })  # fmt: skip


def replay(kind, rng):
    """Return burst index, baseline and comparison in ms: autocorrelated, or in busy spells."""
    busy = np.cumsum(rng.random(BURSTS) < 0.1) % 2 * (kind == "bursty")
    burst = np.repeat(np.arange(BURSTS), rng.poisson(np.where(busy == 1, 9, 3)) + 1)
    shared = lfilter([1], [1, -0.6], rng.standard_normal(BURSTS + 100))[100:]
    load = 0.3 * shared[burst] + 0.8 * busy[burst]
    own = 0.5 * rng.standard_normal((2, len(burst)))
    return burst, 1000 * np.exp(load + own[0]), 600 * np.exp(0.5 * load + own[1])


@pytest.mark.parametrize("kind", ["ar1", "bursty"])
def test_the_gap_covers_and_rarely_differs_in_vain(kind):
    """The second place replays the same rows with its own noise of mean one: the true gap is 0."""
    covered, differs = [], []
    for replicate in range(REPLICATES):
        rng = np.random.default_rng([20261123, 7, replicate])
        burst, *both = replay(kind, rng)
        noise = np.exp(NOISE * rng.standard_normal((2, len(burst))) - NOISE**2 / 2)
        published, yours = (
            tuple([table(burst, ttft_ms)] for ttft_ms in arms)
            for arms in (both, [arm * own for arm, own in zip(both, noise, strict=True)])
        )
        found = agreement(published, yours, SLO, {}, resamples=RESAMPLES, seed=replicate)
        line = found.loc["ttft_ms"]
        covered.append(line["gap_low"] <= 0 <= line["gap_high"])
        differs.append(line["verdict"] == DIFFER)
    print(f"{kind}: covered {np.mean(covered):.3f}, differ {np.mean(differs):.3f}")
    assert 0.92 <= np.mean(covered) <= 0.985
    assert np.mean(differs) <= 0.08
