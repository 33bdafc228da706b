"""Campaigns: many replays, planned together, and the small tables that are kept of them.

Input: a study. Output: run folders, of which one that serves as it is, is never replayed; and, of
what a study declares as a campaign, Parquet files and a JSON summary that names their SHA-256, in a
cluster's folder of runs. A campaign plans its cells and makes tables of them; how what is missing
is replayed, side by side, in turn or on a cluster, and how tables are written, read back of this
machine's runs or of the published ones, and verified, stands here.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.cache import sha256_of, write_beside
from kvab.clusters.base import Job, Progress
from kvab.console import counted, progress_bar
from kvab.declarations import Declared, Json, digest
from kvab.errors import DependencyError, InputError, KvabError
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs.replay import Replay, plan_job
from kvab.study import PUBLISHED, Arm, Slo, Study, load_cluster, load_study, root
from kvab.study.manifests import read_configuration
from kvab.study.variants import AS_DECLARED, Variant
from kvab.trace.reading import Trace

Result = TypeVar("Result")
Work = Any  # what is replayed, of ``rows`` requests
OVERHEAD_S = 60.0  # from the last arrival to the last answer, and for the programs to start
_done: Sequence[int]  # of `side_by_side`: requests that each job has replayed


# --- what is missing, replayed --------------------------------------------------------------------


class Planned(NamedTuple):
    """A job, whether its run's folder can serve as it is, and why not."""

    job: Job
    state: runs.State
    why: str


def plan(jobs: Iterable[Job]) -> list[Planned]:
    """Return which of the runs can serve as they are; a run set aside that serves comes back."""
    return [Planned(job, *runs.find_state(job.path, job.depends_on())) for job in jobs]


@dataclass(frozen=True)
class Scope:
    """What replays that are planned together have in common; ``on`` is as for `replay_all`."""

    study: Study
    cluster: str
    rows: int | None
    trace: Trace
    folder: Path
    on: str | None = None

    @classmethod
    def of(
        cls, study: Study, cluster: str, rows: int | None, trace: Path | None, folder: Path,
        on: str | None = None, *, any_kind: bool = False,
    ) -> Self:  # fmt: skip
        """Return the scope with its trace, found once all else that was asked for is checked.

        Raises
        ------
        InputError
            If the cluster is not simulated, unless one of ``any_kind`` serves.
        """
        kind = load_cluster(cluster).kind
        if kind != "simulated" and not any_kind:
            key, fix = f"cluster {cluster}", "use --cluster simulated-h200"
            raise InputError(expected="a simulated cluster", got=f"kind {kind}", key=key, fix=fix)
        if on:
            load_cluster(on)
        found = plan_job(study, cluster, study.baseline, 1, rows, trace).trace
        return cls(study, cluster, rows, found, root() / folder, on)

    @cached_property
    def burst(self) -> np.ndarray:
        """The burst of each row of the trace, from 0, in the order of their times."""
        return np.unique(self.trace.timestamp_ms, return_inverse=True)[1]

    @cached_property
    def bursty(self) -> bool:
        """Whether more than one request in a hundred shares its time with another."""
        return bool((np.bincount(self.burst)[self.burst] > 1).mean() > 0.01)

    def job(self, name: str, variant: Variant = AS_DECLARED, repeat: int = 1) -> Job:
        """Return a replay of a configuration as a job; see `plan_job`."""
        return plan_job(self.study, self.cluster, name, repeat, self.rows, self.trace, self.folder,
                        variant)  # fmt: skip

    def replay(self, cells: Iterable[Job]) -> None:
        """Replay the cells that do not serve as they are, the slowest first."""
        planned = plan({job.path: job for job in cells}.values())
        missing = [job for job, state, _ in planned if state != "complete"]
        if planned:
            announce(len(planned), len(missing))
        replay_all(sorted(missing, key=lambda job: job.variant.speed), on=self.on)


def announce(cells: int, missing: int) -> None:
    """Say how many cells are replayed."""
    text = f"{counted(cells, 'cell')}: {cells - missing} complete, {missing} to replay"
    print(text, file=sys.stderr)


def replay_study(scope: Scope, repeats: int | None, take_over: bool) -> None:
    """Replay every run of a study that does not serve as it is, and keep the trace's workload."""
    study = scope.study
    planned = plan(
        scope.job(name, repeat=repeat)
        for name in study.configurations
        for repeat in range(1, (repeats or study.repeats) + 1)
    )
    runs.save_workload(scope.trace, scope.folder / study.name)
    for job, state, why in planned:
        print(f"{job.configuration} r{job.repeat}: {state} ({why})", file=sys.stderr)
    missing = [job for job, state, _ in planned if state != "complete"]
    replay_all(missing, on=scope.on, take_over=take_over)


def replay_all(jobs: list[Job], *, on: str | None = None, take_over: bool = False) -> None:
    """Replay jobs side by side, one a core, under one progress bar in requests.

    Only the simulator runs side by side: for other kinds see `replay_in_turn`. ``on`` names a
    Kubernetes profile that does it instead of this machine; ``take_over`` takes runs on Kubernetes
    from clients that are alive.

    Raises
    ------
    DependencyError
        If a replay's process died; the runs that ended before are kept.
    """
    if jobs and on:
        from kvab.runs.remote import replay_on

        replay_on(jobs, on)
    elif jobs and jobs[0].cluster.kind == "simulated":
        side_by_side(jobs, _replay)
    elif jobs:
        replay_in_turn(jobs, take_over)


def _replay(job: Job, on_progress: Progress) -> None:
    Replay(job).run(on_progress)


def side_by_side(
    jobs: Sequence[Work],
    carry_out: Callable[[Work, Progress], Result],
    kind: str = "replay",
    unit: str = "requests, left",
) -> list[Result]:
    """Return what jobs, which have ``rows``, return: one a core, under one bar of their rows.

    Raises
    ------
    DependencyError
        If a process died.
    """
    global _done
    # Forked, so that no replay waits for imports; before the progress bar starts its thread.
    context = multiprocessing.get_context("fork")
    _done = context.RawArray("q", len(jobs))
    pool = ProcessPoolExecutor(min(len(jobs), len(os.sched_getaffinity(0))), context)
    try:
        pending = [pool.submit(_follow, carry_out, n, job) for n, job in enumerate(jobs)]
        with progress_bar(unit) as bar:
            total = bar.add_task(counted(len(jobs), kind), total=sum(job.rows for job in jobs))
            while wait(pending, timeout=0.2).not_done:
                bar.update(total, completed=sum(_done))
            results = [future.result() for future in pending]
            bar.update(total, completed=sum(_done))
        return results
    except BrokenProcessPool:
        raise DependencyError(
            f"a {kind}'s process died (out of memory?); run the same command again: "
            "what is complete is kept"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow(carry_out: Callable[[Work, Progress], Result], n: int, job: Work) -> Result:
    def follow(done: int) -> None:
        _done[n] = done  # type: ignore[index]

    result = carry_out(job, follow)
    follow(job.rows)
    return result


def replay_in_turn(jobs: list[Job], take_over: bool = False) -> None:
    """Replay jobs one after the other, a repeat of every configuration before the next repeat.

    Each is deployed anew, so that its caches are cold; neighbours in time share what drifts on
    the cluster. One that fails does not keep the others from running.

    Raises
    ------
    KvabError
        At the end, if any failed: how many, and why the first did; of the first one's kind.
    """
    failed: list[KvabError] = []
    minutes = sum(job.span_s + OVERHEAD_S for job in jobs) / 60
    print(
        f"{counted(len(jobs), 'replay')} one after the other, in the trace's own time: about "
        f"{minutes:.0f} minutes, and what the cluster takes to deploy; complete runs are kept when "
        "stopped",
        file=sys.stderr,
    )
    for job in sorted(jobs, key=lambda job: job.repeat):
        name = f"{job.configuration} r{job.repeat}"
        print(f"{name}:", file=sys.stderr)
        try:
            Replay(job, take_over=take_over).run()
        except KvabError as error:
            failed.append(type(error)(f"{name}: {error}"))
            print(failed[-1], file=sys.stderr)
    if failed:
        first = failed[0]
        raise type(first)(f"{len(failed)} of {counted(len(jobs), 'replay')} failed; first: {first}")


# --- the tables of a campaign ---------------------------------------------------------------------


class Summary(Declared):
    """What tables were made from, and their SHA-256 by file name; none until they are written."""

    tables: dict[str, str] = Field(default_factory=dict)


class Replayed(Summary):
    """Tables of run folders, as a cluster's profile and the study declare them."""

    study: str
    study_version: int
    cluster: Json
    trace: runs.RunTrace
    versions: dict[str, str]
    first: datetime
    last: datetime
    slo: Slo
    manifests: dict[str, str]


def latencies_of(summary: Json) -> dict[str, float | None]:
    """Return the statistics of a replay's latencies that tables keep, by column."""
    names = ("mean", "p50", "p90", "p99")
    return {f"{key}_{name}": summary[key][name] for key in metrics.LATENCIES for name in names}


Asked = TypeVar("Asked")  # what a study declares of a campaign
Made = TypeVar("Made", bound=Summary)
MadeOfRuns = TypeVar("MadeOfRuns", bound=Replayed)


@dataclass(frozen=True)
class Campaign(ABC, Generic[Made, Asked]):
    """Tables of a campaign that were read and verified; ``own`` is False for published ones.

    A kind of campaign has a field for each of its tables, which may be None where tables were
    written before there was such a one.
    """

    study: Study
    summary: Made
    own: bool

    KEY: ClassVar[str]  # of study.yaml
    COMMAND: ClassVar[str]
    PLACE: ClassVar[Path]  # the summary's in a cluster's folder
    SUMMARY: ClassVar[type[Summary]]
    TABLES: ClassVar[dict[str, str]]  # file of each table, by the field that holds it

    @classmethod
    def declared(cls, study: Study) -> Asked:
        """Return what a study declares of it.

        Raises
        ------
        InputError
            If it declares nothing.
        """
        asked: Asked | None = getattr(study, cls.KEY)
        if asked is None:
            raise InputError(expected=f"a key {cls.KEY}", got="none", fix="declare it",
                             path=study.folder / "study.yaml")  # fmt: skip
        return asked

    @classmethod
    def files(cls) -> list[Path]:
        """Return where summary and tables lie in a cluster's folder."""
        return [cls.PLACE, *map(cls.PLACE.with_name, cls.TABLES.values())]

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of it."""
        summary = self.summary.model_dump(mode="json")
        return digest([summary, self.study.digest, self.changes, self.own])

    @property
    def changes(self) -> list[str]:
        """What differs between the declarations now and those that were replayed."""
        return []

    @property
    @abstractmethod
    def cluster(self) -> str:
        """Name of the cluster that was simulated."""

    def write(self, folder: Path) -> Path:
        """Write tables and, last, their summary into a folder of runs; return their folder."""
        path = folder / self.study.name / self.cluster / self.PLACE
        digests = {}
        for field, file in self.TABLES.items():
            if (table := getattr(self, field)) is not None:
                content = runs.parquet_bytes(table)
                digests[file] = sha256_of(content)
                write_beside(path.with_name(file), content)
        summary = self.summary.model_copy(update={"tables": digests})
        write_beside(path, (summary.model_dump_json(by_alias=True, indent=1) + "\n").encode())
        return path.parent

    @classmethod
    def load(
        cls, study: str | Path | Study, cluster: str, folder: str | Path,
        published: str | Path = PUBLISHED,
    ) -> Self | None:  # fmt: skip
        """Return what was made of a cluster's runs, else what is published, of it or of another.

        Without either, or where the study declares none, there is None.

        Raises
        ------
        InputError
            If its files do not belong together.
        """
        read = load_study(study)
        if getattr(read, cls.KEY) is None:
            return None
        public = sorted((root() / published / read.name).glob(f"*/{cls.PLACE}"),
                        key=lambda path: cluster not in path.parts)  # fmt: skip
        paths = [root() / folder / read.name / cluster / cls.PLACE, *public]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            return None
        try:
            summary = cls.SUMMARY.model_validate_json(path.read_bytes())
            tables = {field: _table(path.with_name(file), summary.tables[file])
                      for field, file in cls.TABLES.items() if file in summary.tables}  # fmt: skip
        except (OSError, ValueError) as error:  # pydantic's own is a ValueError
            got, fix = str(error).splitlines()[0], f"restore them, or run `{cls.COMMAND}`"
            expected = "a summary and its tables"
            raise InputError(expected=expected, got=got, path=path, fix=fix) from None
        own = path.read_bytes() not in [other.read_bytes() for other in public]
        return cls(study=read, summary=summary, own=own, **tables)  # type: ignore[arg-type]


def _table(path: Path, sha256: str) -> pd.DataFrame:
    content = path.read_bytes()
    if sha256_of(content) != sha256:
        raise ValueError(f"another {path.name} than it names")
    return pd.read_parquet(io.BytesIO(content))


@dataclass(frozen=True)
class OfRuns(Campaign[MadeOfRuns, Asked]):
    """A campaign whose cells are run folders, of a simulated cluster."""

    simulated: ClassVar = True

    @staticmethod
    def fields(cells: list[tuple[Job, runs.Run]]) -> Json:
        """Return the fields of `Replayed`, of cells and their runs."""
        first, manifests = cells[0][0], [run.manifest for _, run in cells]
        return {
            "study": first.study.name,
            "study_version": first.study.version,
            "cluster": load_cluster(first.cluster.name).model_dump(mode="json"),
            "trace": manifests[0].trace,
            "versions": manifests[-1].versions,
            "first": min(manifest.start for manifest in manifests),
            "last": max(manifest.end for manifest in manifests),
            "slo": first.study.slo,
            "manifests": {job.configuration: job.recipe.digest for job, _ in cells},
        }

    @property
    def cluster(self) -> str:
        """Name of the cluster that was simulated."""
        return str(self.summary.cluster["name"])

    @property
    def synthetic(self) -> bool:
        """Whether the workload is generated."""
        return self.summary.trace.synthetic

    @property
    def arms(self) -> dict[str, Arm]:
        """The configurations that were replayed, in declared order."""
        declared = self.study.configurations.items()
        return {name: arm for name, arm in declared if name in self.summary.manifests}

    @property
    def changes(self) -> list[str]:
        """What differs between the declarations now and those that were replayed."""
        changes, configurations = [], self.study.configurations
        for name, replayed in self.summary.manifests.items():
            if name not in configurations:
                changes.append(f"{name} is no longer declared")
            elif read_configuration(self.study.configuration_folder(name), name).digest != replayed:
                changes.append(f"deploy.yaml of {configurations[name].label} has changed")
        if self.summary.slo != self.study.slo:
            changes.append("the bounds of a good request have changed")
        if self.summary.trace.sha256 != self.study.trace.sha256:
            changes.append("it replayed another trace than the study's")
        return changes
