"""Do the intervals from made hours hold the mean effect, and the effect in another hour?

A recorded hour is 800 conversations drawn from a population of heavy-tailed effects, whose sizes
vary; the effect in an hour is the mean over its requests. Made hours draw from the recorded hour.
"""

import numpy as np
import pytest

from kvab.stats.contrasts import Estimate
from kvab.stats.effects import hour_to_hour

pytestmark = pytest.mark.slow

CONVERSATIONS, HOURS, REPLICATES = 800, 60, 600
POPULATION = np.random.default_rng(1)
SIZES = POPULATION.geometric(0.6, 200_000)
EFFECTS = POPULATION.standard_t(4, 200_000) - 0.4 * np.log(SIZES)


def effect(drawn):
    return np.average(EFFECTS[drawn], weights=SIZES[drawn])


def test_both_intervals_cover_what_they_are_about():
    truth = np.average(EFFECTS, weights=SIZES)
    mean, another, checked = [], [], []
    for number in range(REPLICATES):
        rng = np.random.default_rng([20261128, number])
        recorded, other = rng.integers(len(SIZES), size=(2, CONVERSATIONS))
        made = np.array([effect(rng.choice(recorded, CONVERSATIONS)) for _ in range(HOURS)])
        found = hour_to_hour(Estimate(effect(recorded)), made, 0.95)
        mean.append(found.mean.low <= truth <= found.mean.high)
        another.append(found.another.low <= effect(other) <= found.another.high)
        checked.append(found.another_coverage)
    assert 0.92 <= np.mean(mean) <= 0.97
    assert 0.92 <= np.mean(another) <= 0.97
    shares = np.array(checked)
    assert 0.92 < shares.mean() < 0.97
    assert np.mean((shares >= 0.92) & (shares <= 0.97)) > 0.95
