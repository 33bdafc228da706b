"""A capacity sweep as pages load it.

Input: ``capacity.json`` and ``capacity.parquet`` of this machine's runs, else the published ones.
Output: one object that a notebook loads and passes on.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvab import runs
from kvab.cache import remember, source_digest
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.runs.capacity.cells import SUMMARY, TABLE, Cell, Summary, declared
from kvab.runs.capacity.curves import Curves, curves
from kvab.runs.capacity.spread import TABLE as SPREAD
from kvab.study import Arm, Study, load_study, recipes, root


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
    def gpus(self) -> dict[str, int]:
        """GPUs of each configuration."""
        return {cell.configuration: cell.gpus for cell in self.load_cells}

    @cached_property
    def ratios(self) -> pd.DataFrame:
        """Load of the comparison over that of the baseline, per GPU; see `Curves.ratios`."""
        per_gpu = self.gpus[self.study.baseline] / self.gpus[self.study.comparison]
        return self.curves.ratios * per_gpu

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
        """Verdicts with every burst spread (`kvab.runs.capacity.spread`); empty if not replayed."""
        if self.spread is None:
            return pd.DataFrame()
        from kvab.runs.capacity import spread

        return spread.verdicts(self.spread, self.study)

    @cached_property
    def curves(self) -> Curves:
        """Shares, crossings, ratios and splits, with workload intervals."""

        def compute() -> Curves:
            splits = [*self.split_cells]
            return curves(self.study, self.table, [*self.arms], splits, self.deployed)

        return remember(digest([self.key, source_digest()]), "capacity", compute)


def load_sweep(
    study: str | Path | Study,
    cluster: str,
    folder: str | Path,
    published: str | Path = "book/published",
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
