"""One run, planned and checked, then made in five steps on any kind of cluster.

Input: a study, a cluster, a configuration and a repeat. Output: a run folder. The steps are those
of `kvab.clusters.base.ClusterRun`; their order, what happens if one fails, and what is written are
decided here.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kvab.clusters import open_cluster
from kvab.clusters.base import Collected, Job, Progress
from kvab.console import mask
from kvab.errors import UNWRITABLE, DependencyError, InputError, KvabError, remedy
from kvab.requests.table import not_replayed
from kvab.runs import folder as runs
from kvab.runs.folder import RunLock, save_workload
from kvab.study import Study, check_product, load_cluster, load_study, root
from kvab.study.topology import check_gpus, declared_topology
from kvab.study.variants import AS_DECLARED, Variant
from kvab.trace.finding import find_trace
from kvab.trace.reading import Trace


def plan_job(
    study: Study,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    rows: int | None = None,
    trace: Trace | Path | None = None,
    folder: Path = Path("runs"),
    variant: Variant = AS_DECLARED,
) -> Job:
    """Return a checked job; ``rows`` is the number of first trace rows, None for all.

    ``trace`` is the workload, or as for `find_trace`; it is found once the rest is checked.
    A variant changes the trace, the topology or the profile.

    Raises
    ------
    InputError
        If the configuration, cluster or repeat is not declared, the manifests are not what the
        study says or of unequal hardware, the cluster has other GPUs than the study is about, or
        the trace has fewer rows.
    """
    study.configuration_folder(configuration)
    study.seed(repeat)
    profile = variant.profile(load_cluster(cluster))
    check_product(study, profile)
    variant.topology(declared_topology(study, configuration))
    check_gpus(study)
    identity = open_cluster(profile).identity()
    if trace is None:
        _check_rows(rows, study.trace.rows, study.trace.name)
    if not isinstance(trace, Trace):
        trace = find_trace(study.trace, trace)
    _check_rows(rows, len(trace), trace.path)
    rows, replayed = rows or len(trace), variant.trace(trace, study.seed(repeat))
    return Job(study, profile, configuration, repeat, rows, replayed, folder, identity, variant)


def _check_rows(rows: int | None, most: int, where: str | Path) -> None:
    if rows is not None and not 1 <= rows <= most:
        raise InputError(f"{where}: expected rows from 1 to {most}, got {rows}")


def start(
    study: str | Path,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    rows: int = 0,
    trace: str = "",
    runs: str | Path = "runs",
    keep: bool = False,
    take_over: bool = False,
) -> Replay:
    """Return a replay ready for its five steps, from the parameters of a notebook.

    Zero rows mean all, an empty trace the study's own, an empty configuration its baseline;
    relative paths count from the checkout.
    ``keep`` leaves the deployment up afterwards, to look at it; ``take_over`` takes the run from a
    client of somebody else that is alive.
    """
    declared = load_study(study)
    named = Path(trace) if trace else None
    folder = root() / runs
    name = configuration or declared.baseline
    job = plan_job(declared, cluster, name, repeat, rows or None, named, folder)
    return Replay(job, keep=keep, take_over=take_over)


def _ignored(done: int) -> None:
    """Take progress that nobody follows: a simulation hears Ctrl-C when it tells its own."""


class Replay:
    """One run, step by step; a run that is complete is shown and not repeated."""

    def __init__(self, job: Job, *, keep: bool = False, take_over: bool = False) -> None:
        self.job, self.keep = job, keep
        self.lock = RunLock(job.path)
        self._look()
        self.cluster = open_cluster(job.cluster).start(job, take_over=take_over)

    def _look(self) -> None:
        """Find out whether the run is complete; one set aside that serves comes back."""
        state, self.why = runs.find_state(self.job.path, self.job.depends_on())
        self.complete = state == "complete"

    def run(self, on_progress: Progress = _ignored) -> Path:
        """Take the five steps and return the run folder; see them for what they raise."""
        self.prepare()
        self.deploy()
        self.replay(on_progress)
        path = self.collect()
        self.teardown()
        return path

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
            self.lock.take()
            self._look()  # another start may have ended in between
        if self.complete:
            self.lock.leave()
            self.lock.forget()
            return f"{self.job.path} is complete ({self.why}): nothing is repeated."
        self.start = datetime.now(UTC)
        self.versions: dict[str, str] = {}
        with self._undone_on_failure("prepare"):
            self.versions = self.cluster.prepare()
        found = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.job.cluster.description}: ready with {found}."

    def deploy(self) -> str:
        """Bring the configuration up; say what serves."""
        topology = self.job.topology
        if not self.complete:
            with self._undone_on_failure("deploy"):
                self.cluster.deploy()
        return topology.describe()

    def replay(self, on_progress: Progress = _ignored) -> str:
        """Send the requests of the trace; say how many."""
        if not self.complete:
            with self._undone_on_failure("replay"):
                self.cluster.replay(on_progress)
                if not self.job.variant.place:  # a variant's trace is not the study's
                    save_workload(self.job.trace, self.job.runs / self.job.study.name)
        return f"{self.job.rows:,} requests of {self.job.trace.name}."

    def collect(self) -> Path:
        """Write the run folder and return it."""
        if not self.complete:
            with self._undone_on_failure("collect"):
                self._write(self.cluster.collect(), "artifacts")
            self.lock.leave()
        return self.job.path

    def _write(self, found: Collected, folder: str, reason: str = "") -> None:
        """Record the run, with its files below a folder; it failed if there is a reason."""
        job, requests = self.job, found.requests
        if requests is None:
            requests = not_replayed(job.trace, job.rows, reason)
        files = {f"{folder}/{name}": content for name, content in found.files.items()}
        files |= {f"manifests/{name}": content for name, content in found.manifests.items()}
        runs.record_run(
            job.path,
            job.study,
            job.cluster.model_dump(mode="json"),
            job.recipe,
            job.repeat,
            job.trace,
            requests,
            files,
            seed=job.study.seed(job.repeat),
            start=self.start,
            end=datetime.now(UTC),
            versions={"python": platform.python_version(), **self.versions, **found.versions},
            host={"machine": platform.machine(), "cores": os.cpu_count(), **found.host},
            depends_on=job.depends_on(),
            status="failed" if reason else "complete",
            reason=reason or None,
        )

    @contextmanager
    def _undone_on_failure(self, name: str) -> Iterator[None]:
        """Leave nothing of a step that fails running, and say what is kept."""
        try:
            yield
        except BaseException as error:
            shown: BaseException = error
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                shown = InputError(f"{name}: cannot write ({error}); {remedy(error)}")
            kept = self.abandon(mask(str(shown)) or type(shown).__name__)
            if kept and isinstance(shown, KvabError):
                shown = type(shown)(f"{shown}; {kept}")
            if shown is error:
                raise
            raise shown from None

    def abandon(self, reason: str) -> str:
        """Keep what tells why a run failed, as a failed run, and stop what it started.

        Returns
        -------
        str
            What a later start can go on with, if anything.

        Raises
        ------
        DependencyError
            If that does not succeed; nothing keeps the next start from the run even then.
        """
        troubles, kept = [], ""
        try:
            self._keep_diagnostics(reason)
        except Exception as error:  # a full disk must not keep anything running
            troubles.append(f"keeping diagnostics: {_text_of(error)}")
        finally:
            try:
                if not self.keep:
                    kept = self.cluster.teardown(keep_answers=True)
            except Exception as error:
                troubles.append(f"tearing down: {_text_of(error)}")
            finally:
                self.lock.leave()
        if troubles:
            text = "; then, ".join([reason, *troubles])
            raise DependencyError(f"{text}; {kept}" if kept else text) from None
        return kept

    def _keep_diagnostics(self, reason: str) -> None:
        found = self.cluster.diagnostics()
        if found.files:
            masked = {name: _masked(name, content) for name, content in found.files.items()}
            self._write(replace(found, files=masked), "diagnostics", reason)

    def teardown(self) -> str:
        """Stop what the deployment started, unless it is to be kept."""
        if self.keep:
            return f"{self.job.configuration} is kept up; the same run without keep removes it."
        self.cluster.teardown(keep_answers=False)
        return f"Nothing of {self.job.configuration} is left running."


def _masked(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):  # requests, of numbers alone
        return content
    return mask(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _text_of(error: Exception) -> str:
    return str(error) if isinstance(error, KvabError | OSError) else repr(error)
