"""One run in five steps on any kind of cluster.

Input: a study, a cluster, a configuration and a repeat. Output: a run folder.
"""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import kvab
from kvab import recipes, runs, tidy
from kvab.errors import DependencyError, InputError, KvabError
from kvab.runs.claims import Claim
from kvab.study import Kubernetes, Live, Simulated, Study, load_cluster, load_study, root
from kvab.study.sweep import AS_DECLARED, Variant
from kvab.trace import Trace, burst_order, find_trace

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
    keep: bool = False,
) -> Replay:
    """Return a replay ready for its five steps, from the parameters of a notebook.

    Zero rows mean all, an empty trace the study's own, an empty configuration its baseline;
    relative paths count from the checkout.
    ``keep`` leaves the deployment up afterwards, to look at it.
    """
    declared = load_study(study)
    workload = find_trace(declared.trace, Path(trace) if trace else None)
    folder = root() / runs
    name = configuration or declared.baseline
    job = plan_job(declared, cluster, name, repeat, rows or None, workload, folder)
    return Replay(job, keep=keep)


def check_topology(job: Job) -> recipes.Topology:
    """Return the topology of a job, checked against the study's declaration."""
    return job.variant.topology(recipes.declared_topology(job.study, job.configuration))


class Replay:
    """One run, step by step; a run that is complete is shown and not repeated."""

    def __init__(self, job: Job, *, keep: bool = False) -> None:
        self.job, self.keep = job, keep
        self.claim = Claim(job.path)
        self._look()
        self.cluster = open_cluster(job.cluster, job)

    def _look(self) -> None:
        """Find out whether the run is complete; one set aside that serves comes back."""
        path, depends_on = self.job.path, self.job.depends_on()
        if runs.state(path, depends_on)[0] != "complete":
            runs.restore(path, depends_on)
        state, self.why = runs.state(path, depends_on)
        self.complete = state == "complete"

    def prepare(self) -> str:
        """Make sure that the cluster has what a replay needs; say what was found.

        Raises
        ------
        DependencyError
            If another start of the run is going on, or the cluster lacks something.
        InputError
            If the run cannot be written.
        """
        if not self.complete:
            self.claim.take()
            self._look()  # another start may have ended in between
        if self.complete:
            self.claim.leave()
            self.claim.forget()
            return f"{self.job.path} is complete ({self.why}): nothing is repeated."
        self.start = datetime.now(UTC)
        self.versions: dict[str, str] = {}
        self.versions = self._step("prepare")
        found = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.job.cluster.description}: ready with {found}."

    def deploy(self) -> str:
        """Bring the configuration up; say what serves."""
        topology = check_topology(self.job)
        if not self.complete:
            self._step("deploy", topology)
        return topology.describe()

    def replay(self, progress: Any = None) -> str:
        """Send the requests of the trace; say how many."""
        if not self.complete:
            self._step("replay", self.job.trace, self.job.order(), progress)
        return f"{self.job.rows:,} requests of {self.job.trace.name}."

    def collect(self) -> Path:
        """Write the run folder and return it."""
        if not self.complete:
            requests, artifacts = self._step("collect")
            self._write(requests, {f"artifacts/{name}": artifacts[name] for name in artifacts})
            self.claim.leave()
        return self.job.path

    def _write(self, requests: Any, files: dict[str, bytes], reason: str = "") -> None:
        for name in ("deploy.yaml", "perf.yaml"):
            files[f"manifests/{name}"] = (self.job.recipe.folder / name).read_bytes()
        for name, content in getattr(self.cluster, "applied", {}).items():
            files[f"manifests/{name}"] = content
        files["requests.parquet"] = runs.requests_bytes(requests)
        manifest = self._manifest(requests)
        if reason:
            manifest |= {"status": "failed", "reason": reason}
        runs.write_run(self.job.path, manifest, files)

    def _step(self, name: str, *given: Any) -> Any:
        """Return what a step of the cluster returns; if it fails, leave nothing of it running."""
        try:
            return getattr(self.cluster, name)(*given)
        except BaseException as error:
            self.abandon(str(error) or type(error).__name__)
            if isinstance(error, OSError) and error.errno in FULL:
                raise InputError(f"{name}: cannot write ({error}); free space") from None
            raise

    def abandon(self, reason: str) -> None:
        """Keep what tells why a run failed, as a failed run, and stop what it started."""
        troubles = []
        try:
            self._keep_diagnostics(reason)
        except (KvabError, OSError) as error:  # a full disk must not keep anything running
            troubles.append(f"keeping diagnostics: {error}")
        try:
            if not self.keep:
                self.cluster.teardown()
        except KvabError as error:
            troubles.append(f"tearing down: {error}")
        finally:
            self.claim.leave()
        if troubles:
            raise DependencyError(f"{reason}; then, {'; then, '.join(troubles)}") from None

    def _keep_diagnostics(self, reason: str) -> None:
        look = getattr(self.cluster, "diagnostics", dict)
        if found := {f"diagnostics/{name}": content for name, content in look().items()}:
            requests = getattr(self.cluster, "answered", lambda: None)()
            if requests is None:
                requests = tidy.not_replayed(self.job.trace, self.job.rows, reason)
            self._write(requests, found, reason)

    def teardown(self) -> str:
        """Stop what the deployment started, unless it is to be kept."""
        if self.keep:
            return f"{self.job.configuration} is kept up; the same run without keep removes it."
        self.cluster.teardown()
        return f"Nothing of {self.job.configuration} is left running."

    def _manifest(self, requests: Any) -> dict[str, Any]:
        job, trace = self.job, self.job.trace
        errors = int(requests["error"].notna().sum())
        return {
            "study": job.study.name,
            "study_version": job.study.version,
            "study_digest": job.study.digest,
            "slo": job.study.slo.model_dump(),
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
            "host": {
                "machine": platform.machine(),
                "cores": os.cpu_count(),
                **getattr(self.cluster, "provenance", {}),
            },
            "counts": {
                "expected": job.rows,
                "received": job.rows - errors,
                "errors": errors,
            },
            "status": "complete",
            "depends_on": job.depends_on(),
        }
