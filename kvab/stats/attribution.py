"""The 2x2: what routing does, what the split does, and what only both together do.

Input: the requests tables of the four cells. Output: main effects and interaction of every metric
with workload intervals; the same bursts are drawn in all four cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.metrics import LATENCIES, METRICS, Slo
from kvab.stats.contrasts import Method, method, two_arms
from kvab.stats.pairing import join, plan, values

SPLITS = ("aggregated", "disaggregated")
ROUTINGS = ("round-robin", "kv")
CELLS = tuple((split, routing) for split in SPLITS for routing in ROUTINGS)
EFFECTS = {
    "routing": np.array([-0.5, 0.5, -0.5, 0.5]),
    "split": np.array([-0.5, -0.5, 0.5, 0.5]),
    "interaction": np.array([1.0, -1.0, -1.0, 1.0]),
}
"""Weights of the cells, in the order of `CELLS`."""

ATTRIBUTED = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Attribution:
    """Effects of the two factors and what they rest on.

    Attributes
    ----------
    table : DataFrame
        ``metric``, ``statistic`` (``share`` for the good share), ``effect``, ``value``,
        ``ci_low``, ``ci_high`` in the metric's unit; see `attribute`.
    cells : DataFrame
        ``metric``, ``statistic``, ``split``, ``routing``, ``value``: the four cells themselves.
    method : Method
        Settings of the intervals, as in `kvab.stats.compare.Comparison`.
    """

    table: pd.DataFrame
    cells: pd.DataFrame
    method: Method


def attribute(
    cells: Mapping[tuple[str, str], Sequence[pd.DataFrame]],
    slo: Slo,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    block_bursts: int | None = None,
) -> Attribution:
    r"""Return the main effects of routing and of the split, and their interaction.

    Parameters
    ----------
    cells : mapping of (split, routing) to sequence of DataFrame
        Requests tables of each cell of `CELLS`, one a repeat.
    slo : Slo
        Bounds of a good request.
    level, resamples, seed, block_bursts
        Of the intervals, as in `kvab.stats.compare.compare`.

    Returns
    -------
    Attribution

    Raises
    ------
    InputError
        If a cell is missing, or the cells cannot be paired.

    Notes
    -----
    With :math:`y_{sr}` a statistic of split s and routing r (0 the first level, 1 the second):

    - routing = :math:`[(y_{01} - y_{00}) + (y_{11} - y_{10})] / 2`
    - split = :math:`[(y_{10} - y_{00}) + (y_{11} - y_{01})] / 2`
    - interaction = :math:`(y_{11} - y_{10}) - (y_{01} - y_{00})`, not halved: how much more
      routing does in the disaggregated deployment than in the aggregated one.

    So the whole change :math:`y_{11} - y_{00}` is routing + split. Statistics other than the mean
    are of each cell's distribution, not of single requests.
    G. E. P. Box, J. S. Hunter, W. G. Hunter, Statistics for Experimenters, 2nd ed. (2005), ch. 5
    (where interactions are halved).
    """
    missing = [" + ".join(cell) for cell in CELLS if not cells.get(cell)]
    if missing:
        raise InputError(f"attribution: no run of {', '.join(missing)}; all four cells are needed")
    names = [" + ".join(cell) for cell in CELLS]
    pairs = join({name: cells[cell] for name, cell in zip(names, CELLS, strict=True)})
    found = [values(pairs, name, slo) for name in names]
    effects = np.stack([*EFFECTS.values()])
    apart = [
        weights @ np.stack([cell[key] for cell in found]) for key in METRICS for weights in effects
    ]
    design = plan(pairs, apart, block_bursts, level=level, resamples=resamples, seed=seed)
    rows, levels = [], []
    for key in METRICS:
        statistics = ATTRIBUTED if key in LATENCIES else ("mean",)
        each = two_arms(pairs, [cell[key] for cell in found], design, statistics)
        effect = each.map(lambda x: effects @ x)
        low, high = effect.interval
        for at, statistic in enumerate(statistics if key in LATENCIES else ("share",)):
            for which, name in enumerate(EFFECTS):
                ends = effect.value[which, at], low[which, at], high[which, at]
                rows.append((key, statistic, name, *map(float, ends)))
            for which, cell in enumerate(CELLS):
                levels.append((key, statistic, *cell, float(each.value[which, at])))
    return Attribution(
        table=pd.DataFrame(
            rows, columns=["metric", "statistic", "effect", "value", "ci_low", "ci_high"]
        ),
        cells=pd.DataFrame(levels, columns=["metric", "statistic", "split", "routing", "value"]),
        method=method(pairs, design),
    )
