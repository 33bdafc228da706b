"""Do 95 % intervals cover the truth 95 times in 100, and does A/A stay quiet?

Paired series of 400 bursts with a known truth. Both arms of a pair share the burst and the row's
own difficulty; what is left differs. Nothing is tuned to the seeds: replicate r of a series is
drawn from the seed sequence (20261123, index of the series, r).
"""

import re

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from kvab.stats.bootstrap import block_bursts, hodges_lehmann
from kvab.stats.compare import paired_statistics
from kvab.stats.contrasts import difference, plan, resampled, sample, verdicts
from kvab.stats.effects import PERCENT, quantile_differences
from kvab.study import root

pytestmark = pytest.mark.slow

BURSTS, REPLICATES, RESAMPLES = 400, 300, 400
SERIES = {"independent": 0.0, "ar1": 0.6, "bursty": 0.3, "heavy-tailed": 0.3}
NAMES = ("mean", "p50", "p90", "p99")
STATISTICS = (*NAMES, "good share", "faster share", "hodges-lehmann", "paired median")
SLO_MS = 1500.0


def autoregressive(rng, bursts, phi):
    """Three standard normal AR(1) series: what the arms share, and each arm's own."""
    noise = rng.standard_normal((bursts + 200, 3)) * np.sqrt(1 - phi**2)
    return lfilter([1], [1, -phi], noise, axis=0)[200:]


def series(kind, rng, bursts=BURSTS, equal=False):
    """Return burst index, baseline and comparison values in ms of one synthetic replay.

    bursty: quiet and busy spells of 10 bursts on average; a busy one more than doubles the bursts
    and slows the baseline more. heavy-tailed: Student t with 3 degrees of freedom. equal: both
    arms follow the same law, though not the same values.
    """
    busy = np.cumsum(rng.random(bursts) < 0.1) % 2 if kind == "bursty" else np.zeros(bursts, int)
    size = rng.poisson(np.where(busy == 1, 9, 3)) + 1
    burst = np.repeat(np.arange(bursts), size)
    shared, *own = autoregressive(rng, bursts, SERIES[kind])[burst].T
    row = 0.6 * rng.standard_normal(len(burst))
    left = 0.5 * rng.standard_normal((2, len(burst)))
    comparison = 0.4 * shared + 0.3 * own[1] + row + left[1] - 0.1 + 0.3 * busy[burst]
    baseline = 0.6 * shared + row + left[0] + 0.8 * busy[burst]
    if equal:
        baseline = 0.4 * shared + 0.3 * own[0] + row + left[0] - 0.1 + 0.3 * busy[burst]
    if kind == "heavy-tailed":
        tail = np.sqrt(3 / rng.chisquare(3, len(burst)))
        return burst, 1000 + 400 * baseline * tail, 1000 + 400 * comparison * tail
    return burst, 1000 * np.exp(0.6 * baseline), 1000 * np.exp(0.6 * comparison)


def truth(kind):
    """Return the statistics of a replay a thousand times as long."""
    _, baseline, comparison = series(kind, np.random.default_rng(1), 1000 * BURSTS)
    paired = comparison - baseline
    q = [50, 90, 99]
    return [
        paired.mean(),
        *(np.percentile(comparison, q) - np.percentile(baseline, q)),
        (comparison <= SLO_MS).mean() - (baseline <= SLO_MS).mean(),
        (paired < 0).mean(),
        hodges_lehmann(paired),
        np.median(paired),
    ]


def intervals(kind, replicate):
    """Return the intervals of STATISTICS, shape (statistics, 2), and the block length."""
    rng = np.random.default_rng([20261123, list(SERIES).index(kind), replicate])
    burst, baseline, comparison = series(kind, rng)
    pairs = pd.DataFrame({"burst": burst})
    good = [(arm <= SLO_MS).astype(float) for arm in (baseline, comparison)]
    paired = comparison - baseline
    design = plan(pairs, [paired, good[1] - good[0]], resamples=RESAMPLES, seed=replicate)
    latency = difference(resampled(pairs, [baseline, comparison], design, NAMES)).interval
    share = difference(resampled(pairs, good, design, ("mean",))).interval
    by_pair = paired_statistics(pairs, paired, design)
    paired = (by_pair.faster, by_pair.hodges_lehmann, by_pair.median)
    rows = [*np.transpose(latency), np.ravel(share), *([of.low, of.high] for of in paired)]
    return np.array(rows), design.block_bursts


@pytest.mark.parametrize("kind", SERIES)
def test_intervals_cover_the_truth(kind):
    low, high = 0.92, 0.97
    expected = np.array(truth(kind))
    found = [intervals(kind, replicate) for replicate in range(REPLICATES)]
    ends = np.stack([each for each, _ in found])
    covered = (ends[..., 0] <= expected) & (expected <= ends[..., 1])
    rates = covered.mean(axis=0)
    blocks = np.median([block for _, block in found])
    print(
        f"\n{kind}, block {blocks:.0f}: ",
        dict(zip(STATISTICS, rates.round(3).tolist(), strict=True)),
    )
    noise = 2 * np.sqrt(0.95 * 0.05 / REPLICATES)  # of one rate from this many replicates
    assert low <= rates.mean() <= high
    assert low <= rates[0] <= high
    assert (rates >= low - noise).all()
    assert (rates <= high + noise).all()


@pytest.mark.parametrize("kind", SERIES)
def test_equal_arms_raise_few_alarms(kind):
    alarms, outside = [], []
    for replicate in range(REPLICATES):
        rng = np.random.default_rng([20261123, 9, list(SERIES).index(kind), replicate])
        burst, baseline, comparison = series(kind, rng, equal=True)
        pairs = pd.DataFrame({"burst": burst})
        arms = {
            "ttft_ms": [baseline, comparison],
            "itl_ms": [np.sqrt(np.abs(baseline)), np.sqrt(np.abs(comparison))],
            "latency_ms": [baseline + 100, comparison + 100],
            "good_share": [(arm <= SLO_MS).astype(float) for arm in (baseline, comparison)],
        }
        paired = [arm[1] - arm[0] for arm in arms.values()]
        design = plan(pairs, paired, resamples=RESAMPLES, seed=replicate)
        means = {key: resampled(pairs, both, design, ("mean",)) for key, both in arms.items()}
        ends = [np.ravel(difference(of).interval) for of in means.values()]
        outside.append([low > 0 or high < 0 for low, high in ends])
        basis = verdicts(means, {})
        alarms.append(any(each.verdict in ("better", "worse") for each in basis.values()))
    print(f"\n{kind}: any verdict {np.mean(alarms):.3f}, intervals", np.mean(outside, axis=0))
    assert np.mean(alarms) <= 0.07
    assert np.mean(outside) <= 0.07


def test_block_length_follows_the_dependence():
    median = {}
    for kind in ("independent", "ar1"):
        lengths = []
        for replicate in range(50):
            burst, baseline, comparison = series(kind, np.random.default_rng([5, replicate]))
            of = sample(pd.DataFrame({"burst": burst}), comparison - baseline)
            lengths.append(block_bursts(of.influences()[:, None]))
        median[kind] = np.median(lengths)
    assert median["independent"] <= 6 < median["ar1"]


@pytest.mark.parametrize("kind", SERIES)
def test_the_band_covers_the_whole_curve_as_often_as_is_written(kind):
    _, baseline, comparison = series(kind, np.random.default_rng(1), 1000 * BURSTS)
    truth = np.percentile(comparison, PERCENT) - np.percentile(baseline, PERCENT)
    whole, single = [], []
    for replicate in range(REPLICATES):
        rng = np.random.default_rng([20261123, 17, list(SERIES).index(kind), replicate])
        burst, *both = series(kind, rng)
        arms = dict(zip(("ttft_ms_baseline", "ttft_ms_comparison"), both, strict=True))
        pairs = pd.DataFrame({"burst": burst, **arms})
        block = plan(pairs, [both[1] - both[0]]).block_bursts
        settings = {"block_bursts": block, "resamples": RESAMPLES, "seed": replicate}
        curve = quantile_differences(pairs, "ttft_ms", **settings)
        inside = (curve["band_low"] <= truth) & (truth <= curve["band_high"])
        whole.append(inside.all())
        single.append(((curve["ci_low"] <= truth) & (truth <= curve["ci_high"])).mean())
    print(f"\n{kind}: band {np.mean(whole):.3f}, single quantiles {np.mean(single):.3f}")
    text = (root() / "book" / "methods.md").read_text()
    low, high = map(float, re.search(r"in ([\d.]+) to ([\d.]+) % of them", text).groups())
    noise = 200 * np.sqrt(0.93 * 0.07 / REPLICATES)
    assert low - noise <= 100 * np.mean(whole) <= high + noise


@pytest.mark.parametrize("bound", [-2.4, -1.2, 1.2, 2.4], ids="share below {:g} sd".format)
def test_intervals_of_shares_near_0_and_1_cover_them(bound):
    """Bursts of an AR(1) series; good is what lies below a bound, in few or nearly all bursts."""

    def share_of(rng, bursts):
        shared = autoregressive(rng, bursts, 0.6)[:, 0]
        size = rng.poisson(3, bursts) + 1
        burst = np.repeat(np.arange(bursts), size)
        row = 0.8 * shared[burst] + 0.6 * rng.standard_normal(len(burst))
        return burst, (row < bound).astype(float)

    truth = share_of(np.random.default_rng(1), 1000 * BURSTS)[1].mean()
    covered = []
    for nth in range(REPLICATES):
        burst, good = share_of(np.random.default_rng([20261123, 23, nth]), BURSTS)
        pairs = pd.DataFrame({"burst": burst})
        design = plan(pairs, [good], resamples=RESAMPLES, seed=nth)
        low, high = np.ravel(resampled(pairs, [good], design, ("mean",)).share_interval)
        assert 0 <= low <= high <= 1
        covered.append(low <= truth <= high)
    print(f"\nshare {truth:.3f}: covered {np.mean(covered):.3f}")
    assert 0.91 - 2 * np.sqrt(0.95 * 0.05 / REPLICATES) <= np.mean(covered) <= 0.99
