"""Statistics of the arms and their resamples -> differences, ratios, intervals, verdicts.

Input: paired tables of `kvab.stats.pairing`. Output: plain numbers. Role: the arithmetic that
`compare`, `effects` and `attribution` share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvab.requests.metrics import COMPARED, LATENCIES, METRICS, PERCENTILES
from kvab.stats.bootstrap import Design, Replicates, mean, replicate
from kvab.stats.pairing import sample
from kvab.stats.percentiles import percentiles

POWER = 0.8  # at which a difference counts as detectable


def number(value: float | np.ndarray) -> float | None:
    """Return a plain float, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def statistics_of(key: str) -> tuple[str, ...]:
    """Return the statistics that are compared of a metric; of the good share only the mean."""
    return COMPARED if key in LATENCIES else ("mean",)


def two_arms(
    pairs: pd.DataFrame, both: Sequence[np.ndarray], design: Design, names: Sequence[str]
) -> Replicates:
    """Return the statistics ``names`` of each arm: value (arms, names), draws (n, arms, names).

    ``both`` holds the values of each arm along the rows of ``pairs``; there may be more than two.
    """
    arms = [sample(pairs, arm) for arm in both]
    q = [PERCENTILES[name] for name in names if name != "mean"]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        parts = []
        for arm in arms:
            means = [mean(arm, weights)[:, None]] if "mean" in names else []
            parts.append(np.column_stack([*means, percentiles(arm, weights, q)]))
        return np.stack(parts, axis=1)

    return replicate(design, evaluate)


def difference(arms: Replicates) -> Replicates:
    """Return comparison minus baseline of `two_arms`."""
    return arms.map(lambda x: x[..., 1, :] - x[..., 0, :])


def contrasts(arms: Replicates, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return statistic -> both arms, difference and ratio, each of the two with its interval.

    Notes
    -----
    The ratio's interval is that of its logarithm; next to no difference it may include 1 where
    the difference's excludes 0, or the other way. None if a value is not positive.
    """
    apart = difference(arms)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        logs = np.log(x, out=np.full(x.shape, np.nan), where=x > 0)
        return logs[..., 1, :] - logs[..., 0, :]

    ratio = arms.map(log_ratio)
    columns = {
        "baseline": arms.value[0],
        "comparison": arms.value[1],
        "difference": apart.value,
        "ratio": np.exp(ratio.value),
        "ci_low": apart.interval[0],
        "ci_high": apart.interval[1],
        "ratio_ci_low": np.exp(ratio.interval[0]),
        "ratio_ci_high": np.exp(ratio.interval[1]),
    }
    return {
        name: {column: number(each[at]) for column, each in columns.items()}
        for at, name in enumerate(names)
    }


def method(pairs: pd.DataFrame, design: Design) -> dict[str, Any]:
    """Return the settings of the intervals, as shown and as ``compare --json`` has them."""
    arrivals_ms = pairs["arrival_ms"]
    gap_s = (arrivals_ms.max() - arrivals_ms.min()) / 1000 / max(design.bursts - 1, 1)
    return {
        "name": "stationary block bootstrap over arrival time, Student t",
        "level": design.level,
        "resamples": design.resamples,
        "seed": design.seed,
        "block_bursts": design.block_bursts,
        "block_s": float(design.block_bursts * gap_s),
        "bursts": design.bursts,
        "blocks": design.blocks,
    }


def verdicts(
    judged: Mapping[str, Replicates], baselines: Mapping[str, float], margins: Mapping[str, float]
) -> dict[str, dict]:
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
    dict
        Metric -> ``verdict``, ``p``, ``p_holm``, ``margin``, ``difference``, ``ci_low``,
        ``ci_high`` (all in the metric's unit).

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

    p = {key: float(each.p_value) for key, each in judged.items()}
    finite = [1.0 if np.isnan(each) else each for each in p.values()]
    adjusted = dict(zip(p, multipletests(finite, method="holm")[1], strict=True))
    result = {}
    for key, each in judged.items():
        margin = margins.get(key, 0.0) * (abs(baselines[key]) if key in LATENCIES else 1.0)
        low, high = each.interval
        lower = each.value < 0
        if -margin <= low and high <= margin:
            verdict = "no difference"
        elif adjusted[key] < 1 - each.design.level and abs(each.value) > margin:
            verdict = "better" if lower == (METRICS[key].better == "lower") else "worse"
        else:
            verdict = "inconclusive"
        known = not np.isnan(p[key])
        result[key] = {
            "verdict": verdict,
            "p": number(p[key]),
            "p_holm": number(adjusted[key]) if known else None,
            "margin": number(margin),
            "difference": number(each.value),
            "ci_low": number(low),
            "ci_high": number(high),
        }
    return result
