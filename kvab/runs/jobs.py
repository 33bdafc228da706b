"""What one run is asked to do, checked before anything starts.

Input: a study, a cluster, a configuration and a repeat. Output: a job, and the cluster for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvab import recipes, runs
from kvab.errors import InputError
from kvab.study import Kubernetes, Live, Simulated, Study, load_cluster
from kvab.study.sweep import AS_DECLARED, Variant
from kvab.trace import Trace, burst_order, find_trace


@dataclass(frozen=True)
class Job:
    """What one run is asked to do."""

    study: Study
    cluster: Simulated | Live | Kubernetes
    configuration: str
    repeat: int
    rows: int
    trace: Trace
    runs: Path
    variant: Variant = AS_DECLARED

    @property
    def path(self) -> Path:
        """The run's folder; that of a variant lies beside the normal ones."""
        if self.variant.place:
            folder = runs.capacity_path(self.runs, self.study, self.cluster.name)
            return folder / self.configuration / self.variant.place
        return runs.run_path(
            self.runs, self.study, self.cluster.name, self.configuration, self.repeat
        )

    @property
    def recipe(self) -> recipes.Configuration:
        """The manifests of the configuration."""
        folder = self.study.configuration_folder(self.configuration)
        return recipes.read_configuration(folder, self.configuration)

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
        return {
            **manifests,
            "trace": self.trace.sha256,
            "rows": self.rows,
            "order": self.study.seed(self.repeat),
            **self.variant.depends_on(),
            **open_cluster(self.cluster).identity(),
        }


def plan_job(
    study: Study,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    rows: int | None = None,
    trace: Trace | None = None,
    folder: Path = Path("runs"),
    variant: Variant = AS_DECLARED,
) -> Job:
    """Return a checked job; ``rows`` is the number of first trace rows, None for all.

    A variant replays the trace at another speed, or the topology with another split.

    Raises
    ------
    InputError
        If the configuration, cluster or repeat is not declared, the manifests are not what the
        study says or of unequal hardware, or the trace has fewer rows.
    """
    study.configuration_folder(configuration)
    study.seed(repeat)
    trace = trace or find_trace(study.trace)
    if rows is not None and not 1 <= rows <= len(trace):
        raise InputError(f"{trace.path}: expected rows from 1 to {len(trace)}, got {rows}")
    profile, replayed = load_cluster(cluster), variant.trace(trace)
    rows = rows or len(trace)
    job = Job(study, profile, configuration, repeat, rows, replayed, folder, variant)
    check_topology(job)
    recipes.check_gpus(study)
    return job


def check_topology(job: Job) -> recipes.Topology:
    """Return the topology of a job, checked against the study's declaration."""
    return job.variant.topology(recipes.declared_topology(job.study, job.configuration))


def open_cluster(profile: Simulated | Live | Kubernetes, job: Job | None = None) -> Any:
    """Return the kind of cluster that a profile declares, with its five steps.

    A cluster that outlives this process needs the job, to find its own deployment again.
    """
    if isinstance(profile, Simulated):
        from kvab.simulate import Simulator

        return Simulator(profile)
    if isinstance(profile, Live):
        from kvab.live.serving import LiveStack

        return LiveStack(profile, job.recipe if job else None)
    from kvab.cluster.lifecycle import Cluster

    return Cluster(profile, job)
