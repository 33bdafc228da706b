"""The statistics against other programs; the origin of each expected number is stated."""

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StationaryBootstrap
from scipy.stats import wilcoxon
from statsmodels.stats.multitest import multipletests

from kvab.requests.metrics import percentile, statistics
from kvab.stats.bootstrap import (
    Design,
    Replicates,
    Sample,
    hodges_lehmann,
    mean,
    percentiles,
    replicate,
)
from kvab.stats.contrasts import verdicts

Q = [0, 1, 25, 50, 75, 90, 95, 99, 100]


def test_percentiles_equal_numpy():
    values = np.random.default_rng(1).lognormal(6, 1, 501)
    assert (percentile(values, Q) == np.percentile(values, Q)).all()
    assert statistics(values)["p95"] == np.percentile(values, 95)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_percentiles_equal_numpy_on_the_repeated_sample(seed):
    rng = np.random.default_rng(seed)
    values = rng.lognormal(6, 1, 400).round(int(rng.integers(-2, 4)))  # with and without ties
    burst = rng.integers(0, 60, 400)
    weights = rng.poisson(1.0, (20, 60)).astype(np.int32)
    found = percentiles(Sample.of(values, burst, 60), weights, Q)
    for drawn, row in zip(weights, found, strict=True):
        assert (row == np.percentile(np.repeat(values, drawn[burst]), Q)).all()


def test_weighted_means_equal_numpy_on_the_repeated_sample():
    rng = np.random.default_rng(2)
    values, burst = rng.normal(size=100), rng.integers(0, 10, 100)
    weights = rng.poisson(1.0, (5, 10)).astype(np.int32)
    found = mean(Sample.of(values, burst, 10), weights)
    expected = [np.repeat(values, drawn[burst]).mean() for drawn in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_resamples_and_errors_equal_those_of_arch_on_the_rows():
    rng = np.random.default_rng(3)
    values = pd.Series(rng.normal(size=60)).rolling(3, min_periods=1).mean().to_numpy()
    design = Design(bursts=60, block_bursts=6, resamples=400, seed=7)
    sample = Sample.of(values, np.arange(60), 60)
    ours = replicate(design, lambda w: np.column_stack([mean(sample, w)]))
    theirs = StationaryBootstrap(6, values, seed=7)
    np.testing.assert_allclose(
        ours.draws[:, 0], theirs.apply(lambda x: np.array([x.mean()]), 400)[:, 0], rtol=1e-9
    )
    again = StationaryBootstrap(6, values, seed=7)
    covariance = again.cov(lambda x: np.array([x.mean()]), 400, recenter=True)
    np.testing.assert_allclose(ours.draws.var(axis=0, ddof=0), covariance.ravel(), rtol=1e-9)


def test_errors_equal_the_variance_that_politis_and_romano_derive():
    """Exact variance of the stationary bootstrap mean: Politis and Romano (1994), Lemma 1."""
    rng = np.random.default_rng(4)
    values = pd.Series(rng.normal(size=80)).ewm(alpha=0.5).mean().to_numpy()
    n, block = len(values), 8
    centered = values - values.mean()
    circular = [np.mean(centered * np.roll(centered, -lag)) for lag in range(n)]
    variance = (circular[0] + 2 * sum(
        (1 - lag / n) * (1 - 1 / block) ** lag * circular[lag] for lag in range(1, n)
    )) / n  # fmt: skip
    design = Design(bursts=n, block_bursts=block, resamples=20000, seed=1)
    sample = Sample.of(values, np.arange(n), n)
    found = replicate(design, lambda w: mean(sample, w)).draws.std()
    assert found == pytest.approx(np.sqrt(variance), rel=0.02)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 57, 200, 1500])
def test_hodges_lehmann_equals_the_median_of_all_pairwise_means(size):
    rng = np.random.default_rng(size)
    for values in (rng.standard_t(2, size), rng.integers(-3, 4, size).astype(float)):
        first, second = np.triu_indices(size)
        means = (values[first] + values[second]) / 2
        assert hodges_lehmann(values) == pytest.approx(np.median(means), abs=1e-12)
        if size > 9:
            low = np.quantile(means, 0.1, method="averaged_inverted_cdf")
            assert hodges_lehmann(values, 0.1) == pytest.approx(low, rel=0.2, abs=0.2)


def test_hodges_lehmann_equals_the_published_value():
    """Depression scores of Hollander and Wolfe (1973), p. 29, as in R's help of wilcox.test.

    ``wilcox.test(x, y, paired = TRUE, conf.int = TRUE)`` estimates the pseudomedian of x - y as
    0.46 (Hollander and Wolfe, section 3.2: 0.46 for the decrease).
    """
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    assert hodges_lehmann(before - after) == pytest.approx(0.46, abs=1e-9)
    assert wilcoxon(before - after, alternative="greater").pvalue == pytest.approx(
        0.01953, abs=5e-6
    )


def test_hodges_lehmann_is_scale_and_shift_equivariant():
    values = np.random.default_rng(8).standard_cauchy(301)
    shifted = hodges_lehmann(10 * values + 5)
    assert shifted == pytest.approx(10 * hodges_lehmann(values) + 5, abs=1e-9)


def test_holm_equals_statsmodels():
    design = Design(bursts=100, block_bursts=2, resamples=4)
    keys = ("ttft_ms", "itl_ms", "latency_ms", "good_share")
    draws = np.zeros((4, 2, 1))
    draws[:, 1, 0] = [-1.0, 1.0, -1.0, 1.0]
    judged = {
        key: Replicates(np.array([[100.0], [100.0 + value]]), draws, design)
        for key, value in zip(keys, (3.4, 2.9, 2.6, 0.4), strict=True)
    }
    basis = verdicts(judged, {})
    p = [basis[key].p for key in keys]
    expected = multipletests(p, method="holm")[1]
    np.testing.assert_allclose([basis[key].p_holm for key in keys], expected, rtol=1e-12)
