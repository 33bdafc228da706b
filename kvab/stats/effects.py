"""Where the difference lies, by quantile and by group; how far replays and hours differ.

Input: requests tables, or paired ones of `kvab.stats.contrasts`; statistics of many replays.
Output: tables with workload intervals, as the figures show them; noise and hour-to-hour intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd
from scipy import special

from kvab.requests.metrics import LATENCIES, Slo
from kvab.stats import contrasts
from kvab.stats.bootstrap import Design, Settings, mean, replicate
from kvab.stats.contrasts import ARMS, POWER, Estimate

PERCENT = np.arange(1, 100)


def quantile_differences(
    pairs: pd.DataFrame, metric: str, *, block_bursts: int, **settings: Unpack[Settings]
) -> pd.DataFrame:
    """Return the difference between the arms at every quantile of a latency.

    Parameters
    ----------
    pairs : DataFrame
        As `kvab.stats.contrasts.pair` returns it.
    metric : str
        A latency metric.
    block_bursts : int
        Block length of the comparison.
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
    both = [pairs[f"{metric}_{arm}"].to_numpy(float) for arm in ARMS]
    design = Design(int(pairs["burst"].max()) + 1, block_bursts, **settings)
    arms = contrasts.resampled(pairs, both, design, [f"p{percent}" for percent in PERCENT])
    return pd.DataFrame({"q": PERCENT / 100, **contrasts.difference_columns(arms)})


def terciles(tokens: pd.Series) -> pd.Series:
    """Return the third of the requests that each number of tokens falls in, named by its range.

    Parameters
    ----------
    tokens : Series
        One number a trace row, such as its prompt's.

    Returns
    -------
    Series
        Ordered categories such as ``100 to 4,031 tokens``, on the index of ``tokens``. Equal
        values stay together, so thirds may be unequal, and fewer than three where most are equal.

    Examples
    --------
    >>> [*terciles(pd.Series([1, 2, 3, 4, 5, 6])).cat.categories]
    ['1 to 2 tokens', '3 to 4 tokens', '5 to 6 tokens']
    """
    third = np.searchsorted(np.quantile(tokens, [1 / 3, 2 / 3]), tokens)
    labels = {}
    for which in np.unique(third):
        low, high = tokens[third == which].agg(["min", "max"])
        labels[which] = f"{low:,.0f} to {high:,.0f} tokens" if low < high else f"{low:,.0f} tokens"
    names = pd.Categorical([labels[which] for which in third], [*labels.values()], ordered=True)
    return pd.Series(names, index=tokens.index)


def effect_by_groups(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    workload: pd.DataFrame,
    slo: Slo,
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the effect by thirds of prompt length and of reusable prefix.

    Parameters
    ----------
    baseline, comparison : sequence of DataFrame
        Requests tables, one a repeat.
    workload : DataFrame
        As `kvab.runs.folder.Workload` has it.
    slo : Slo
        Bounds of a good request.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        A row a group: ``by`` (what the groups are of), ``group``, ``pairs``, and for every metric
        ``<metric>_difference`` (of the means; over pairs served in both) with ``_ci_low`` and
        ``_ci_high``; for latencies also ``<metric>_faster_share``.
    """
    pairs = contrasts.pair(baseline, comparison)
    by_pair = contrasts.paired(contrasts.values(pairs, slo))
    design = contrasts.plan(pairs, by_pair.values(), **settings)
    requests = workload.set_index("row").loc[np.unique(pairs["row"])]
    groups_by = {
        "prompt": terciles(requests["input_tokens"]),
        "reusable prefix": terciles(requests["reusable_tokens"]),
    }
    rows = []
    for by, groups in groups_by.items():
        member = groups.reindex(pairs["row"]).reset_index(drop=True)
        for group in member.sort_values().unique():
            inside = (member == group).to_numpy()
            row = {"by": by, "group": str(group), "pairs": int(inside.sum())}
            for key, difference in by_pair.items():
                within = contrasts.sample(pairs, np.where(inside, difference, np.nan))
                effect = replicate(design, partial(mean, within))
                row[f"{key}_difference"] = float(effect.value)
                row[f"{key}_ci_low"], row[f"{key}_ci_high"] = map(float, effect.interval)
                if key in LATENCIES and within.values.size:
                    row[f"{key}_faster_share"] = (within.values < 0).mean()
            rows.append(row)
    return pd.DataFrame(rows)


# --- between replays, and between hours ---------------------------------------------------------


class Noise(NamedTuple):
    """What differs between replays of one configuration, of one metric.

    Attributes
    ----------
    replays : int
        How many.
    largest : float
        The largest difference between any two of them; NaN of one.
    detectable : float
        The smallest true difference that one replay of each of two configurations would show four
        times in five; NaN of one.
    """

    replays: int
    largest: float
    detectable: float


def noise(values: np.ndarray, level: float) -> Noise:
    r"""Return the noise of a statistic over replays of one configuration (A/A).

    Parameters
    ----------
    values : ndarray, shape (replays,)
        The statistic of each replay.
    level : float
        Level at which a difference counts as shown.

    Notes
    -----
    Replays, each in another order of its bursts, are independent draws. One of each configuration
    shows a difference :math:`d` if :math:`|d| > t_{level}\, s \sqrt 2`, with ``s`` their deviation;
    detectable is :math:`(t_{level} + t_{power})\, s \sqrt 2`.

    Examples
    --------
    >>> of_three = noise(np.array([1.0, 2.0, 3.0]), 0.95)
    >>> of_three.largest, round(of_three.detectable, 2)
    (2.0, 7.58)
    """
    degrees = len(values) - 1
    if not degrees:
        return Noise(1, np.nan, np.nan)
    seen = special.stdtrit(degrees, (1 + level) / 2) + special.stdtrit(degrees, POWER)
    detectable = float(seen * values.std(ddof=1) * np.sqrt(2))
    return Noise(len(values), float(np.ptp(values)), detectable)


class HourToHour(NamedTuple):
    """One effect as recorded and in made hours, and the share of these that ``another`` covers."""

    recorded: Estimate
    made: np.ndarray
    mean: Estimate
    another: Estimate
    another_coverage: float


def hour_to_hour(recorded: Estimate, made: np.ndarray, level: float) -> HourToHour:
    r"""Return the effect in other hours, from the effects in hours made of conversations.

    Parameters
    ----------
    recorded : Estimate
        The effect (comparison minus baseline) in the recorded hour.
    made : ndarray, shape (hours,)
        The effects in made hours, three or more.
    level : float
        Level of the intervals.

    Notes
    -----
    Made hours are bootstrap samples of the recorded one, with the conversation as unit [1]_: their
    effects :math:`d_1, \dots, d_n` spread about theirs as the effect of a recorded hour spreads
    about the mean effect of all hours of its kind. With their standard deviation :math:`s`, the
    recorded effect :math:`\hat\theta` and :math:`t` the quantile of Student's t with n - 1 degrees:

    - **the mean effect** over such hours lies in :math:`\hat\theta \pm t s` (the bootstrap's
      standard interval, [1]_ section 13.3);
    - **the effect in another hour**, which strays from that mean as much as the recorded one does
      and independently, lies in :math:`\hat\theta \pm \sqrt 2 \, t s` (a prediction interval
      [2]_). Its coverage is counted leaving one out: each made hour takes the place of the
      recorded one, s comes from the others, and the share of these that it holds is taken.

    References
    ----------
    .. [1] B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall (1993).
    .. [2] G. J. Hahn and W. Q. Meeker, Statistical Intervals, Wiley (1991),
       DOI 10.1002/9780470316771.
    """

    def half_width(of: np.ndarray) -> float:
        return float(special.stdtrit(len(of) - 1, (1 + level) / 2) * of.std(ddof=1))

    others = []
    for at, effect in enumerate(made):
        rest = np.delete(made, at)
        others.append(np.mean(np.abs(rest - effect) <= np.sqrt(2) * half_width(rest)))
    value, half = recorded.value, half_width(made)
    wider = np.sqrt(2) * half
    return HourToHour(
        recorded=recorded,
        made=made,
        mean=Estimate(value, value - half, value + half),
        another=Estimate(value, value - wider, value + wider),
        another_coverage=float(np.mean(others)),
    )
