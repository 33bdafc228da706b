"""The capacity sweep: its cells replayed side by side, and the small tables that pages read.

Input: the study's key ``capacity``. Output: ``runs/<study>/<cluster>/capacity/``: a run folder for
each cell that is not a normal run already, ``capacity.parquet`` (good requests of each cell and
burst) and ``capacity.json`` (what was replayed, and a summary of each cell). Loads are swept under
both readings of the trace's clock: a burst's requests at once, and spread evenly until the next
burst; the two main configurations are repeated at the loads next to a crossing. `load_sweep` reads
the tables, of this machine's runs, else the published ones, as one object.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.cache import remember, source_digest
from kvab.clusters.base import Job, capacity_path
from kvab.console import counted
from kvab.declarations import Declared, digest
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs import replay_missing
from kvab.runs.replay import plan_job
from kvab.runs.tables import Replayed, read_tables, replayed, write_tables
from kvab.stats.crossings import Curves, crossing, curves
from kvab.study import Arm, Study, load_cluster, load_study, root
from kvab.study.declaration import Capacity
from kvab.study.manifests import read_configuration
from kvab.study.variants import AS_DECLARED, Variant
from kvab.trace.reading import Trace

FOLDER, TABLE, SUMMARY = "capacity", "capacity.parquet", "capacity.json"
Bursts = Literal["at once", "spread"]
AT_ONCE: Bursts = "at once"
SPREAD: Bursts = "spread"


class Latency(Declared):
    """Statistics of one latency of a cell, in ms; null where nothing was served."""

    mean: float | None
    p50: float | None
    p99: float | None


class Cell(Declared):
    """One cell of the sweep; ``split`` is null for the cells of the load curves.

    ``bursts`` is how the requests of a burst come, ``repeat`` which order of them is replayed.
    """

    configuration: str
    load: float
    split: str | None
    bursts: Bursts = AT_ONCE
    repeat: int = 1
    workers: dict[str, int]
    gpus: int
    requests: int
    good: int
    late_first_token: int
    slow_pace: int
    one_token: int
    duration_s: float | None
    ttft_ms: Latency
    itl_ms: Latency
    requests_sha256: str

    @property
    def share(self) -> float:
        """Good requests over expected ones."""
        return self.good / self.requests

    @property
    def gpu_hours(self) -> float:
        """GPU-hours for each thousand good requests; infinite without one."""
        hours = self.gpus * (self.duration_s or np.inf) / 3600
        return hours / (self.good / 1000) if self.good else np.inf


class Summary(Replayed):
    """The content of ``capacity.json``, schema 2."""

    schema_version: Literal[2] = Field(2, alias="schema")
    cells: list[Cell]


def declared(study: Study) -> Capacity:
    """Return what the study declares of its sweep.

    Raises
    ------
    InputError
        If it declares none.
    """
    if study.capacity is None:
        raise InputError(f"{study.folder / 'study.yaml'}: expected a key capacity; declare a sweep")
    return study.capacity


def plan_cells(
    study: Study, cluster: str, rows: int | None, trace: Trace, folder: Path
) -> list[tuple[Job, str | None]]:
    """Return every cell as a job, with the label of its split or None.

    A cell that changes nothing is the first normal run of its configuration.

    Raises
    ------
    InputError
        If no sweep is declared, or a split does not fit.
    """

    def job(configuration: str, variant: Variant) -> Job:
        return plan_job(study, cluster, configuration, 1, rows, trace, folder, variant)

    swept = declared(study)
    cells: list[tuple[Job, str | None]] = [
        (job(name, Variant(speed=load, spread=spread)), None)
        for name in study.configurations
        for load in swept.loads
        for spread in (False, True)
    ]
    groups = job(study.comparison, AS_DECLARED).topology.groups
    deployed = {role: group.replicas for role, group in groups.items()}
    for split in swept.splits:
        changed = split.model_dump() != deployed
        variant = Variant(split=split) if changed else AS_DECLARED
        cells.append((job(study.comparison, variant), split.label))
    return cells


def plan_repeats(cells: list[tuple[Job, str | None]], trace: Trace) -> list[tuple[Job, None]]:
    """Return further repeats of the main configurations at the loads next to their crossing.

    The crossing is that of the headline's good share; its cells must be complete.
    """
    study = cells[0][0].study
    jobs = []
    for name in (study.baseline, study.comparison):
        for spread in (False, True):
            curve = sorted(
                (job.variant.speed, job)
                for job, split in cells
                if (job.configuration, job.variant.spread, split) == (name, spread, None)
            )
            kept = [metrics.good(runs.read_run(job.path).requests, study.slo).mean()
                    >= declared(study).headline for _, job in curve]  # fmt: skip
            last = max((n for n, enough in enumerate(kept) if enough), default=0)
            jobs += [
                plan_job(study, job.cluster.name, name, n, job.rows, trace, job.runs, job.variant)
                for _, job in curve[last : last + 2]
                for n in range(2, declared(study).repeats + 1)
            ]
    return [(job, None) for job in jobs]


def replay_sweep(
    study: Path, cluster: str, rows: int | None = None, trace: Path | None = None,
    folder: Path = Path("runs"), on: str | None = None,
) -> Path:  # fmt: skip
    """Replay the cells that do not serve as they are, write the sweep's table, return its folder.

    Cells that are complete are kept whenever it stops; the same command goes on from there.

    Raises
    ------
    InputError
        If the cluster is not simulated; see also `plan_cells`.
    """
    read = load_study(study)
    workload = simulated_workload(read, cluster, rows, trace, on)
    cells = plan_cells(read, cluster, rows, workload, root() / folder)
    replay_cells([job for job, _ in cells], on)
    repeats = plan_repeats(cells, workload)
    replay_cells([job for job, _ in repeats], on)
    return _write([*cells, *repeats], workload)


def simulated_workload(
    study: Study, cluster: str, rows: int | None, trace: Path | None, on: str | None
) -> Trace:
    """Return the trace of a sweep.

    Raises
    ------
    InputError
        If the cluster is not simulated.
    """
    if (kind := load_cluster(cluster).kind) != "simulated":
        raise InputError(
            f"cluster {cluster}: a sweep is replayed on a simulated cluster, got kind {kind}; "
            "use --cluster simulated-h200"
        )
    return replay_missing.workload(study, cluster, rows, None, trace, on)


def replay_cells(cells: list[Job], on: str | None) -> None:
    """Replay the cells that do not serve as they are, the slowest first."""
    jobs = list({job.path: job for job in cells}.values())
    if not jobs:
        return
    planned = replay_missing.plan(jobs)
    missing = [job for job, run in zip(jobs, planned, strict=True) if run.state != "complete"]
    kept = len(jobs) - len(missing)
    print(
        f"{counted(len(jobs), 'cell')}: {kept} complete, {len(missing)} to replay", file=sys.stderr
    )
    missing.sort(key=lambda job: job.variant.speed)
    replay_missing.replay_all(missing, on=on)


def _write(cells: list[tuple[Job, str | None]], trace: Trace) -> Path:
    """Write table and summary of complete cells beside them and return their folder."""
    burst = bursts_of(trace)
    results = [(job, split, runs.read_run(job.path)) for job, split in cells]
    table = pd.concat(
        [_bursts(job, split, run, burst) for job, split, run in results], ignore_index=True
    )
    first = cells[0][0]
    fields = replayed([job for job, _ in cells], [run.manifest for _, _, run in results])
    fields |= {"schema": 2, "cells": [_cell(job, split, run) for job, split, run in results]}
    path = capacity_path(first.runs, first.study, first.cluster.name) / SUMMARY
    return write_tables(path, Summary, {TABLE: table}, fields)


def bursts_of(trace: Trace) -> np.ndarray:
    """Return the burst of each row of a trace, from 0, in the order of their times."""
    return np.unique(trace.timestamp_ms, return_inverse=True)[1]


def _bursts(job: Job, split: str | None, run: runs.Run, burst: np.ndarray) -> pd.DataFrame:
    """Return a row a burst: which cell it is of, burst, requests and good ones."""
    of_row = burst[run.requests["row"]]
    good = metrics.good(run.requests, job.study.slo)
    count = of_row.max() + 1
    return pd.DataFrame(
        {
            "configuration": job.configuration,
            "load": job.variant.speed,
            "split": pd.Series([split] * count, dtype="string"),
            "bursts": SPREAD if job.variant.spread else AT_ONCE,
            "repeat": np.int16(job.repeat),
            "burst": np.arange(count, dtype="int32"),
            "requests": np.bincount(of_row).astype("int32"),
            "good": np.bincount(of_row, good).astype("int32"),
        }
    )


def _cell(job: Job, split: str | None, run: runs.Run) -> Cell:
    slo, table = job.study.slo, run.requests
    summary, topology = metrics.summarize(table, slo), job.topology
    latencies = {
        key: Latency(**{name: _rounded(summary[key][name]) for name in Latency.model_fields})
        for key in ("ttft_ms", "itl_ms")
    }
    return Cell(
        configuration=job.configuration,
        load=job.variant.speed,
        split=split,
        bursts=SPREAD if job.variant.spread else AT_ONCE,
        repeat=job.repeat,
        workers={role: group.replicas for role, group in topology.groups.items()},
        gpus=topology.gpus,
        requests=summary["requests"]["expected"],
        good=summary["good"]["count"],
        late_first_token=int((table["ttft_ms"] > slo.ttft_ms).sum()),
        slow_pace=int((table["itl_ms"] > slo.itl_ms).sum()),
        one_token=summary["requests"]["one_token"],
        duration_s=_rounded(summary["duration_s"]),
        requests_sha256=run.manifest.files["requests.parquet"],
        **latencies,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


@dataclass(frozen=True)
class Sweep:
    """A capacity sweep that was read and verified; ``own`` is False for the published one."""

    study: Study
    summary: Summary
    table: pd.DataFrame
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
        """Whether the workload is generated."""
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
        """Cells of the load curves with bursts at once, each once."""
        kept = (None, AT_ONCE, 1)
        return [c for c in self.summary.cells if (c.split, c.bursts, c.repeat) == kept]

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
        return self.ratios_of(self.curves)

    def ratios_of(self, of: Curves) -> pd.DataFrame:
        """Return the ratios of loads of one reading of the clock, per GPU."""
        return of.ratios * (self.gpus[self.study.baseline] / self.gpus[self.study.comparison])

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
        changes = []
        for name, swept in self.summary.manifests.items():
            if name not in self.study.configurations:
                changes.append(f"{name} is no longer declared")
                continue
            folder = self.study.configuration_folder(name)
            if read_configuration(folder, name).digest != swept:
                changes.append(
                    f"deploy.yaml of {self.study.configurations[name].label} has changed"
                )
        if self.summary.slo != self.study.slo:
            changes.append("the bounds of a good request have changed")
        if {cell.load for cell in self.load_cells} != set(declared(self.study).loads):
            changes.append("other loads are declared")
        if {*self.split_cells} != {split.label for split in declared(self.study).splits}:
            changes.append("other splits are declared")
        if self.summary.trace.sha256 != self.study.trace.sha256:
            changes.append("it replayed another trace than the study's")
        return changes

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of the sweep."""
        summary = self.summary.model_dump(mode="json")
        return digest([summary, self.study.digest, self.changes, self.own])

    @cached_property
    def curves(self) -> Curves:
        """Shares, crossings, ratios and splits with bursts at once, with workload intervals."""
        return self._curves(AT_ONCE)

    @cached_property
    def spread_curves(self) -> Curves:
        """The same with every burst spread until the next; of splits nothing."""
        return self._curves(SPREAD)

    def _curves(self, bursts: Bursts) -> Curves:
        study, table = self.study, self.table

        def compute() -> Curves:
            return curves(
                table[(table["bursts"] == bursts) & (table["repeat"] == 1)],
                [*self.arms],
                [*self.split_cells] if bursts == AT_ONCE else [],
                self.deployed,
                arms=(study.baseline, study.comparison),
                targets=declared(study).good_shares,
                **study.statistics.model_dump(),
            )

        return remember(digest([self.key, source_digest()]), f"capacity {bursts}", compute)

    @cached_property
    def repeated(self) -> pd.DataFrame:
        """The load that keeps the headline's share, by repeat of the loads next to it.

        Columns ``bursts``, ``configuration``, ``repeat``, ``low``, ``high`` (what is known, as in
        `Curves`); loads that were not repeated stand with their first replay.
        """
        table = self.table[self.table["split"].isna()]
        counts = table.groupby(["bursts", "configuration", "load", "repeat"], as_index=False)[
            ["good", "requests"]
        ].sum()
        rows = []
        for (bursts, name), of in counts.groupby(["bursts", "configuration"], sort=False):
            shares = (of["good"] / of["requests"]).groupby([of["repeat"], of["load"]]).first()
            for repeat in range(1, of["repeat"].max() + 1):
                curve = shares[repeat].combine_first(shares[1]).sort_index()
                loads = curve.index.to_numpy(float)
                low, high = crossing(loads, curve.to_numpy(), self.headline)
                rows.append((bursts, name, repeat, low, high))
        return pd.DataFrame(rows, columns=["bursts", "configuration", "repeat", "low", "high"])


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
    if read.capacity is None:
        return None
    found = read_tables(
        read, cluster, folder, published, Path(FOLDER, SUMMARY), Summary, "kvab capacity"
    )
    if found is None:
        return None
    summary, (table,), own = found
    return Sweep(read, summary, table, own)
