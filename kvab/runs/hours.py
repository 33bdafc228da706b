"""Hours made of the trace's conversations: both main configurations replayed on each, and read.

Input: the study's key ``hours``. Output: ``runs/<study>/<cluster>/hours/``: ``hours.parquet`` (a
row for each made hour and configuration), ``hours.json`` (what was replayed, and the recorded hour)
and ``cells/``, a small file for each replay that is done, from which a stopped start goes on.
`load_hours` reads them, of this machine's runs, else the published ones, as one object.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

import kvab
from kvab.cache import write_beside
from kvab.clusters import open_cluster
from kvab.clusters.base import Job, Progress
from kvab.console import counted
from kvab.declarations import Declared, digest
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs import replay_missing
from kvab.runs.replay import plan_job
from kvab.study import Slo, Study, load_cluster, load_study, root
from kvab.study.declaration import Hours
from kvab.trace import Trace
from kvab.trace.conversations import COMMON_SHARE, Conversations, find_conversations, made_hour
from kvab.trace.describe import reusable_tokens

FOLDER, TABLE, SUMMARY = "hours", "hours.parquet", "hours.json"
# Metric and statistic of each effect that pages show; columns of the table are named alike.
EFFECTS = (("good_share", "mean"), ("ttft_ms", "mean"), ("itl_ms", "mean"), ("latency_ms", "mean"),
           ("ttft_ms", "p99"))  # fmt: skip


class Load(Declared):
    """What an hour brings; ``reusable_tokens`` are those of an unlimited cache."""

    requests: int
    prompt_tokens: int
    prompt_p50_tokens: float
    prompt_p99_tokens: float
    answer_tokens: int
    reusable_tokens: int
    burst_p95_requests: float
    largest_burst_requests: int

    @classmethod
    def of(cls, trace: Trace) -> Load:
        """Return the load of a trace."""
        bursts = np.unique(trace.timestamp_ms, return_counts=True)[1]
        p50, p99 = np.percentile(trace.input_tokens, [50, 99])
        return cls(
            requests=len(trace),
            prompt_tokens=int(trace.input_tokens.sum(dtype="int64")),
            prompt_p50_tokens=float(p50),
            prompt_p99_tokens=float(p99),
            answer_tokens=int(trace.output_tokens.sum(dtype="int64")),
            reusable_tokens=int(reusable_tokens(trace).sum(dtype="int64")),
            burst_p95_requests=float(np.percentile(bursts, 95)),
            largest_burst_requests=int(bursts.max()),
        )


class Cell(Load):
    """One made hour on one configuration, a row of the table; latencies null if none was served."""

    hour: int
    sha256: str
    configuration: str
    errors: int
    cached_tokens: int
    good: int
    ttft_ms_mean: float | None
    ttft_ms_p50: float | None
    ttft_ms_p90: float | None
    ttft_ms_p99: float | None
    itl_ms_mean: float | None
    itl_ms_p99: float | None
    latency_ms_mean: float | None


class Summary(Declared):
    """The content of ``hours.json``, schema 1."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    study_version: int
    cluster: dict[str, Any]
    trace: runs.RunTrace
    versions: dict[str, str]
    slo: Slo
    manifests: dict[str, str]
    seed: int
    hours: int
    conversations: int
    largest_conversation_requests: int
    recorded: Load
    table_sha256: str


@dataclass(frozen=True)
class Replayed:
    """One made hour to replay on the configuration of a job: number ``hour``, from 1."""

    job: Job
    conversations: Conversations
    seed: int
    hour: int

    @property
    def rows(self) -> int:
        """Requests to replay, about: a made hour has its own number."""
        return self.job.rows

    @property
    def path(self) -> Path:
        """The file that holds the cell; its name is the digest of all that the cell depends on."""
        made = {"hour": [self.seed, self.hour], "common": COMMON_SHARE, "kvab": kvab.__version__}
        judged = self.job.study.slo.model_dump()
        name = digest([self.job.configuration, self.job.depends_on(), made, judged])
        return hours_path(self.job) / "cells" / f"{name[:32]}.json"


def hours_path(job: Job) -> Path:
    """Return the folder of a cluster's made hours."""
    return job.runs / job.study.name / job.cluster.name / FOLDER


def declared(study: Study) -> Hours:
    """Return what the study declares of made hours.

    Raises
    ------
    InputError
        If it declares nothing.
    """
    if study.hours is None:
        path, fix = study.folder / "study.yaml", "declare how many hours to make"
        raise InputError(expected="a key hours", got="none", path=path, fix=fix)
    return study.hours


def replay_hours(
    study: Study, cluster: str, count: int | None = None, rows: int | None = None,
    trace: Path | None = None, folder: Path = Path("runs"),
) -> Path:  # fmt: skip
    """Replay the made hours that are missing, write their table, return its folder.

    Raises
    ------
    InputError
        If the cluster is not simulated, no hours are declared, or the trace has no conversations
        to draw from.
    """
    if (kind := load_cluster(cluster).kind) != "simulated":
        raise InputError(
            f"cluster {cluster}: made hours are replayed on a simulated cluster, got kind {kind}; "
            "use --cluster simulated-h200"
        )
    hours = declared(study)
    workload = replay_missing.workload(study, cluster, rows, None, trace, None)
    conversations = find_conversations(_first_rows(workload, rows))
    jobs = [
        plan_job(study, cluster, name, 1, rows, workload, root() / folder)
        for name in (study.baseline, study.comparison)
    ]
    cells = [
        Replayed(job, conversations, hours.seed, hour)
        for hour in range(1, (count or hours.count) + 1)
        for job in jobs
    ]
    missing = [cell for cell in cells if not cell.path.is_file()]
    print(
        f"{counted(len(conversations.rows), 'conversation')}, {counted(len(cells), 'replay')}: "
        f"{len(cells) - len(missing)} complete, {len(missing)} to do",
        file=sys.stderr,
    )
    if missing:
        missing[0].path.parent.mkdir(parents=True, exist_ok=True)
        replay_missing.side_by_side(missing, replay_hour)
    return write_tables(cells)


def _first_rows(trace: Trace, rows: int | None) -> Trace:
    return replace(
        trace,
        timestamp_ms=trace.timestamp_ms[:rows],
        input_tokens=trace.input_tokens[:rows],
        output_tokens=trace.output_tokens[:rows],
        hash_ids=trace.hash_ids[:rows],
    )


def replay_hour(cell: Replayed, on_progress: Progress) -> None:
    """Replay one made hour on one configuration and write its cell."""
    hour = made_hour(cell.conversations, [cell.seed, cell.hour])
    job = replace(cell.job, trace=hour, rows=len(hour))
    run = open_cluster(job.cluster).start(job)
    run.prepare()
    run.replay(on_progress)
    requests = run.collect().requests
    summary = metrics.summarize(requests, job.study.slo)
    latencies = {
        f"{key}_{name}": summary[key][name]
        for key in metrics.LATENCIES
        for name in ("mean", "p50", "p90", "p99")
    }
    content = Cell(
        **Load.of(hour).model_dump(),
        **{name: value for name, value in latencies.items() if name in Cell.model_fields},
        hour=cell.hour,
        sha256=hour.sha256,
        configuration=job.configuration,
        errors=summary["requests"]["errors"],
        cached_tokens=int(requests["cached_tokens"].sum()),
        good=summary["good"]["count"],
    )
    write_beside(cell.path, content.model_dump_json().encode())


def write_tables(cells: list[Replayed]) -> Path:
    """Write table and summary of complete cells and return their folder."""
    job, conversations = cells[0].job, cells[0].conversations
    read = [Cell.model_validate_json(cell.path.read_bytes()) for cell in cells]
    content = runs.parquet_bytes([pd.DataFrame([cell.model_dump() for cell in read])])
    summary = Summary(
        study=job.study.name,
        study_version=job.study.version,
        cluster=job.cluster.model_dump(mode="json"),
        trace=runs.RunTrace(
            name=job.trace.name,
            sha256=job.trace.sha256,
            synthetic=job.trace.synthetic,
            rows=job.rows,
            total_rows=len(job.trace),
        ),
        versions={"kvab": kvab.__version__, "python": platform.python_version(), **job.identity},
        slo=job.study.slo,
        manifests={cell.job.configuration: cell.job.recipe.digest for cell in cells},
        seed=cells[0].seed,
        hours=cells[-1].hour,
        conversations=len(conversations.rows),
        largest_conversation_requests=int(conversations.sizes.max()),
        recorded=Load.of(conversations.trace),
        table_sha256=hashlib.sha256(content).hexdigest(),
        **{"schema": 1},
    )
    text = json.dumps(summary.model_dump(mode="json", by_alias=True), indent=1) + "\n"
    path = hours_path(job)
    write_beside(path / TABLE, content)
    write_beside(path / SUMMARY, text.encode())
    return path


@dataclass(frozen=True)
class MadeHours:
    """Made hours that were read and verified."""

    study: Study
    summary: Summary
    table: pd.DataFrame

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Comparison minus baseline by hour; a column for each of `EFFECTS`, named alike."""
        shares = self.table["good"] / self.table["requests"]
        by_arm = self.table.assign(good_share_mean=shares).set_index(["configuration", "hour"])
        columns = [f"{metric}_{statistic}" for metric, statistic in EFFECTS]
        after, before = (by_arm.loc[name, columns]
                         for name in (self.study.comparison, self.study.baseline))  # fmt: skip
        return (after - before).astype(float)

    @property
    def key(self) -> str:
        """Digest of everything that a page shows of them."""
        return digest([self.summary.model_dump(mode="json"), self.study.digest])


def load_hours(
    study: str | Path | Study,
    cluster: str,
    folder: str | Path,
    published: str | Path = "book/published",
) -> MadeHours | None:
    """Return the made hours of a cluster in a folder of runs, else the published ones of its name.

    Without either, or where the study declares none, there is None.

    Raises
    ------
    InputError
        If their files do not belong together.
    """
    read = load_study(study)
    places = [
        root() / each / read.name / cluster / FOLDER / SUMMARY for each in (folder, published)
    ]
    path = next((each for each in places if each.is_file()), None)
    if read.hours is None or path is None:
        return None
    fix = "restore both, or run `kvab resample`"
    try:
        summary = Summary.model_validate_json(path.read_bytes())
        content = path.with_name(TABLE).read_bytes()
    except (OSError, ValueError) as error:  # pydantic's own is a ValueError
        got = str(error).splitlines()[0]
        raise InputError(expected="made hours", got=got, path=path, fix=fix) from None
    if hashlib.sha256(content).hexdigest() != summary.table_sha256:
        expected = f"sha256 {summary.table_sha256[:12]} of {SUMMARY}"
        path = path.with_name(TABLE)
        raise InputError(expected=expected, got="another", path=path, fix=fix)
    return MadeHours(read, summary, pd.read_parquet(io.BytesIO(content)))
