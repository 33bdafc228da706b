"""Intervals of two arms without pairs hold the true difference as often as they say."""

import numpy as np
import pandas as pd
import pytest

from kvab.stats.compare import compare_unpaired
from kvab.study import Slo

RUNS, TRUE_MS = 200, 40.0
SLO = Slo(ttft_ms=500, itl_ms=25)


def arm(rng, size, mean_ms, memory):
    """Requests of a closed loop: each latency remembers a part of the one before it."""
    noise = rng.normal(0, 60, size)
    for at in range(1, size):
        noise[at] += memory * noise[at - 1]
    return pd.DataFrame(
        {
            "row": range(size),
            "arrival_ms": np.arange(size) * 100.0,
            "input_tokens": 100,
            "output_tokens": 10,
            "ttft_ms": mean_ms + noise,
            "itl_ms": 20.0,
            "latency_ms": mean_ms + noise + 180,
            "error": pd.array([None] * size, dtype="string"),
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(300, 300), (120, 600)])
@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_the_interval_of_a_difference_of_means_covers_it(sizes, memory):
    rng = np.random.default_rng(20261124)
    inside = 0
    for _ in range(RUNS):
        arms = (
            arm(rng, size, mean_ms, memory) for size, mean_ms in zip(sizes, (500, 540), strict=True)
        )
        found = compare_unpaired(*([each] for each in arms), SLO, resamples=200)
        inside += found.ttft.mean.difference.low <= TRUE_MS <= found.ttft.mean.difference.high
    assert 0.92 <= inside / RUNS


def test_arms_are_resampled_by_themselves():
    """Of two equal arms a paired interval is empty; that of independent arms is not."""
    table = arm(np.random.default_rng(1), 300, 500, 0.3)
    difference = compare_unpaired([table], [table], SLO, resamples=200).ttft.mean.difference
    assert difference.value == 0
    standard_error_ms = table["ttft_ms"].std() * np.sqrt(2 / 300)
    assert difference.high > 1.9 * standard_error_ms
