"""Statistics of the arms and their resamples -> differences, ratios, intervals, verdicts.

Input: paired tables of `kvab.stats.pairing`. Output: plain numbers, NaN where undefined. Role: the
arithmetic that `compare`, `effects` and `attribution` share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvab.requests.metrics import COMPARED, LATENCIES, METRICS, PERCENTILES
from kvab.stats.bootstrap import Design, Replicates, Sample, mean, percentiles, replicate
from kvab.stats.pairing import sample

POWER = 0.8  # at which a difference counts as detectable


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its interval; NaN where undefined."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan

    @classmethod
    def at(cls, index: int, replicates: Replicates) -> Estimate:
        """Return one of several estimates with its interval."""
        return cls(*(float(x[index]) for x in (replicates.value, *replicates.interval)))


@dataclass(frozen=True)
class Contrast:
    """One statistic of both arms: comparison minus baseline, and comparison over baseline."""

    baseline: float
    comparison: float
    difference: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on, in the metric's unit; see `verdicts`."""

    verdict: str
    p: float
    p_holm: float
    margin: float
    difference: Estimate


@dataclass(frozen=True)
class Method:
    """Settings of the intervals, as shown and as ``compare --json`` has them.

    ``block_s`` is the block length in seconds, NaN where blocks lie over the order of sending;
    there ``requests`` counts the requests of each arm.
    """

    name: str
    level: float
    resamples: int
    seed: int
    block_bursts: int
    block_s: float
    bursts: int
    blocks: float
    requests: list[int] | None = None

    @classmethod
    def of(
        cls, design: Design, name: str, block_s: float, requests: list[int] | None = None
    ) -> Method:
        """Return the settings of a resampling plan."""
        return cls(name, design.level, design.resamples, design.seed, design.block_bursts,
                   block_s, design.bursts, design.blocks, requests)  # fmt: skip


def statistics_of(key: str) -> tuple[str, ...]:
    """Return the statistics that are compared of a metric; of the good share only the mean."""
    return COMPARED if key in LATENCIES else ("mean",)


def two_arms(
    pairs: pd.DataFrame, both: Iterable[np.ndarray], design: Design, names: Sequence[str]
) -> Replicates:
    """Return the statistics ``names`` of each arm: value (arms, names), draws (n, arms, names).

    ``both`` holds the values of each arm along the rows of ``pairs``; there may be more than two.
    """
    arms = [sample(pairs, arm) for arm in both]
    return replicate(
        design, lambda weights: np.stack([statistics(a, weights, names) for a in arms], axis=1)
    )


def statistics(of: Sample, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the weighted statistics of a sample, shape (n, names); the mean stands first."""
    q = [PERCENTILES[name] for name in names if name != "mean"]
    means = [mean(of, weights)] if "mean" in names else []
    return np.column_stack([*means, percentiles(of, weights, q)])


def difference(arms: Replicates) -> Replicates:
    """Return comparison minus baseline of `two_arms`."""
    return arms.map(lambda x: x[..., 1, :] - x[..., 0, :])


def difference_columns(arms: Replicates) -> dict[str, np.ndarray]:
    """Return the differences, and each one's interval and the band of all, as columns."""
    differences = difference(arms)
    names = ("ci_low", "ci_high", "band_low", "band_high")
    ends = zip(names, [*differences.interval, *differences.band], strict=True)
    return {"difference": differences.value, **dict(ends)}


def contrasts(arms: Replicates, names: Sequence[str]) -> dict[str, Contrast]:
    """Return statistic -> both arms, difference and ratio, each of the two with its interval.

    Notes
    -----
    The ratio's interval is that of its logarithm; next to no difference it may include 1 where
    the difference's excludes 0, or the other way. NaN if a value is not positive.
    """
    differences = difference(arms)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        logs = np.log(x, out=np.full(x.shape, np.nan), where=x > 0)
        return logs[..., 1, :] - logs[..., 0, :]

    logs = arms.map(log_ratio)
    ratios = [np.exp(ends) for ends in (logs.value, *logs.interval)]
    return {
        name: Contrast(
            baseline=float(arms.value[0, at]),
            comparison=float(arms.value[1, at]),
            difference=Estimate.at(at, differences),
            ratio=Estimate(*(float(ends[at]) for ends in ratios)),
        )
        for at, name in enumerate(names)
    }


def method(pairs: pd.DataFrame, design: Design) -> Method:
    """Return the settings of the intervals of a paired table."""
    arrivals_ms = pairs["arrival_ms"]
    gap_s = (arrivals_ms.max() - arrivals_ms.min()) / 1000 / max(design.bursts - 1, 1)
    name = "stationary block bootstrap over arrival time, Student t"
    return Method.of(design, name, float(design.block_bursts * gap_s))


def verdicts(
    judged: Mapping[str, Replicates], baselines: Mapping[str, float], margins: Mapping[str, float]
) -> dict[str, Judgement]:
    """Return the verdict on each metric, with what it rests on.

    Parameters
    ----------
    judged : mapping of str to Replicates
        Metric -> its difference, one number.
    baselines : mapping of str to float
        Metric -> the baseline's value, which a latency's margin is a share of.
    margins : mapping of str to float
        Metric -> smallest difference that matters in practice: a share of the baseline's value
        for latencies, absolute for the good share; 0 where missing.

    Returns
    -------
    dict of str to Judgement

    Notes
    -----
    The rule, first match wins:

    1. *no difference*: the whole interval lies within +- the margin. A difference may exist; it
       does not matter.
    2. *better* or *worse*: Holm-adjusted over the metrics, p is below 1 - level, and the estimate
       is beyond the margin. There is a difference, and at best estimate it matters.
    3. *inconclusive*: otherwise, and wherever there is no interval.

    S. Holm, Scandinavian Journal of Statistics 6 (1979). An interval at the same level asks more
    of rule 1 than two one-sided tests would (D. J. Schuirmann, 1987, DOI 10.1007/BF01068419).
    """
    from statsmodels.stats.multitest import multipletests  # imports for a second

    p = {key: float(of.p_value) for key, of in judged.items()}
    finite = [1.0 if np.isnan(value) else value for value in p.values()]
    adjusted = dict(zip(p, multipletests(finite, method="holm")[1], strict=True))
    result = {}
    for key, of in judged.items():
        margin = margins.get(key, 0.0) * (abs(baselines[key]) if key in LATENCIES else 1.0)
        low, high = of.interval
        lower = of.value < 0
        if -margin <= low and high <= margin:
            verdict = "no difference"
        elif adjusted[key] < 1 - of.design.level and abs(of.value) > margin:
            verdict = "better" if lower == (METRICS[key].better == "lower") else "worse"
        else:
            verdict = "inconclusive"
        result[key] = Judgement(
            verdict=verdict,
            p=p[key],
            p_holm=np.nan if np.isnan(p[key]) else float(adjusted[key]),
            margin=float(margin),
            difference=Estimate(*map(float, (of.value, low, high))),
        )
    return result
