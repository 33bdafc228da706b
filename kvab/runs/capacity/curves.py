"""The curves of a capacity sweep: shares by load, crossings, ratios and splits, with intervals.

Input: good requests by cell and burst. Output: tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kvab.runs.capacity.cells import declared
from kvab.study import Study


@dataclass(frozen=True)
class Curves:
    """What the sweep says.

    Attributes
    ----------
    shares : DataFrame
        A row a cell: ``configuration``, ``load``, ``share``, ``low``, ``high`` (workload interval).
    loads : DataFrame
        A row a configuration and target: ``configuration``, ``target``, ``low``, ``high`` (what is
        known of the load that keeps it: equal where found, see `kvab.stats.crossings`),
        ``ci_low``, ``ci_high``.
    ratios : DataFrame
        Indexed by target: the load of the comparison over that of the baseline, columns as above.
    splits : DataFrame
        Indexed by split: ``share``, ``low``, ``high``, and the paired ``difference`` from the
        deployed split with ``difference_low``, ``difference_high``.
    block_bursts : int
        Mean block length of the resamples.
    """

    shares: pd.DataFrame
    loads: pd.DataFrame
    ratios: pd.DataFrame
    splits: pd.DataFrame
    block_bursts: int


def curves(
    study: Study, table: pd.DataFrame, names: list[str], splits: list[str], deployed: str | None
) -> Curves:
    """Return the statistics of a sweep; the same bursts are drawn in all of its cells.

    Parameters
    ----------
    study : Study
        Declares the good shares that are asked for and the settings of the statistics.
    table : DataFrame
        A row a cell and burst: ``configuration``, ``load``, ``split`` (null in a load cell),
        ``burst``, ``requests``, ``good``.
    names, splits : list of str
        Configurations and splits that were swept, in their order.
    deployed : str or None
        The split that the differences are from; the first if none.
    """
    # Imported here: slow to import, and needed only where no result is kept.
    from kvab.stats import crossings

    settings, targets = study.statistics.model_dump(), np.array(declared(study).good_shares)
    of_load = table[table["split"].isna()]
    wide = of_load.pivot_table("good", ["configuration", "load"], "burst")
    loads = wide.index.levels[1].to_numpy(float)
    good = np.stack([wide.loc[name].loc[loads].to_numpy(float) for name in names])
    requests = of_load.groupby("burst")["requests"].first().to_numpy()

    def found(shares: np.ndarray) -> np.ndarray:
        return np.stack([crossings.crossing(loads, shares, each) for each in targets], axis=-2)

    known = found(good.sum(-1) / requests.sum())
    series = [
        crossings.at_crossing(loads, of, each) for of, row in zip(good, known, strict=True)
        for each in row
    ]  # fmt: skip
    both = [names.index(name) for name in (study.baseline, study.comparison)]
    at = np.reshape(series, (len(names), len(targets), -1))
    design = crossings.plan(requests, [*series, *(at[both[1]] - at[both[0]])], settings)
    shares = crossings.shares(requests, good, design)
    kept = shares.map(found)
    ratio = kept.map(lambda x: crossings.ratio(x[..., both[0], :, :], x[..., both[1], :, :]))
    index = pd.MultiIndex.from_product([names, targets], names=["configuration", "target"])
    per_load = pd.MultiIndex.from_product([names, loads], names=["configuration", "load"])
    low, high = np.clip(shares.interval, 0, 1)
    ends = {"share": shares.value.ravel(), "low": low.ravel(), "high": high.ravel()}
    return Curves(
        shares=pd.DataFrame(ends, per_load).reset_index(),
        loads=_ends(kept, index, crossings).reset_index(),
        ratios=_ends(ratio, pd.Index(targets, name="target"), crossings),
        splits=_splits(table, splits, deployed, requests, settings),
        block_bursts=design.block_bursts,
    )


def _ends(kept: Any, index: pd.Index, crossings: Any) -> pd.DataFrame:
    known = kept.value.reshape(-1, 2)
    low, high = crossings.interval(kept.draws, kept.design)
    columns = {"low": known[:, 0], "high": known[:, 1]}
    return pd.DataFrame({**columns, "ci_low": low.ravel(), "ci_high": high.ravel()}, index)


def _splits(
    table: pd.DataFrame,
    names: list[str],
    deployed: str | None,
    requests: np.ndarray,
    settings: dict,
) -> pd.DataFrame:
    """Return good share and paired difference from the deployed split, with intervals."""
    from kvab.stats import crossings

    of_split = table[table["split"].notna()]
    good = of_split.pivot_table("good", "split", "burst").loc[names].to_numpy(float)
    from_ = names.index(deployed) if deployed else 0
    apart = [each - good[from_] for n, each in enumerate(good) if n != from_]
    design = crossings.plan(requests, [*good, *apart], settings)
    shares = crossings.shares(requests, good, design)
    difference = shares.map(lambda x: x - x[..., [from_]])
    low, high = np.clip(shares.interval, 0, 1)
    rows = {"share": shares.value, "low": low, "high": high}
    rows["difference"] = difference.value
    rows["difference_low"], rows["difference_high"] = difference.interval
    return pd.DataFrame(rows, pd.Index(names, name="split"))
