"""What the simulation leaves out or takes for granted, replayed at other values.

Input: the study's key ``sensitivity``. Output, beside the capacity sweep's: ``sensitivity.parquet``
(a row a cell with its statistics), ``effects.parquet`` (comparison against baseline at each
setting) and ``sensitivity.json`` (what was replayed). `load_sensitivity` reads them, of this
machine's runs, else the published ones, as one object.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.clusters.base import Job
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs.campaign import OfRuns, Replayed, Scope, latencies_of
from kvab.stats.robustness import judge
from kvab.study import Sensitivity, Study, load_cluster, load_study
from kvab.study.variants import AS_DECLARED, Variant

TRANSFER, FRONTEND, CHUNK = "KV transfer", "frontend", "chunk"
REUSE = "reuse"
TIMES, AGAIN, ORDER = "step times", "again", "order"
SETTING = {  # the columns that say what each sweep varies
    TRANSFER: ["kv_transfer_gb_per_s"],
    FRONTEND: ["frontend_ms_per_1k_tokens"],
    CHUNK: ["chunk_tokens"],
    TIMES: ["prefill_time_ratio", "decode_time_ratio"],
    REUSE: ["reuse"],
    AGAIN: ["again"],
}


class Summary(Replayed):
    """The content of ``sensitivity.json``, schema 1."""

    schema_version: Literal[1] = Field(1, alias="schema")
    declared: Sensitivity


@dataclass(frozen=True)
class Cell:
    """One replay, in the sweep that it is of; ``variant`` names its values in full."""

    sweep: str
    job: Job
    variant: Variant


def plan_cells(scope: Scope) -> list[Cell]:
    """Return every cell; one with the values that are declared is the first normal run.

    Orders inside bursts are replayed of the baseline alone, whose noise they tell.

    Raises
    ------
    InputError
        If no sensitivity is declared.
    """
    study = scope.study
    normal_runs = {name: scope.job(name) for name in study.configurations}

    def cell(sweep: str, variant: Variant, name: str) -> Cell:
        normal, job = normal_runs[name], scope.job(name, variant)
        moved = variant.again or variant.reuse != 1
        same = not moved and (job.cluster, job.topology) == (normal.cluster, normal.topology)
        return Cell(sweep, normal if same else job, variant)

    def order(repeat: int) -> Cell:
        variant = Variant(counted=True) if repeat > study.repeats else AS_DECLARED
        return Cell(ORDER, scope.job(study.baseline, variant, repeat), variant)

    return [
        cell(sweep, variant, name)
        for sweep, variants in _variants(Answers.declared(study)).items()
        for variant in variants
        for name in _swept(study, sweep)
    ] + [order(repeat) for repeat in range(1, len(study.seeds) + 1)]


def _variants(asked: Sensitivity) -> dict[str, list[Variant]]:
    bandwidths = [np.inf if value == "free" else value for value in asked.kv_transfer_gb_per_s]
    return {
        TRANSFER: [Variant(kv_transfer_gb_per_s=value) for value in bandwidths],
        FRONTEND: [Variant(frontend_ms_per_1k_tokens=ms) for ms in asked.frontend_ms_per_1k_tokens],
        CHUNK: [Variant(chunk_tokens=tokens) for tokens in asked.chunk_tokens],
        TIMES: [
            Variant(prefill_time_ratio=prefill, decode_time_ratio=decode)
            for prefill, decode in product(asked.time_ratios, repeat=2)
        ],
        REUSE: [Variant(reuse=share) for share in asked.reuse],
        AGAIN: [Variant(again=again) for again in range(asked.again)],
    }


def _swept(study: Study, sweep: str) -> list[str]:
    """Return the configurations that a variant is replayed of."""
    if sweep == AGAIN:  # nothing but the KV router draws lots
        return [n for n, arm in study.configurations.items() if arm.factors.routing == "kv"]
    return [study.baseline, study.comparison] if sweep == TIMES else [*study.configurations]


def replay_sensitivity(
    study: str | Path | Study, cluster: str, rows: int | None = None, trace: Path | None = None,
    folder: Path = Path("runs"), on: str | None = None,
) -> Path:  # fmt: skip
    """Replay the cells that do not serve as they are, write the tables, return their folder.

    Cells that are complete are kept whenever it stops; the same command goes on from there.

    Raises
    ------
    InputError
        If the cluster is not simulated, or no sensitivity is declared.
    """
    study = load_study(study)
    asked = Answers.declared(study)
    scope = Scope.of(study, cluster, rows, trace, folder, on)
    cells = plan_cells(scope)
    scope.replay(cell.job for cell in cells)
    read = {path: runs.read_run(path) for path in dict.fromkeys(cell.job.path for cell in cells)}
    fields = Answers.fields([(cell.job, read[cell.job.path]) for cell in cells])
    summary = Summary(**fields, schema=1, declared=asked)
    return Answers(study, summary, True, *_tables(study, cells, read)).write(scope.folder)


def _tables(study: Study, cells: list[Cell], read: dict[Path, runs.Run]) -> list[pd.DataFrame]:
    """Return the statistics and the effects of complete cells."""
    rows, effects = [], []
    settings_of = defaultdict[tuple[str, Variant], dict[str, pd.DataFrame]](dict)
    for cell in cells:
        table = read[cell.job.path].requests
        rows.append(_row(cell, table))
        settings_of[cell.sweep, cell.variant][cell.job.configuration] = table
    settings = study.statistics.model_dump()
    for (sweep, variant), tables in settings_of.items():
        if {study.baseline, study.comparison} <= tables.keys():
            both = [tables[study.baseline], tables[study.comparison]]
            judged = judge(sweep, both, study.slo, study.margins, **settings)
            effects.append(judged.rename(columns={"choice": "sweep"}).assign(**_values(variant)))
    return [pd.DataFrame(rows), pd.concat(effects, ignore_index=True)]


def _values(variant: Variant) -> dict[str, float]:
    return {
        name: float(getattr(variant, name) or 0) for names in SETTING.values() for name in names
    }


def _row(cell: Cell, table: pd.DataFrame) -> dict[str, object]:
    slo = cell.job.study.slo
    summary = metrics.summarize(table, slo)
    return {
        "sweep": cell.sweep,
        "configuration": cell.job.configuration,
        "repeat": cell.job.repeat,
        **_values(cell.variant),
        "requests": summary["requests"]["expected"],
        "good_share": summary["good"]["share"],
        **latencies_of(summary),
    }


@dataclass(frozen=True)
class Answers(OfRuns[Summary, Sensitivity]):
    """A sensitivity: a row a cell with its statistics, and the effects at each setting."""

    cells: pd.DataFrame
    effects: pd.DataFrame

    KEY = "sensitivity"
    COMMAND = "kvab sensitivity"
    PLACE = Path("capacity/sensitivity.json")
    SUMMARY = Summary
    TABLES: ClassVar = {"cells": "sensitivity.parquet", "effects": "effects.parquet"}

    def fit(self, run: runs.RunManifest) -> bool:
        """Return whether they replayed what a run did, deployed and judged alike."""
        made, trace = self.summary, self.summary.trace
        return (
            (trace.sha256, trace.rows) == (run.trace.sha256, run.trace.rows)
            and made.manifests.get(run.configuration) == run.depends_on.get("deploy.yaml")
            and made.cluster == load_cluster(self.cluster).model_dump(mode="json")
            and made.slo == self.study.slo
        )

    @property
    def orders(self) -> pd.DataFrame:
        """Statistics of the runs of the baseline, a row an order of its bursts."""
        cells = self.of(ORDER)
        return cells[cells["configuration"] == self.study.baseline]

    def of(self, sweep: str) -> pd.DataFrame:
        """Return the cells of one sweep."""
        return self.cells[self.cells["sweep"] == sweep]

    def effects_of(self, sweep: str) -> pd.DataFrame:
        """Return the effect on the good share, indexed by the settings of one sweep."""
        rows = self.effects[self.effects["sweep"] == sweep]
        return rows[rows["metric"] == "good_share"].set_index(SETTING[sweep]).sort_index()


load_sensitivity = Answers.load
