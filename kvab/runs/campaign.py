"""Campaigns: many replays, planned together, of which small tables are kept.

Input: a study that declares one. Output: Parquet files and a JSON summary that names their SHA-256,
in a cluster's folder of runs. A campaign plans its cells and makes tables of them; how cells that
are missing are replayed, and how tables are written, read back of this machine's runs or of the
published ones, and verified, stands here.
"""

from __future__ import annotations

import hashlib
import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.cache import write_beside
from kvab.clusters.base import Job
from kvab.console import counted
from kvab.declarations import Declared, Json, digest
from kvab.errors import InputError
from kvab.runs import folder as runs
from kvab.runs import replay_missing
from kvab.runs.replay import plan_job
from kvab.study import PUBLISHED, Arm, Slo, Study, load_cluster, load_study, root
from kvab.study.manifests import read_configuration
from kvab.study.variants import AS_DECLARED, Variant
from kvab.trace.reading import Trace


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


Asked = TypeVar("Asked")  # what a study declares of a campaign
Made = TypeVar("Made", bound=Summary)
MadeOfRuns = TypeVar("MadeOfRuns", bound=Replayed)


@dataclass(frozen=True)
class Scope:
    """What the cells of a campaign have in common: the cluster, the rows, where they are kept.

    ``on`` is as for `kvab.runs.replay_missing.replay_all`.
    """

    study: Study
    cluster: str
    rows: int | None
    trace: Trace
    folder: Path
    on: str | None = None

    @classmethod
    def of(
        cls, study: Study, cluster: str, rows: int | None, trace: Path | None, folder: Path,
        on: str | None = None,
    ) -> Self:  # fmt: skip
        """Return the scope of a simulated cluster, with its trace found.

        Raises
        ------
        InputError
            If the cluster is not simulated.
        """
        if (kind := load_cluster(cluster).kind) != "simulated":
            key, fix = f"cluster {cluster}", "use --cluster simulated-h200"
            raise InputError(expected="a simulated cluster", got=f"kind {kind}", key=key, fix=fix)
        workload = replay_missing.workload(study, cluster, rows, None, trace, on)
        return cls(study, cluster, rows, workload, root() / folder, on)

    @cached_property
    def burst(self) -> np.ndarray:
        """The burst of each row of the trace, from 0, in the order of their times."""
        return np.unique(self.trace.timestamp_ms, return_inverse=True)[1]

    @cached_property
    def bursty(self) -> bool:
        """Whether more than one request in a hundred shares its time with another."""
        return bool((np.bincount(self.burst)[self.burst] > 1).mean() > 0.01)

    def job(self, name: str, variant: Variant = AS_DECLARED, repeat: int = 1) -> Job:
        """Return a cell of a configuration as a job; see `plan_job`."""
        return plan_job(self.study, self.cluster, name, repeat, self.rows, self.trace, self.folder,
                        variant)  # fmt: skip

    def replay(self, cells: Iterable[Job]) -> None:
        """Replay the cells that do not serve as they are, the slowest first."""
        jobs = list({job.path: job for job in cells}.values())
        if jobs:
            planned = replay_missing.plan(jobs)
            missing = [job for job, state, _ in planned if state != "complete"]
            announce(len(jobs), len(missing))
            missing.sort(key=lambda job: job.variant.speed)
            replay_missing.replay_all(missing, on=self.on)


def announce(cells: int, missing: int) -> None:
    """Say how many cells are replayed."""
    text = f"{counted(cells, 'cell')}: {cells - missing} complete, {missing} to replay"
    print(text, file=sys.stderr)


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

    @property
    @abstractmethod
    def cluster(self) -> str:
        """Name of the cluster that was simulated."""

    def write(self, folder: Path) -> Path:
        """Write tables and, last, their summary into a folder of runs; return their folder."""
        path = folder / self.study.name / self.cluster / self.PLACE
        path.parent.mkdir(parents=True, exist_ok=True)
        digests = {}
        for field, file in self.TABLES.items():
            if (table := getattr(self, field)) is not None:
                content = runs.parquet_bytes([table])
                digests[file] = hashlib.sha256(content).hexdigest()
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
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"another {path.name} than it names")
    return pd.read_parquet(io.BytesIO(content))


@dataclass(frozen=True)
class OfRuns(Campaign[MadeOfRuns, Asked]):
    """A campaign whose cells are run folders."""

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
    def simulated(self) -> bool:
        """Whether the numbers come from a simulator."""
        return bool(self.summary.cluster["kind"] == "simulated")

    @property
    def synthetic(self) -> bool:
        """Whether the workload is generated."""
        return self.summary.trace.synthetic

    @property
    def arms(self) -> dict[str, Arm]:
        """The configurations that were replayed, in declared order."""
        declared = self.study.configurations.items()
        return {name: arm for name, arm in declared if name in self.summary.manifests}

    @cached_property
    def changes(self) -> list[str]:
        """What differs between the declarations now and those that were replayed."""
        return self._changes()

    def _changes(self) -> list[str]:
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

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of it."""
        summary = self.summary.model_dump(mode="json")
        return digest([summary, self.study.digest, self.changes, self.own])
