r"""Good share over load -> the load that keeps a good share; who leads at other bounds of one.

Input: good requests and requests of every burst at several loads. Output: the tables of a capacity
sweep (`curves`, and `at_bounds` of one load), from arrays whose last axis holds the two ends of
what is known: equal where the load was found, ``(0, lowest)`` below the loads that were replayed,
``(highest, inf)`` above them. Nothing is extrapolated.

**Definition.** Of the loads :math:`l_1 < l_2 < \dots` with shares :math:`s_i`, let i be the last
with :math:`s_i \ge` target. The load that keeps the target is
:math:`l_i + (l_{i+1} - l_i) (s_i - target) / (s_i - s_{i+1})`.

**Interval.** The same bursts are drawn at all loads and in all configurations
(`kvab.stats.bootstrap`), and every resample finds its loads anew. The ends are the quantiles
of the resamples at :math:`\Phi(\mp t_{k-1} \sqrt{k/(k-2)})`: the expanded percentile interval
[1]_, with the widening that `kvab.stats.bootstrap` explains. Unlike an estimate plus and minus
its error, quantiles can take resamples that are known only to lie above or below the replayed
loads: an end is then open, never made up. Coverage is checked in
``tests/stats/test_crossing_coverage.py``.

References
----------
.. [1] T. C. Hesterberg, What teachers should know about the bootstrap, The American Statistician
   69 (2015), DOI 10.1080/00031305.2015.1089789.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd
from scipy import special

from kvab.requests import metrics
from kvab.stats.bootstrap import Design, Replicates, Settings, block_bursts, replicate

COSTS = GOOD_REQUEST, GOOD_TOKEN = "good request", "good output token"
"""What the GPU-hours of a replay are divided by."""


def crossing(loads: np.ndarray, shares: np.ndarray, target: float) -> np.ndarray:
    """Return the largest load at which the share falls through the target.

    Parameters
    ----------
    loads : ndarray, shape (loads,)
        Rising.
    shares : ndarray, shape (..., loads)
        Good share at each load.
    target : float
        The share to be kept.

    Returns
    -------
    ndarray, shape (..., 2)
        Both ends of what is known, see the module.

    Examples
    --------
    >>> crossing(np.array([1.0, 2.0]), np.array([0.9, 0.7]), 0.8).round(6).tolist()
    [1.5, 1.5]
    >>> crossing(np.array([1.0, 2.0]), np.array([0.9, 0.85]), 0.8).tolist()
    [2.0, inf]
    """
    loads, shares = np.asarray(loads, float), np.asarray(shares, float)
    kept = shares >= target
    top = len(loads) - 1
    last = top - np.argmax(kept[..., ::-1], axis=-1)
    below = np.minimum(last, top - 1)
    high, low = (np.take_along_axis(shares, (below + n)[..., None], -1)[..., 0] for n in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (high - target) / (high - low)
    known = loads[below] + part * (loads[below + 1] - loads[below])
    ends = np.stack([known, known], axis=-1)
    ends[last == top] = loads[-1], np.inf
    ends[~kept.any(axis=-1)] = 0.0, loads[0]
    return ends


def ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return second over first, ends of what is known, shape (..., 2)."""
    with np.errstate(divide="ignore"):
        return np.stack([second[..., 0] / first[..., 1], second[..., 1] / first[..., 0]], axis=-1)


def interval(draws: np.ndarray, design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval that the module describes, from draws of shape (resamples, ..., 2).

    Returns
    -------
    tuple of ndarray
        Ends of shape (...); 0 and infinite where open, NaN with two blocks or fewer.
    """
    if np.isnan(design.inflation):
        return np.full(draws.shape[1:-1], np.nan), np.full(draws.shape[1:-1], np.nan)
    tail = special.ndtr(-design.critical() * design.inflation)
    outside = int(tail * len(draws))  # as many draws lie beyond each end
    low, high = (np.sort(draws[..., end], axis=0) for end in (0, 1))
    return low[outside], high[-1 - outside]


def shares(requests: np.ndarray, good: np.ndarray, design: Design) -> Replicates:
    """Return the good share of each curve with its resamples.

    Parameters
    ----------
    requests : ndarray, shape (bursts,)
        Requests of each burst.
    good : ndarray, shape (curves..., bursts)
        Good ones among them.
    design : Design
        The resampling plan.
    """
    flat = good.reshape(-1, good.shape[-1]).T.astype(float)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        share = (weights @ flat) / (weights @ requests.astype(float))[:, None]
        return share.reshape(len(weights), *good.shape[:-1])

    return replicate(design, evaluate)


def plan(
    requests: np.ndarray, series: Sequence[np.ndarray], **settings: Unpack[Settings]
) -> Design:
    """Return the resampling plan whose block length suits all series of good requests a burst."""
    total = requests.sum()
    influences = [of - requests * of.sum() / total for of in series]
    block = block_bursts(np.column_stack(influences))
    return Design(len(requests), block, **settings)


def at_crossing(loads: np.ndarray, good: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return good requests of each burst at a load between those replayed.

    The influence of a burst on the crossing is proportional to its influence on this share: the
    derivative of the crossing weighs both neighbours as the interpolation does.
    """
    load = float(np.clip(known[0], loads[0], loads[-1]))
    return np.array([np.interp(load, loads, burst) for burst in good.T])


@dataclass(frozen=True)
class Curves:
    """What a sweep says.

    Attributes
    ----------
    shares : DataFrame
        A row a cell: ``configuration``, ``load``, ``share``, ``low``, ``high`` (workload interval).
    loads : DataFrame
        A row a configuration and target: ``configuration``, ``target``, ``low``, ``high`` (what is
        known of the load that keeps it: equal where it was found), ``ci_low``, ``ci_high``.
    ratios : DataFrame
        Indexed by target: the load of the comparison over that of the baseline, columns as above.
    block_bursts : int
        Mean block length of the resamples.
    """

    shares: pd.DataFrame
    loads: pd.DataFrame
    ratios: pd.DataFrame
    block_bursts: int


def curves(
    table: pd.DataFrame,
    names: list[str],
    *,
    arms: tuple[str, str],
    targets: Sequence[float],
    **settings: Unpack[Settings],
) -> Curves:
    """Return the statistics of a sweep; the same bursts are drawn in all of its cells.

    Parameters
    ----------
    table : DataFrame
        A row a cell and burst: ``configuration``, ``load``, ``burst``, ``requests``, ``good``.
    names : list of str
        Configurations that were swept, in their order.
    arms : (str, str)
        Baseline and comparison, of whose loads the ratio is.
    targets : sequence of float
        Good shares that are asked for.
    **settings
        ``level``, ``resamples``, ``seed``.
    """
    wide = table.pivot_table("good", ["configuration", "load"], "burst")
    loads = wide.index.levels[1].to_numpy(float)
    good = np.stack([wide.loc[name].loc[loads].to_numpy(float) for name in names])
    requests = table.groupby("burst")["requests"].first().to_numpy()

    def crossings(of: np.ndarray) -> np.ndarray:
        return np.stack([crossing(loads, of, target) for target in targets], axis=-2)

    known = crossings(good.sum(-1) / requests.sum())
    series = [
        at_crossing(loads, of, ends) for of, row in zip(good, known, strict=True) for ends in row
    ]
    first, second = map(names.index, arms)
    at = np.reshape(series, (len(names), len(targets), -1))
    design = plan(requests, [*series, *(at[second] - at[first])], **settings)
    by_cell = shares(requests, good, design)
    kept = by_cell.map(crossings)
    ratios = kept.map(lambda x: ratio(x[..., first, :, :], x[..., second, :, :]))
    index = pd.MultiIndex.from_product([names, targets], names=["configuration", "target"])
    per_load = pd.MultiIndex.from_product([names, loads], names=["configuration", "load"])
    low, high = by_cell.share_interval
    return Curves(
        shares=_table(per_load, share=by_cell.value, low=low, high=high).reset_index(),
        loads=_ends(kept, index).reset_index(),
        ratios=_ends(ratios, pd.Index(targets, name="target")),
        block_bursts=design.block_bursts,
    )


def _table(index: pd.Index, **columns: np.ndarray) -> pd.DataFrame:
    """Return arrays of one shape as columns; the index runs along their axes in order."""
    return pd.DataFrame({name: column.ravel() for name, column in columns.items()}, index)


def _ends(kept: Replicates, index: pd.Index) -> pd.DataFrame:
    low, high = interval(kept.draws, kept.design)
    known = kept.value
    return _table(index, low=known[..., 0], high=known[..., 1], ci_low=low, ci_high=high)


def layouts(
    table: pd.DataFrame, deployed: tuple[str, str] | None, **settings: Unpack[Settings]
) -> pd.DataFrame:
    """Return good share and paired difference from the deployed layout, with intervals.

    Parameters
    ----------
    table : DataFrame
        A row a layout and burst: ``configuration``, ``split``, ``burst``, ``requests``, ``good``.
    deployed : (str, str) or None
        Configuration and layout that the differences are from; without one they are NaN.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        Indexed by configuration and layout, in the table's order: ``share``, ``low``, ``high``,
        ``difference``, ``difference_low``, ``difference_high``.
    """
    names = [*table.groupby(["configuration", "split"], sort=False).groups]
    good = table.pivot_table("good", ["configuration", "split"], "burst").loc[names].to_numpy(float)
    requests = table.groupby("burst")["requests"].first().to_numpy()
    reference = names.index(deployed) if deployed else 0
    differences = [other - good[reference] for n, other in enumerate(good) if n != reference]
    design = plan(requests, [*good, *differences], **settings)
    by_layout = shares(requests, good, design)
    difference = by_layout.map(lambda x: x - x[..., [reference]])
    low, high = by_layout.share_interval
    index = pd.MultiIndex.from_tuples(names, names=["configuration", "layout"])
    of_deployed = _table(index, difference=difference.value, difference_low=difference.interval[0],
                         difference_high=difference.interval[1])  # fmt: skip
    rows = _table(index, share=by_layout.value, low=low, high=high)
    return rows.join(of_deployed if deployed else of_deployed * np.nan)


# --- other bounds, at one load -------------------------------------------------------------------


def good_within(
    table: pd.DataFrame, burst: np.ndarray, ttft_ms: Sequence[float], itl_ms: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return good requests of each burst, and output tokens of good ones, at every two bounds.

    Parameters
    ----------
    table : DataFrame
        A requests table.
    burst : ndarray of int, shape (len(table),)
        The burst of each request, from 0.
    ttft_ms, itl_ms : sequence of float
        Bounds, rising.

    Returns
    -------
    tuple of ndarray
        Counts and tokens of shape (TTFTs, ITLs, bursts); what is good is decided as in
        `kvab.requests.metrics.good`.
    """
    measured = metrics.good(table, metrics.Bounds(np.inf, np.inf))
    rows = table[measured]
    first = np.searchsorted(ttft_ms, rows["ttft_ms"].to_numpy(float))  # the strictest it meets
    second = np.searchsorted(itl_ms, rows["itl_ms"].to_numpy(float))
    counts = np.zeros((len(ttft_ms) + 1, len(itl_ms) + 1, burst.max() + 1), "int32")
    tokens = np.zeros(counts.shape, "int64")
    np.add.at(counts, (first, second, burst[measured]), 1)
    np.add.at(tokens, (first, second, burst[measured]), rows["output_tokens"].to_numpy("int64"))
    within = (of.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] for of in (counts, tokens))
    return next(within), next(within)


def at_bounds(
    tables: Mapping[str, pd.DataFrame], gpu_hours: Mapping[str, float], burst: np.ndarray,
    ttft_ms: Sequence[float], itl_ms: Sequence[float], design: Design,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Return the share of good requests of every configuration, who leads, and who costs least.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Requests tables of the same rows, in the same order, by configuration: two or more.
    gpu_hours : mapping of str to float
        What the replay of each took.
    burst : ndarray of int
        The burst of each request, from 0.
    ttft_ms, itl_ms : sequence of float
        Bounds, rising.
    design : Design
        The resampling plan.

    Returns
    -------
    tuple of DataFrame
        Columns ``configuration``, ``ttft_ms``, ``itl_ms``, ``requests``, ``good``, ``low``,
        ``high`` (workload interval of the share), ``good_output_tokens``; and ``ttft_ms``,
        ``itl_ms``, ``best``, ``next`` (the first two configurations by share), ``margin``,
        ``low``, ``high`` (best minus next, paired). Equal shares stand in the order of ``tables``.
        The third is like the second for each ``per`` of `COSTS`: the first two by least cost, and
        ``margin`` the share of the next one's cost that the best saves.
    """
    names, requests = np.array([*tables]), np.bincount(burst)
    pairs = (good_within(of, burst, ttft_ms, itl_ms) for of in tables.values())
    counts, tokens = map(np.stack, zip(*pairs, strict=True))
    share = shares(requests, counts, design)
    low, high = share.share_interval
    grid = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
    index = pd.MultiIndex.from_product([names, *grid.values()], names=["configuration", *grid])
    every = _table(
        index,
        requests=np.full(low.shape, requests.sum(), "int32"),
        good=counts.sum(axis=-1, dtype="int32"),
        low=low.astype("float32"),
        high=high.astype("float32"),
        good_output_tokens=tokens.sum(axis=-1),
    )
    of_bounds = pd.MultiIndex.from_product(grid.values(), names=[*grid])
    hours = np.array([gpu_hours[name] for name in names])[:, None, None]
    made = zip(COSTS, (share, shares(requests, tokens, design)), strict=True)
    costs = {
        per: _first_two(of.map(lambda x: x / hours), names, of_bounds, relative=True)
        for per, of in made
    }
    return (
        every.reset_index(),
        _first_two(share, names, of_bounds).reset_index(),
        pd.concat(costs, names=["per"]).reset_index(),
    )


def _first_two(
    of: Replicates, names: np.ndarray, index: pd.MultiIndex, relative: bool = False
) -> pd.DataFrame:
    """Return the two configurations with the most of something, and by how much the first leads.

    ``relative`` is that as a share of what the first one has; 0 where that is nothing.
    """
    first, second = np.argsort(-of.value, axis=0, kind="stable")[:2]
    at = np.ogrid[: first.shape[0], : first.shape[1]]

    def ahead(x: np.ndarray) -> np.ndarray:
        most, margin = x[(..., first, *at)], x[(..., first, *at)] - x[(..., second, *at)]
        if not relative:
            return margin
        return np.divide(margin, most, out=np.zeros_like(margin), where=most > 0)

    lead = of.map(ahead)
    low, high = lead.interval
    best = {"best": names[first], "next": names[second]}
    return _table(index, **best, margin=lead.value, low=low, high=high)
