"""One run in five steps on any kind of cluster.

Input: a study, a cluster, a configuration and a repeat. Output: a run folder.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import kvab
from kvab import recipes, runs
from kvab.errors import DependencyError, InputError
from kvab.study import Kubernetes, Live, Simulated, Study, load_cluster, load_study, root
from kvab.sweep import AS_DECLARED, Variant
from kvab.trace import Trace, burst_order, find_trace


def open_cluster(profile: Simulated | Live | Kubernetes) -> Any:
    """Return the kind of cluster that a profile declares, with its five steps.

    Raises
    ------
    DependencyError
        If this version has no such kind yet.
    """
    if isinstance(profile, Simulated):
        from kvab.simulate import Simulator

        return Simulator(profile)
    raise DependencyError(
        f"cluster {profile.name}: this version replays on clusters of kind simulated only, "
        f"got kind {profile.kind}; use --cluster simulated-h200"
    )


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
        study says, or the trace has fewer rows.
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
    return job


def start(
    study: str | Path,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    rows: int = 0,
    trace: str = "",
    runs: str | Path = "runs",
) -> Replay:
    """Return a replay ready for its five steps, from the parameters of a notebook.

    Zero rows mean all, an empty trace the study's own; relative paths count from the checkout.
    """
    declared = load_study(study)
    workload = find_trace(declared.trace, Path(trace) if trace else None)
    folder = root() / runs
    job = plan_job(declared, cluster, configuration, repeat, rows or None, workload, folder)
    return Replay(job)


def check_topology(job: Job) -> recipes.Topology:
    """Return the topology of a job's manifests, checked against the study's declaration."""
    topology = recipes.topology(job.recipe)
    factors, study = job.study.configurations[job.configuration].factors, job.study
    source = job.recipe.folder / "deploy.yaml"
    declared = (factors.split, factors.routing.replace("-", "_"))
    if (topology.mode, topology.router) != declared:
        raise InputError(
            f"{source}: study.yaml declares {job.configuration} as {' and '.join(declared)}, "
            f"got {topology.mode} and {topology.router}; mend the one that is wrong"
        )
    models = {group.model for group in topology.groups.values()}
    if models != {study.model.name}:
        raise InputError(f"{source}: expected model {study.model.name}, got {', '.join(models)}")
    if recipes.goodput_slo(job.recipe) != study.slo.model_dump():
        raise InputError(
            f"{job.recipe.folder / 'perf.yaml'}: expected the goodput of study.yaml "
            f"({study.slo.ttft_ms:g} ms, {study.slo.itl_ms:g} ms); mend --goodput"
        )
    return job.variant.topology(topology)


class Replay:
    """One run, step by step; a run that is complete is shown and not repeated."""

    def __init__(self, job: Job) -> None:
        self.job = job
        depends_on = job.depends_on()
        if runs.state(job.path, depends_on)[0] != "complete":
            runs.restore(job.path, depends_on)
        state, self.why = runs.state(job.path, depends_on)
        self.complete = state == "complete"
        self.cluster = open_cluster(job.cluster)

    def prepare(self) -> str:
        """Make sure that the cluster has what a replay needs; say what was found."""
        if self.complete:
            return f"{self.job.path} is complete ({self.why}): nothing is repeated."
        self.start = datetime.now(UTC)
        self.versions = self.cluster.prepare()
        found = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.job.cluster.description}: ready with {found}."

    def deploy(self) -> str:
        """Bring the configuration up; say what serves."""
        topology = check_topology(self.job)
        if not self.complete:
            self.cluster.deploy(topology)
        return topology.describe()

    def replay(self, progress: Any = None) -> str:
        """Send the requests of the trace; say how many."""
        if not self.complete:
            self.cluster.replay(self.job.trace, self.job.order(), progress)
        return f"{self.job.rows:,} requests of {self.job.trace.name}."

    def collect(self) -> Path:
        """Write the run folder and return it."""
        if not self.complete:
            requests, artifacts = self.cluster.collect()
            files = {f"artifacts/{name}": content for name, content in artifacts.items()}
            for name in ("deploy.yaml", "perf.yaml"):
                files[f"manifests/{name}"] = (self.job.recipe.folder / name).read_bytes()
            files["requests.parquet"] = runs.requests_bytes(requests)
            runs.write_run(self.job.path, self._manifest(requests), files)
        return self.job.path

    def teardown(self) -> str:
        """Stop what the deployment started."""
        self.cluster.teardown()
        return f"Nothing of {self.job.configuration} is left running."

    def _manifest(self, requests: Any) -> dict[str, Any]:
        job, trace = self.job, self.job.trace
        errors = int(requests["error"].notna().sum())
        return {
            "study": job.study.name,
            "study_version": job.study.version,
            "study_digest": job.study.digest,
            "cluster": job.cluster.model_dump(mode="json"),
            "kind": job.cluster.kind,
            "configuration": job.configuration,
            "repeat": job.repeat,
            "order": "shuffled within bursts" if job.study.seed(job.repeat) else "file",
            "seed": job.study.seed(job.repeat),
            "trace": {
                "name": trace.name,
                "sha256": trace.sha256,
                "synthetic": trace.synthetic,
                "rows": job.rows,
                "total_rows": len(trace),
            },
            "start": self.start,
            "end": datetime.now(UTC),
            "versions": {
                "kvab": kvab.__version__,
                "python": platform.python_version(),
                **self.versions,
            },
            "host": {"machine": platform.machine(), "cores": os.cpu_count()},
            "counts": {
                "expected": job.rows,
                "received": job.rows - errors,
                "errors": errors,
            },
            "status": "complete",
            "depends_on": job.depends_on(),
        }
