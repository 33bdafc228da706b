"""Where the difference lies: by quantile, by group of requests, by configuration, in A/A runs.

Input: requests tables, or paired ones of `kvab.stats.pairing`. Output: tables with workload
intervals, as the figures show them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd
from scipy import special

from kvab.requests.metrics import LATENCIES, METRICS, Slo
from kvab.stats.bootstrap import Settings, mean, replicate
from kvab.stats.contrasts import POWER, difference_columns, two_arms
from kvab.stats.pairing import BASELINE, COMPARISON, differences, join, pair, plan, sample, values
from kvab.stats.percentiles import percentiles

QUANTILES = np.arange(1, 100) / 100


def quantile_differences(
    pairs: pd.DataFrame,
    metric: str,
    *,
    block_bursts: int | None = None,
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the difference between the arms at every quantile of a latency.

    Parameters
    ----------
    pairs : DataFrame
        As `kvab.stats.pairing.pair` returns it.
    metric : str
        A latency metric.
    block_bursts : int, optional
        Block length, such as a comparison's; by default estimated on this metric alone.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        Columns ``q``, ``baseline``, ``comparison``, ``difference``, ``ci_low``, ``ci_high`` (each
        quantile by itself) and ``band_low``, ``band_high`` (all at once, see
        `kvab.stats.bootstrap.Replicates.band`), in the metric's unit. It compares
        distributions: the requests at a quantile are not the same ones in both arms.
    """
    both = [pairs[f"{metric}_{arm}"].to_numpy(float) for arm in (BASELINE, COMPARISON)]
    design = plan(pairs, [both[1] - both[0]], block_bursts, **settings)
    arms = [sample(pairs, arm) for arm in both]
    q = 100 * QUANTILES
    replicates = replicate(
        design, lambda weights: np.stack([percentiles(arm, weights, q) for arm in arms], axis=1)
    )
    columns = {"q": QUANTILES, "baseline": replicates.value[0], "comparison": replicates.value[1]}
    return pd.DataFrame({**columns, **difference_columns(replicates)})


def terciles(numbers: pd.Series | np.ndarray, unit: str) -> pd.Series:
    """Return the third of the requests that each value falls in, labelled by its range.

    Parameters
    ----------
    numbers : Series or ndarray
        One value a trace row, such as its prompt tokens.
    unit : str
        Shown after the range.

    Returns
    -------
    Series
        Ordered categories such as ``100 to 4,031 tokens``, on the index of ``numbers``. Equal
        values stay together, so thirds may be unequal, and fewer than three where most are equal.

    Examples
    --------
    >>> [*terciles([1, 2, 3, 4, 5, 6], "tokens").cat.categories]
    ['1 to 2 tokens', '3 to 4 tokens', '5 to 6 tokens']
    """
    numbers = pd.Series(numbers)
    third = np.searchsorted(np.quantile(numbers, [1 / 3, 2 / 3]), numbers)
    labels = {}
    for which in np.unique(third):
        low, high = numbers[third == which].agg(["min", "max"])
        labels[which] = f"{low:,.0f} to {high:,.0f} {unit}" if low < high else f"{low:,.0f} {unit}"
    names = pd.Categorical([labels[which] for which in third], [*labels.values()], ordered=True)
    return pd.Series(names, index=numbers.index)


def spans(arrival_ms: pd.Series, number: int = 6) -> pd.Series:
    """Return the part of the trace that each row arrives in, equal spans of time in order.

    Examples
    --------
    >>> [*spans(pd.Series([0.0, 59_999.0, 60_000.0, 119_999.0]), 2).cat.categories]
    ['0 to 1 min', '1 to 2 min']
    """
    edges = np.linspace(arrival_ms.min(), arrival_ms.max(), number + 1) / 60_000
    labels = [f"{low:.3g} to {high:.3g} min" for low, high in itertools.pairwise(edges)]
    return pd.cut(arrival_ms / 60_000, edges, labels=labels, include_lowest=True)


def effect_by_group(
    pairs: pd.DataFrame, groups: pd.Series, slo: Slo, **settings: Unpack[Settings]
) -> pd.DataFrame:
    """Return the effect of the comparison within groups of requests.

    Parameters
    ----------
    pairs : DataFrame
        As `kvab.stats.pairing.pair` returns it.
    groups : Series
        Trace row (the index) -> group, such as `terciles` returns.
    slo : Slo
        Bounds of a good request.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        A row a group: ``group``, ``pairs``, and for every metric ``<metric>_difference`` (of the
        means; over pairs served in both) with ``_ci_low`` and ``_ci_high``; for latencies also
        ``<metric>_median_difference`` (median of the paired differences) and
        ``<metric>_faster_share``.
    """
    both = [values(pairs, arm, slo) for arm in (BASELINE, COMPARISON)]
    paired = differences(*both)
    design = plan(pairs, paired.values(), **settings)
    member = pd.Series(groups).reindex(pairs["row"]).reset_index(drop=True)
    rows = []
    for group in member.dropna().sort_values().unique():
        inside = (member == group).to_numpy()
        row = {"group": group, "pairs": int(inside.sum())}
        for key, differences_of in paired.items():
            within = sample(pairs, np.where(inside, differences_of, np.nan))
            effect = replicate(design, partial(mean, within))
            row[f"{key}_difference"] = float(effect.value)
            row[f"{key}_ci_low"], row[f"{key}_ci_high"] = map(float, effect.interval)
            if key in LATENCIES and within.values.size:
                row[f"{key}_median_difference"] = np.median(within.values)
                row[f"{key}_faster_share"] = (within.values < 0).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def noise_floor(
    baseline_tables: Sequence[pd.DataFrame], slo: Slo, **settings: Unpack[Settings]
) -> pd.DataFrame:
    """Return what the study sees between runs of one configuration (A/A), and could see.

    Parameters
    ----------
    baseline_tables : sequence of DataFrame
        Requests tables of one configuration, one a repeat; every two of them are compared.
    slo : Slo
        Bounds of a good request.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        A row a metric: ``metric``, ``run_pairs``, ``largest_difference`` (absolute, of the means;
        of the shares), ``error`` (largest standard error of such a difference) and
        ``smallest_detectable`` = (t for the level + t for power 0.8) x error. NaN with one repeat.

    Notes
    -----
    Of two repeats the means are subtracted. All comparisons draw the same bursts, in blocks of the
    median length that neighbouring repeats ask for (`kvab.stats.pairing.plan`).
    """
    names = [f"repeat {n}" for n in range(1, len(baseline_tables) + 1)]
    first, second = np.triu_indices(len(names), 1)
    columns = ["metric", "run_pairs", "largest_difference", "error", "smallest_detectable"]
    if not first.size:
        return pd.DataFrame([[key, 0] + 3 * [np.nan] for key in METRICS], columns=columns)
    pairs = join({name: [table] for name, table in zip(names, baseline_tables, strict=True)})
    repeats = [values(pairs, name, slo) for name in names]
    lengths = [
        plan(pairs, differences(*neighbours).values()).block_bursts
        for neighbours in itertools.pairwise(repeats)
    ]
    design = plan(pairs, [], int(np.median(lengths)), **settings)
    factor = design.critical() + design.critical(POWER)
    rows = []
    for key in METRICS:
        means = two_arms(pairs, [repeat[key] for repeat in repeats], design, ["mean"])
        between = means.map(lambda x: x[..., second, 0] - x[..., first, 0])
        error = between.error.max()
        rows.append([key, len(first), np.abs(between.value).max(), error, factor * error])
    return pd.DataFrame(rows, columns=columns)


class Noise(NamedTuple):
    """What differs between replays of one configuration, of one metric.

    Attributes
    ----------
    replays : int
        How many.
    largest : float
        The largest difference between any two of them.
    detectable : float
        The smallest true difference that one replay of each of two configurations would show four
        times in five.
    """

    replays: int
    largest: float
    detectable: float


def over_orders(values: np.ndarray, level: float) -> Noise:
    r"""Return the noise of a statistic over the orders that a configuration was replayed in.

    Parameters
    ----------
    values : ndarray, shape (orders,)
        The statistic of each replay; two or more.
    level : float
        Level at which a difference counts as shown.

    Notes
    -----
    Orders are independent draws. One run of each shows a difference :math:`d` if
    :math:`|d| > t_{level}\, s \sqrt 2`, with ``s`` their deviation; detectable is
    :math:`(t_{level} + t_{power})\, s \sqrt 2`.

    Examples
    --------
    >>> noise = over_orders(np.array([1.0, 2.0, 3.0]), 0.95)
    >>> noise.largest, round(noise.detectable, 2)
    (2.0, 7.58)
    """
    degrees = len(values) - 1
    seen = special.stdtrit(degrees, (1 + level) / 2) + special.stdtrit(degrees, POWER)
    detectable = float(seen * values.std(ddof=1) * np.sqrt(2))
    return Noise(len(values), float(np.ptp(values)), detectable)


def effect_by_groups(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    workload: pd.DataFrame,
    slo: Slo,
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the effect by prompt length, by reusable prefix (in thirds) and along the trace.

    Returns
    -------
    DataFrame
        ``by`` (what the groups are of) and the columns of `effect_by_group`.
    """
    pairs = pair(baseline, comparison)
    rows = workload.set_index("row").loc[np.unique(pairs["row"])]
    groups_by = {
        "prompt": terciles(rows["input_tokens"], "tokens"),
        "reusable prefix": terciles(rows["reusable_tokens"], "tokens"),
        "arrival": spans(rows["arrival_ms"]),
    }
    parts = []
    for by, thirds in groups_by.items():
        effect = effect_by_group(pairs, thirds, slo, **settings)
        parts.append(effect.astype({"group": str}).assign(by=by))
    return pd.concat(parts, ignore_index=True)
