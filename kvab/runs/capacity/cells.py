"""The capacity sweep: its cells replayed side by side, and the small table that pages read.

Input: the study's key ``capacity``. Output: ``runs/<study>/<cluster>/capacity/``: a run folder for
each cell that is not a normal run already, ``capacity.parquet`` (good requests of each cell and
burst) and ``capacity.json`` (what was replayed, and a summary of each cell).
"""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from kvab import runs
from kvab.clusters.base import Job
from kvab.console import counted
from kvab.declarations import Declared
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.runs import replay_missing
from kvab.runs.capacity import spread
from kvab.runs.replay import plan_job
from kvab.study import Slo, Study, load_cluster, load_study, root
from kvab.study.sweep import AS_DECLARED, Capacity, Variant
from kvab.trace import Trace

TABLE, SUMMARY = "capacity.parquet", "capacity.json"


class Latency(Declared):
    """Statistics of one latency of a cell, in ms; null where nothing was served."""

    mean: float | None
    p50: float | None
    p99: float | None


class Cell(Declared):
    """One cell of the sweep; ``split`` is null for the cells of the load curves."""

    configuration: str
    load: float
    split: str | None
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


class Summary(Declared):
    """The content of ``capacity.json``, schema 1."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    study_version: int
    cluster: dict[str, Any]
    trace: runs.RunTrace
    versions: dict[str, str]
    first: datetime
    last: datetime
    slo: Slo
    manifests: dict[str, str]
    table_sha256: str
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


def plan(
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

    sweep = declared(study)
    cells: list[tuple[Job, str | None]] = [
        (job(name, Variant(speed=load)), None)
        for name in study.configurations
        for load in sweep.loads
    ]
    groups = job(study.comparison, AS_DECLARED).topology.groups
    deployed = {role: group.replicas for role, group in groups.items()}
    for split in sweep.splits:
        changed = split.model_dump() != deployed
        variant = Variant(split=split) if changed else AS_DECLARED
        cells.append((job(study.comparison, variant), split.label))
    return cells


def sweep(
    study: Path, cluster: str, rows: int | None = None, trace: Path | None = None,
    folder: Path = Path("runs"), on: str | None = None,
) -> Path:  # fmt: skip
    """Replay the cells that do not serve as they are, write the sweep's table, return its folder.

    Cells that are complete are kept whenever it stops; the same command goes on from there.

    Raises
    ------
    InputError
        If the cluster is not simulated; see also `plan`.
    """
    if (kind := load_cluster(cluster).kind) != "simulated":
        raise InputError(
            f"cluster {cluster}: a sweep is replayed on a simulated cluster, got kind {kind}; "
            "use --cluster simulated-h200"
        )
    read = load_study(study)
    workload = replay_missing.workload(read, cluster, rows, None, trace, on)
    cells = plan(read, cluster, rows, workload, root() / folder)
    spreads = spread.plan(read, cluster, rows, workload, root() / folder)
    jobs = list({job.path: job for job in [*(job for job, _ in cells), *spreads]}.values())
    planned = replay_missing.plan(jobs)
    missing = [job for job, run in zip(jobs, planned, strict=True) if run.state != "complete"]
    kept = len(jobs) - len(missing)
    print(
        f"{counted(len(jobs), 'cell')}: {kept} complete, {len(missing)} to replay", file=sys.stderr
    )
    missing.sort(key=lambda job: job.variant.speed)  # the slowest first
    replay_missing.replay_all(missing, on=on)
    place = write_tables(cells)
    runs.write_beside(place / spread.TABLE, runs.parquet_bytes([spread.totals(spreads, workload)]))
    return place


def write_tables(cells: list[tuple[Job, str | None]]) -> Path:
    """Write table and summary of complete cells beside them and return their folder."""
    first = cells[0][0]
    found = [(job, split, runs.read_run(job.path)) for job, split in cells]
    table = pd.concat([_bursts(job, split, run) for job, split, run in found], ignore_index=True)
    content = runs.parquet_bytes([table])
    manifests = [run.manifest for _, _, run in found]
    summary = Summary(
        study=first.study.name,
        study_version=first.study.version,
        cluster=first.cluster.model_dump(mode="json"),
        trace=manifests[0].trace,
        versions=manifests[-1].versions,
        first=min(manifest.start for manifest in manifests),
        last=max(manifest.end for manifest in manifests),
        slo=first.study.slo,
        manifests={job.configuration: job.recipe.digest for job, _ in cells},
        table_sha256=hashlib.sha256(content).hexdigest(),
        cells=[_cell(job, split, run) for job, split, run in found],
        **{"schema": 1},
    )
    place = runs.capacity_path(first.runs, first.study, first.cluster.name)
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary.model_dump(mode="json", by_alias=True), indent=1) + "\n"
    runs.write_beside(place / TABLE, content)
    runs.write_beside(place / SUMMARY, text.encode())
    return place


def _bursts(job: Job, split: str | None, run: runs.Run) -> pd.DataFrame:
    """Return a row a burst: configuration, load, split, burst, requests and good ones."""
    burst = np.unique(run.requests["arrival_ms"], return_inverse=True)[1]
    good = metrics.good(run.requests, job.study.slo)
    return pd.DataFrame(
        {
            "configuration": job.configuration,
            "load": job.variant.speed,
            "split": pd.Series([split] * (burst.max() + 1), dtype="string"),
            "burst": np.arange(burst.max() + 1, dtype="int32"),
            "requests": np.bincount(burst).astype("int32"),
            "good": np.bincount(burst, good).astype("int32"),
        }
    )


def _cell(job: Job, split: str | None, run: runs.Run) -> Cell:
    slo, table = job.study.slo, run.requests
    found, topology = metrics.summarize(table, slo), job.topology
    latencies = {
        key: Latency(**{name: _rounded(found[key][name]) for name in Latency.model_fields})
        for key in ("ttft_ms", "itl_ms")
    }
    return Cell(
        configuration=job.configuration,
        load=job.variant.speed,
        split=split,
        workers={role: group.replicas for role, group in topology.groups.items()},
        gpus=topology.gpus,
        requests=found["requests"]["expected"],
        good=found["good"]["count"],
        late_first_token=int((table["ttft_ms"] > slo.ttft_ms).sum()),
        slow_pace=int((table["itl_ms"] > slo.itl_ms).sum()),
        one_token=found["requests"]["one_token"],
        duration_s=_rounded(found["duration_s"]),
        requests_sha256=run.manifest.files["requests.parquet"],
        **latencies,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
