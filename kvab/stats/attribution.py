"""The 2x2: what routing does, what the split does, what only both do, and why requests miss.

Input: the requests tables of the four cells. Output: main effects and interaction of every metric
with workload intervals, the same bursts drawn in all four cells; the kinds of requests that miss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.metrics import LATENCIES, Bounds, Slo, good, served
from kvab.stats.bootstrap import Replicates, Settings
from kvab.stats.contrasts import arm_table, join, plan, resampled, values

SPLITS = ("aggregated", "disaggregated")
ROUTINGS = ("round-robin", "kv")
CELLS = tuple((split, routing) for split in SPLITS for routing in ROUTINGS)
NAMES = [" + ".join(cell) for cell in CELLS]
EFFECTS = {
    "routing": np.array([-0.5, 0.5, -0.5, 0.5]),
    "split": np.array([-0.5, -0.5, 0.5, 0.5]),
    "interaction": np.array([1.0, -1.0, -1.0, 1.0]),
}
"""Weights of the cells, in the order of `CELLS`."""
WEIGHTS = np.stack([*EFFECTS.values()])

ATTRIBUTED = ("mean", "p99")
GOOD, LATE, SLOW, BOTH, ONE_TOKEN, FAILED = KINDS = (
    "good", "first token late", "tokens slow", "late and slow", "one-token answer", "failed",
)  # fmt: skip
"""What becomes of a request, the reasons of a miss; each request is of one kind."""
TTFT_KEPT, ITL_KEPT, NONE_KEPT = KEPT = ("TTFT bound kept", "ITL bound kept", "neither kept")
"""Which bounds a request keeps; a good one keeps both."""


def attribute(
    cells: Mapping[tuple[str, str], Sequence[pd.DataFrame]], slo: Slo, **settings: Unpack[Settings]
) -> pd.DataFrame:
    r"""Return the main effects of routing and of the split, and their interaction.

    Parameters
    ----------
    cells : mapping of (split, routing) to sequence of DataFrame
        Requests tables of each cell of `CELLS`, one a repeat.
    slo : Slo
        Bounds of a good request.
    **settings
        ``level``, ``resamples``, ``seed``, as in `kvab.stats.compare.compare`.

    Returns
    -------
    DataFrame
        ``metric``, ``statistic``, ``effect``, ``value``, ``ci_low``, ``ci_high`` in the metric's
        unit. Of the good share the statistics are the ``share`` and, in `KEPT`, the shares of
        requests that keep the TTFT bound, the ITL bound and neither: a request keeps both or
        neither or one, so that the effects on these three add up to those on the good share.

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
    missing = [name for name, cell in zip(NAMES, CELLS, strict=True) if not cells.get(cell)]
    if missing:
        raise InputError(f"attribution: no run of {', '.join(missing)}; all four cells are needed")
    pairs = join({name: cells[cell] for name, cell in zip(NAMES, CELLS, strict=True)})
    by_cell = values(pairs, slo, NAMES)
    design = plan(pairs, [WEIGHTS @ of for of in by_cell.values()], **settings)
    rows = []
    for key, of in by_cell.items():
        statistics = ATTRIBUTED if key in LATENCIES else ("mean",)
        names = statistics if key in LATENCIES else ("share",)
        arms = resampled(pairs, of, design, statistics)
        rows += [(key, *row) for row in _effects(arms, names)]
    for kept, shares in _kept(pairs, slo).items():
        arms = resampled(pairs, shares, design, ["mean"])
        rows += [("good_share", *row) for row in _effects(arms, [kept])]
    columns = ["metric", "statistic", "effect", "value", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def _effects(arms: Replicates, names: Sequence[str]) -> Iterator[tuple[str | float, ...]]:
    """Yield statistic, effect, value and interval, from the statistics of the four cells."""
    effects = arms.map(lambda x: WEIGHTS @ x)
    low, high = effects.interval
    for at, statistic in enumerate(names):
        for which, name in enumerate(EFFECTS):
            ends = (float(of[which, at]) for of in (effects.value, low, high))
            yield (statistic, name, *ends)


def _kept(pairs: pd.DataFrame, slo: Slo) -> dict[str, np.ndarray]:
    """Return which requests keep which bounds, each of shape (cells, requests)."""
    tables = [arm_table(pairs, name) for name in NAMES]
    of_ttft, of_itl, both = (
        np.stack([good(table, bounds) for table in tables]).astype(float)
        for bounds in (Bounds(slo.ttft_ms, math.inf), Bounds(math.inf, slo.itl_ms), slo)
    )
    neither = 1 - of_ttft - of_itl + both
    return dict(zip(KEPT, (of_ttft, of_itl, neither), strict=True))


def misses(tables: Mapping[str, Sequence[pd.DataFrame]], slo: Slo) -> pd.DataFrame:
    """Return what becomes of the requests of each configuration, repeats pooled.

    Returns
    -------
    DataFrame
        Indexed by configuration: the shares of the kinds in `KINDS`, which sum to one. A one-token
        answer has no pace and is never good; it is of its own kind, late or not.
    """
    shares = {}
    for name, repeats in tables.items():
        table = pd.concat(repeats, ignore_index=True)
        in_time = good(table, Bounds(slo.ttft_ms, math.inf), one_token=True)
        in_pace = good(table, Bounds(math.inf, slo.itl_ms))
        one_token = (table["output_tokens"] == 1).to_numpy(bool, na_value=False)
        conditions = [~served(table), in_time & in_pace, one_token, in_pace, in_time]
        kinds = np.select(conditions, [FAILED, GOOD, ONE_TOKEN, LATE, SLOW], BOTH)
        shares[name] = pd.Series(kinds).value_counts(normalize=True)
    return pd.DataFrame.from_dict(shares, orient="index").reindex(columns=[*KINDS]).fillna(0.0)
