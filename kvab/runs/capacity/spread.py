"""The trace's coarse clock: the outcome if each burst came evenly over its seconds, not at once.

Input: replays of the two main arms with bursts spread. Output: totals of every burst, a small table
kept beside the capacity sweep, and from it the verdicts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kvab import runs
from kvab.clusters.base import Job
from kvab.requests.metrics import LATENCIES, METRICS, Slo, good
from kvab.runs.replay import plan_job
from kvab.stats.bootstrap import Design, Replicates, Sample, block_bursts, mean, replicate
from kvab.stats.robustness import judged
from kvab.study import Study
from kvab.study.sweep import Variant
from kvab.trace import Trace

TABLE = "spread.parquet"
CHOICE = "bursts spread evenly until the next (replayed)"


def plan(study: Study, cluster: str, rows: int | None, trace: Trace, folder: Path) -> list[Job]:
    """Return the replays of baseline and comparison with every burst spread."""
    variant = Variant(spread=True)
    return [
        plan_job(study, cluster, name, 1, rows, trace, folder, variant)
        for name in (study.baseline, study.comparison)
    ]


def totals(jobs: list[Job], trace: Trace) -> pd.DataFrame:
    """Return a row a configuration and burst of the trace: sum and count of every metric.

    Columns ``configuration``, ``burst`` and, for each metric, ``<metric>_sum`` (ms, or good
    requests) and ``<metric>_count``.
    """
    burst = np.unique(trace.timestamp_ms, return_inverse=True)[1]
    return pd.concat(
        [_totals(job, runs.read_run(job.path).requests, burst) for job in jobs], ignore_index=True
    )


def _totals(job: Job, table: pd.DataFrame, burst: np.ndarray) -> pd.DataFrame:
    at = burst[table["row"]]
    bursts = int(at.max()) + 1
    columns = {"configuration": job.configuration, "burst": np.arange(bursts, dtype="int32")}
    for key, values in _values(table, job.study.slo).items():
        found = Sample.of(values, at, bursts)
        columns[f"{key}_sum"] = found.sums.astype("float32")
        columns[f"{key}_count"] = found.counts.astype("int32")
    return pd.DataFrame(columns)


def _values(table: pd.DataFrame, slo: Slo) -> dict[str, np.ndarray]:
    answered = table["error"].isna()
    latencies = {key: table[METRICS[key].column].where(answered).to_numpy() for key in LATENCIES}
    return latencies | {"good_share": good(table, slo).astype(float)}


def verdicts(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the verdicts with bursts spread, as rows of `kvab.stats.robustness.choices`."""
    arms = [
        table[table["configuration"] == name].sort_values("burst")
        for name in (study.baseline, study.comparison)
    ]
    empty = np.empty(0)
    samples = {
        key: [
            Sample(empty, empty.astype(int), *(arm[f"{key}_{part}"].to_numpy(float)
                                               for part in ("sum", "count")))
            for arm in arms
        ]
        for key in METRICS
    }  # fmt: skip
    apart = [pair[1].influences() - pair[0].influences() for pair in samples.values()]
    settings = study.statistics.model_dump()
    design = Design(len(arms[0]), block_bursts(np.column_stack(apart)), **settings)

    def means(pair: list[Sample]) -> Replicates:
        return replicate(
            design,
            lambda weights: np.stack([mean(arm, weights) for arm in pair], axis=1)[..., None],
        )

    found = {key: means(pair) for key, pair in samples.items()}
    return pd.DataFrame(judged(CHOICE, found, study.margins))
