"""What one run is asked to do: all that a kind of cluster knows of it.

Planned by `kvab.runs.jobs`, carried out by `kvab.runs.replay` on a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvab.declarations import digest
from kvab.study import Kubernetes, Live, Simulated, Study
from kvab.study.recipes import Configuration, read_configuration
from kvab.study.recipes.benchmark import read_scripts
from kvab.study.sweep import AS_DECLARED, Variant
from kvab.trace import Trace, burst_order


def run_path(runs: Path, study: Study, cluster: str, configuration: str, repeat: int) -> Path:
    """Return the folder of a run."""
    return runs / study.name / cluster / configuration / f"r{repeat}"


def capacity_path(runs: Path, study: Study, cluster: str) -> Path:
    """Return the folder of a cluster's capacity sweep, which `find_runs` does not look into."""
    return runs / study.name / cluster / "capacity"


@dataclass(frozen=True)
class Job:
    """What one run is asked to do; ``identity`` is what it depends on of the kind of cluster."""

    study: Study
    cluster: Simulated | Live | Kubernetes
    configuration: str
    repeat: int
    rows: int
    trace: Trace
    runs: Path
    identity: dict[str, str]
    variant: Variant = AS_DECLARED

    @property
    def path(self) -> Path:
        """The run's folder; that of a variant lies beside the normal ones."""
        if self.variant.place:
            folder = capacity_path(self.runs, self.study, self.cluster.name)
            return folder / self.configuration / self.variant.place
        return run_path(self.runs, self.study, self.cluster.name, self.configuration, self.repeat)

    @property
    def recipe(self) -> Configuration:
        """The manifests of the configuration."""
        folder = self.study.configuration_folder(self.configuration)
        return read_configuration(folder, self.configuration)

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.trace.arrival_ms[: self.rows].max()) / 1000

    def order(self) -> np.ndarray:
        """Trace rows in sending order: the file's for repeat 1, else shuffled within bursts."""
        return burst_order(self.trace.timestamp_ms[: self.rows], self.study.seed(self.repeat))

    def depends_on(self) -> dict[str, Any]:
        """Return what the result depends on; a run serves as long as none of it changes."""
        recipe = self.recipe
        manifests = {"deploy.yaml": recipe.digest}
        if self.cluster.kind != "simulated":
            manifests["perf.yaml"] = recipe.perf_digest
        if self.cluster.kind == "kubernetes":
            manifests["benchmark"] = digest(read_scripts(self.study.folder)["data"])
        return {
            **manifests,
            "trace": self.trace.sha256,
            "rows": self.rows,
            "order": self.study.seed(self.repeat),
            **self.variant.depends_on(),
            **self.identity,
        }
