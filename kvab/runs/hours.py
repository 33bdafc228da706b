"""Hours made of the trace's conversations: both main configurations replayed on each, and read.

Input: the study's key ``hours``. Output: ``runs/<study>/<cluster>/hours/``: ``hours.parquet`` (a
row for each made hour and configuration), ``hours.json`` (what they depend on, and what the
recorded hour brings) and ``cells/``, a small file for each replay that is done, from which a
stopped start goes on. `load_hours` reads them, of this machine's runs, else the published ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.cache import write_beside
from kvab.clusters import open_cluster
from kvab.clusters.base import Job, Progress
from kvab.declarations import digest
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs.campaign import Campaign, Scope, announce, latencies_of, side_by_side
from kvab.runs.campaign import Summary as Tables
from kvab.study import Hours, Slo, Study
from kvab.trace.conversations import COMMON_SHARE, Conversations, find_conversations, made_hour
from kvab.trace.reading import Trace, reusable_tokens

# Metric and statistic of each effect that pages show; columns of the table are named alike.
EFFECTS = (("good_share", "mean"), ("ttft_ms", "mean"), ("itl_ms", "mean"), ("latency_ms", "mean"),
           ("ttft_ms", "p99"))  # fmt: skip
# Of what a run depends on, if made hours are to fit it.
SAME = ("deploy.yaml", "trace", "rows", "kv_transfer_gb_per_s", "frontend_ms_per_1k_tokens")


class Summary(Tables):
    """The content of ``hours.json``, schema 1; ``recorded`` is as `load_of` returns it."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    cluster: str
    depends_on: dict[str, dict[str, Any]]
    slo: Slo
    seed: int
    hours: int
    conversations: int
    recorded: dict[str, float]


@dataclass(frozen=True)
class Cell:
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
        made = [self.seed, self.hour, COMMON_SHARE, self.job.study.slo.model_dump()]
        name = digest([self.job.configuration, self.job.depends_on(), made])
        folder = self.job.runs / self.job.study.name / self.job.cluster.name
        return folder / MadeHours.PLACE.with_name("cells") / f"{name[:32]}.json"


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
    asked = MadeHours.declared(study)
    scope = Scope.of(study, cluster, rows, trace, folder)
    conversations = find_conversations(scope.trace.take(np.arange(len(scope.trace))[:rows]))
    jobs = [scope.job(name) for name in (study.baseline, study.comparison)]
    hours = range(1, (count or asked.count) + 1)
    cells = [Cell(job, conversations, asked.seed, hour) for hour in hours for job in jobs]
    missing = [cell for cell in cells if not cell.path.is_file()]
    announce(len(cells), len(missing))
    if missing:
        side_by_side(missing, replay_hour)
    summary = Summary(
        study=study.name,
        cluster=cluster,
        depends_on={job.configuration: job.depends_on() for job in jobs},
        slo=study.slo,
        seed=asked.seed,
        hours=len(hours),
        conversations=len(conversations.rows),
        recorded=load_of(conversations.trace),
        schema=1,
    )
    table = pd.DataFrame([json.loads(cell.path.read_bytes()) for cell in cells])
    return MadeHours(study, summary, True, table).write(scope.folder)


def replay_hour(cell: Cell, on_progress: Progress) -> None:
    """Replay one made hour on one configuration and write its cell, a row of the table."""
    hour = made_hour(cell.conversations, [cell.seed, cell.hour])
    job = replace(cell.job, trace=hour, rows=len(hour))
    run = open_cluster(job.cluster).start(job)
    run.prepare()
    run.replay(on_progress)
    requests = run.collect().requests
    assert requests is not None  # only diagnostics may lack them
    summary = metrics.summarize(requests, job.study.slo)
    row = {
        "hour": cell.hour,
        "sha256": hour.sha256,
        "configuration": job.configuration,
        **load_of(hour),
        "errors": summary["requests"]["errors"],
        "cached_tokens": int(requests["cached_tokens"].sum()),
        "good": summary["good"]["count"],
        **latencies_of(summary),
    }
    write_beside(cell.path, json.dumps(row).encode())


def load_of(trace: Trace) -> dict[str, float]:
    """Return what an hour brings: requests, prompts, answers, reuse and bursts."""
    bursts = np.unique(trace.timestamp_ms, return_counts=True)[1]
    return {
        "requests": len(trace),
        "prompt_tokens": int(trace.input_tokens.sum()),
        "median_prompt_tokens": float(np.median(trace.input_tokens)),
        "p99_prompt_tokens": float(np.percentile(trace.input_tokens, 99)),
        "answer_tokens": int(trace.output_tokens.sum()),
        "reusable_tokens": int(reusable_tokens(trace).sum()),
        "p95_burst_requests": float(np.percentile(bursts, 95)),
        "largest_burst_requests": int(bursts.max()),
    }


@dataclass(frozen=True)
class MadeHours(Campaign[Summary, Hours]):
    """Made hours; ``table`` has a row for each of them and configuration."""

    table: pd.DataFrame

    KEY = "hours"
    COMMAND = "kvab resample"
    PLACE = Path("hours/hours.json")
    SUMMARY = Summary
    TABLES: ClassVar = {"table": "hours.parquet"}

    @property
    def cluster(self) -> str:
        """Name of the cluster that was simulated."""
        return self.summary.cluster

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Comparison minus baseline by hour; a column for each of `EFFECTS`, named alike."""
        shares = self.table["good"] / self.table["requests"]
        by_arm = self.table.assign(good_share_mean=shares).set_index(["configuration", "hour"])
        by_arm = by_arm[[f"{metric}_{statistic}" for metric, statistic in EFFECTS]].astype(float)
        return by_arm.loc[self.study.comparison] - by_arm.loc[self.study.baseline]

    def fit(self, run: runs.RunManifest) -> bool:
        """Return whether they were made of what a run replayed, deployed and judged alike."""
        made = self.summary.depends_on.get(run.configuration, {})
        same = self.cluster == run.cluster["name"] and all(
            made.get(key) == run.depends_on.get(key) for key in SAME
        )
        return same and self.summary.slo == self.study.slo


load_hours = MadeHours.load
