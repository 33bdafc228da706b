"""A capacity sweep as pages load it, with its curves, crossings and intervals.

Input: ``capacity.json`` and ``capacity.parquet`` of this machine's runs, else the published ones.
Output: one object that a notebook loads and passes on.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab import recipes, runs
from kvab.capacity.cells import SUMMARY, TABLE, Cell, Summary, declared
from kvab.capacity.spread import TABLE as SPREAD
from kvab.declare import digest
from kvab.errors import InputError
from kvab.results import remember, source_digest
from kvab.study import Arm, Study, load_study, root


@dataclass(frozen=True)
class Curves:
    """What the sweep says.

    Attributes
    ----------
    shares : DataFrame
        A row a cell: ``configuration``, ``load``, ``share``, ``low``, ``high`` (workload interval).
    loads : DataFrame
        A row a configuration and target: ``configuration``, ``target``, ``low``, ``high`` (what is
        known of the load that keeps it: equal where found, see `kvab.statistics.crossings`),
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


@dataclass(frozen=True)
class Sweep:
    """A capacity sweep that was read and verified; ``own`` is False for the published one."""

    study: Study
    summary: Summary
    table: pd.DataFrame
    spread: pd.DataFrame | None
    own: bool

    @property
    def cluster(self) -> str:
        """Name of the cluster that was swept."""
        return self.summary.cluster["name"]

    @property
    def simulated(self) -> bool:
        """Whether the numbers come from a simulator."""
        return self.summary.cluster["kind"] == "simulated"

    @property
    def synthetic(self) -> bool:
        """Whether the workload is made up."""
        return self.summary.trace.synthetic

    @property
    def arms(self) -> dict[str, Arm]:
        """The configurations that were swept, in declared order."""
        swept = {cell.configuration for cell in self.summary.cells}
        return {name: arm for name, arm in self.study.configurations.items() if name in swept}

    @property
    def headline(self) -> float:
        """The good share at which the study compares loads."""
        return declared(self.study).headline

    @property
    def load_cells(self) -> list[Cell]:
        """Cells of the load curves."""
        return [cell for cell in self.summary.cells if cell.split is None]

    @property
    def split_cells(self) -> dict[str, Cell]:
        """Cells of the splits, by label."""
        return {cell.split: cell for cell in self.summary.cells if cell.split}

    @cached_property
    def deployed(self) -> str | None:
        """Label of the split that ``deploy.yaml`` had, None if it was not swept."""
        deployed = next(
            cell.workers
            for cell in self.load_cells
            if (cell.configuration, cell.load) == (self.study.comparison, 1)
        )
        labels = [name for name, cell in self.split_cells.items() if cell.workers == deployed]
        return labels[0] if labels else None

    @cached_property
    def changes(self) -> list[str]:
        """What differs between the declarations now and those that were swept."""
        said = []
        for name, swept in self.summary.manifests.items():
            if name not in self.study.configurations:
                said.append(f"{name} is no longer declared")
                continue
            folder = self.study.configuration_folder(name)
            if recipes.read_configuration(folder, name).digest != swept:
                said.append(f"deploy.yaml of {self.study.configurations[name].label} has changed")
        if self.summary.slo != self.study.slo:
            said.append("the bounds of a good request have changed")
        if {cell.load for cell in self.load_cells} != set(declared(self.study).loads):
            said.append("other loads are declared")
        if {*self.split_cells} != {split.label for split in declared(self.study).splits}:
            said.append("other splits are declared")
        if self.summary.trace.sha256 != self.study.trace.sha256:
            said.append("it replayed another trace than the study's")
        return said

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of the sweep."""
        summary = self.summary.model_dump(mode="json")
        spread = None if self.spread is None else self.spread.to_json()
        return digest([summary, spread, self.study.digest, self.changes, self.own])

    @cached_property
    def spread_verdicts(self) -> pd.DataFrame:
        """Verdicts with every burst spread (`kvab.capacity.spread`); empty if not replayed."""
        if self.spread is None:
            return pd.DataFrame()
        from kvab.capacity import spread

        return spread.verdicts(self.spread, self.study)

    @cached_property
    def curves(self) -> Curves:
        """Shares, crossings, ratios and splits, with workload intervals."""

        def compute() -> Curves:
            return curves(self)

        return remember(digest([self.key, source_digest()]), "capacity", compute)


def load_sweep(
    study: str | Path, cluster: str, folder: str | Path, published: str | Path = "book/published"
) -> Sweep | None:
    """Return the sweep of a cluster in a folder of runs, else the published one of any cluster.

    Without either, or where the study declares none, there is None.

    Raises
    ------
    InputError
        If its files do not belong together.
    """
    read = load_study(study)
    own = runs.capacity_path(root() / folder, read, cluster) / SUMMARY
    public = root() / published / read.name
    places = [own, *sorted(public.glob(f"*/capacity/{SUMMARY}"))]
    found = next((path for path in places if path.is_file()), None)
    if found is None or read.capacity is None:
        return None
    summary = _summary(found)
    content = (found.parent / TABLE).read_bytes()
    if hashlib.sha256(content).hexdigest() != summary.table_sha256:
        raise InputError(
            f"{found.parent / TABLE}: expected sha256 {summary.table_sha256[:12]} of {SUMMARY}, "
            "got another; restore it or run `kvab capacity`"
        )
    is_own = summary.table_sha256 not in [_summary(path).table_sha256 for path in places[1:]]
    place = found.parent / SPREAD
    spread = pd.read_parquet(place) if place.is_file() else None
    return Sweep(read, summary, pd.read_parquet(io.BytesIO(content)), spread, is_own)


def _summary(path: Path) -> Summary:
    try:
        if not path.with_name(TABLE).is_file():
            raise ValueError(f"no {TABLE} beside it")
        return Summary.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:  # pydantic's own is a ValueError
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: expected a sweep, got {reason}; run `kvab capacity`") from None


def curves(swept: Sweep) -> Curves:
    """Return the statistics of a sweep; the same bursts are drawn in all of its cells."""
    # Imported here: slow to import, and needed only where no result is kept.
    from kvab.statistics import crossings

    settings = swept.study.statistics.model_dump()
    names, targets = [*swept.arms], np.array(declared(swept.study).good_shares)
    table = swept.table[swept.table["split"].isna()]
    wide = table.pivot_table("good", ["configuration", "load"], "burst")
    loads = wide.index.levels[1].to_numpy(float)
    good = np.stack([wide.loc[name].loc[loads].to_numpy(float) for name in names])
    requests = table.groupby("burst")["requests"].first().to_numpy()

    def found(shares: np.ndarray) -> np.ndarray:
        return np.stack([crossings.crossing(loads, shares, each) for each in targets], axis=-2)

    known = found(good.sum(-1) / requests.sum())
    series = [
        crossings.at_crossing(loads, of, each) for of, row in zip(good, known, strict=True)
        for each in row
    ]  # fmt: skip
    both = [names.index(name) for name in (swept.study.baseline, swept.study.comparison)]
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
        splits=_splits(swept, requests, settings),
        block_bursts=design.block_bursts,
    )


def _ends(kept: Any, index: pd.Index, crossings: Any) -> pd.DataFrame:
    known = kept.value.reshape(-1, 2)
    low, high = crossings.interval(kept.draws, kept.design)
    columns = {"low": known[:, 0], "high": known[:, 1]}
    return pd.DataFrame({**columns, "ci_low": low.ravel(), "ci_high": high.ravel()}, index)


def _splits(swept: Sweep, requests: np.ndarray, settings: dict) -> pd.DataFrame:
    """Return good share and paired difference from the deployed split, with intervals."""
    from kvab.statistics import crossings

    names = [*swept.split_cells]
    table = swept.table[swept.table["split"].notna()]
    good = table.pivot_table("good", "split", "burst").loc[names].to_numpy(float)
    from_ = names.index(swept.deployed) if swept.deployed else 0
    apart = [each - good[from_] for n, each in enumerate(good) if n != from_]
    design = crossings.plan(requests, [*good, *apart], settings)
    shares = crossings.shares(requests, good, design)
    difference = shares.map(lambda x: x - x[..., [from_]])
    low, high = np.clip(shares.interval, 0, 1)
    rows = {"share": shares.value, "low": low, "high": high}
    rows["difference"] = difference.value
    rows["difference_low"], rows["difference_high"] = difference.interval
    return pd.DataFrame(rows, pd.Index(names, name="split"))
