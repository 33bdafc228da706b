"""The capacity sweep: its cells replayed side by side, and the small tables that pages read.

Input: the study's key ``capacity``. Output: ``runs/<study>/<cluster>/capacity/``: a run folder for
each cell that is not a normal run already, ``capacity.parquet`` (good requests of each cell and
burst), ``bounds.parquet``, ``best.parquet`` and ``costs.parquet`` (every load at other bounds of a
good request) and ``capacity.json`` (what was replayed, and a summary of each cell). Loads are swept
under both readings of the trace's clock, if it has bursts: a burst's requests at once, and spread
evenly until the next burst; the two main configurations are repeated at the loads next to a
crossing. `load_sweep` reads the tables, of this machine's runs, else the published ones, as one
object.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from kvab.cache import remember, source_digest
from kvab.clusters.base import Job
from kvab.declarations import Declared, Json, digest
from kvab.requests import metrics
from kvab.runs import folder as runs
from kvab.runs.campaign import OfRuns, Replayed, Scope
from kvab.stats.bootstrap import Design
from kvab.stats.crossings import Curves, at_bounds, crossing, curves, layouts
from kvab.study import Capacity, Study, load_study
from kvab.study.variants import Variant

Bursts = Literal["at once", "spread"]
AT_ONCE: Bursts = "at once"
SPREAD: Bursts = "spread"
Labelled = tuple[Job, str | None]  # a cell, and the label of its layout
Result = tuple[Job, str | None, runs.Run]


class Latency(Declared):
    """Statistics of one latency of a cell, in ms; null where nothing was served."""

    mean: float | None
    p50: float | None
    p99: float | None


class Cell(Declared):
    """One cell of the sweep; ``split`` is null for the cells of the load curves.

    Else it names the layout of the workers, such as 6P2D or TP4. ``bursts`` is how the requests of
    a burst come, ``repeat`` which order of them is replayed.
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
    def gpu_hours_spent(self) -> float:
        """GPU-hours of the replay, from the first sending to the last answer."""
        return self.gpus * (self.duration_s or np.inf) / 3600

    @property
    def gpu_hours(self) -> float:
        """GPU-hours for each thousand good requests; infinite without one."""
        return self.gpu_hours_spent / (self.good / 1000) if self.good else np.inf


class Summary(Replayed):
    """The content of ``capacity.json``, schema 2."""

    schema_version: Literal[2] = Field(2, alias="schema")
    cells: list[Cell]


def plan_cells(scope: Scope) -> list[Labelled]:
    """Return every cell as a job, with the label of its layout or None.

    A cell that changes nothing is the first normal run of its configuration.

    Raises
    ------
    InputError
        If no sweep is declared, or a layout does not fit.
    """
    study, swept = scope.study, Sweep.declared(scope.study)
    cells: list[Labelled] = [
        (scope.job(name, Variant(speed=load, spread=spread)), None)
        for name in study.configurations
        for load in swept.loads
        for spread in (False, True)[: 1 + scope.bursty]
    ]
    layouts = [(study.comparison, Variant(split=split), split.label) for split in swept.splits]
    layouts += [
        (name, Variant(tensor_parallel=gpus), f"TP{gpus}")
        for name, arm in study.configurations.items()
        for gpus in swept.tensor_parallel
        if arm.factors.split == "aggregated"
    ]
    for load in swept.layout_loads:
        for name, variant, label in layouts:
            job = scope.job(name, replace(variant, speed=load))
            deployed = scope.job(name, Variant(speed=load))
            cells.append((deployed if job.topology == deployed.topology else job, label))
    return cells


def plan_repeats(scope: Scope, cells: list[Labelled]) -> list[Labelled]:
    """Return further repeats of the main configurations at the loads next to their crossing.

    The crossing is that of the headline's good share; its cells must be complete. Of a trace
    without bursts nothing is repeated: there is one order.
    """
    study, swept = scope.study, Sweep.declared(scope.study)
    repeats: list[Labelled] = []
    for name in (study.baseline, study.comparison):
        for spread in (False, True) if scope.bursty else ():
            curve = sorted(
                (job.variant.speed, job)
                for job, split in cells
                if (job.configuration, job.variant.spread, split) == (name, spread, None)
            )
            kept = [metrics.good(runs.read_run(job.path).requests, study.slo).mean()
                    >= swept.headline for _, job in curve]  # fmt: skip
            last = max((n for n, enough in enumerate(kept) if enough), default=0)
            repeats += [
                (scope.job(name, job.variant, repeat), None)
                for _, job in curve[last : last + 2]
                for repeat in range(2, swept.repeats + 1)
            ]
    return repeats


def replay_sweep(
    study: str | Path | Study, cluster: str, rows: int | None = None, trace: Path | None = None,
    folder: Path = Path("runs"), on: str | None = None,
) -> Path:  # fmt: skip
    """Replay the cells that do not serve as they are, write the sweep's table, return its folder.

    Cells that are complete are kept whenever it stops; the same command goes on from there.

    Raises
    ------
    InputError
        If the cluster is not simulated; see also `plan_cells`.
    """
    scope = Scope.of(load_study(study), cluster, rows, trace, folder, on)
    cells = plan_cells(scope)
    scope.replay(job for job, _ in cells)
    repeats = plan_repeats(scope, cells)
    scope.replay(job for job, _ in repeats)
    results = [(job, split, runs.read_run(job.path)) for job, split in [*cells, *repeats]]
    table = pd.concat([_bursts(*result, scope.burst) for result in results], ignore_index=True)
    fields = Sweep.fields([(job, run) for job, _, run in results])
    summary = Summary(**fields, schema=2, cells=[_cell(*result) for result in results])
    swept = Sweep(scope.study, summary, True, table)
    return replace(swept, **_judged(swept, results, scope.burst)).write(scope.folder)


def _judged(swept: Sweep, results: list[Result], burst: np.ndarray) -> dict[str, pd.DataFrame]:
    """Return the tables of every load, bursts at once, at every two bounds that are declared."""
    asked, tables = Sweep.declared(swept.study), defaultdict[float, dict[str, pd.DataFrame]](dict)
    if not asked.ttft_ms:
        return {}
    for job, split, run in results:
        if not (split or job.variant.spread or job.repeat > 1):
            tables[job.variant.speed][job.configuration] = run.requests
    hours = defaultdict[float, dict[str, float]](dict)
    for cell in swept.load_cells:
        hours[cell.load][cell.configuration] = cell.gpu_hours_spent
    burst = burst[: swept.summary.trace.rows]
    design = Design(burst.max() + 1, swept.curves.block_bursts, **swept.settings)
    parts = {load: at_bounds(of, hours[load], burst, asked.ttft_ms, asked.itl_ms, design)
             for load, of in tables.items()}  # fmt: skip
    made = (
        pd.concat({load: part[n] for load, part in parts.items()}, names=["load", None])
        .reset_index("load")
        .reset_index(drop=True)
        for n in range(3)
    )
    return dict(zip(("bounds", "best", "costs"), made, strict=True))


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
class Sweep(OfRuns[Summary, Capacity]):
    """A capacity sweep.

    ``table`` has the good requests of each cell and burst; ``bounds``, ``best`` and ``costs`` are
    as `kvab.stats.crossings.at_bounds` returns them, of each load with bursts at once.
    """

    table: pd.DataFrame
    bounds: pd.DataFrame | None = None
    best: pd.DataFrame | None = None
    costs: pd.DataFrame | None = None

    KEY = "capacity"
    COMMAND = "kvab capacity"
    PLACE = Path("capacity/capacity.json")
    SUMMARY = Summary
    TABLES: ClassVar = {"table": "capacity.parquet", "bounds": "bounds.parquet",
                        "best": "best.parquet", "costs": "costs.parquet"}  # fmt: skip

    @property
    def headline(self) -> float:
        """The good share at which the study compares loads."""
        return self.declared(self.study).headline

    @property
    def settings(self) -> Json:
        """The level, the resamples and the seed of its intervals."""
        return self.study.statistics.model_dump()

    @property
    def load_cells(self) -> list[Cell]:
        """Cells of the load curves with bursts at once, each once."""
        kept = (None, AT_ONCE, 1)
        return [c for c in self.summary.cells if (c.split, c.bursts, c.repeat) == kept]

    @property
    def bursty(self) -> bool:
        """Whether bursts were also replayed spread; a trace without any has one reading."""
        return any(cell.bursts == SPREAD for cell in self.summary.cells)

    @cached_property
    def layouts(self) -> pd.DataFrame:
        """Every layout of the workers: a row for each ``load``, ``configuration`` and ``layout``.

        Columns are those of `crossings.layouts`, with differences from the comparison as it is
        deployed, and of each cell: ``deployed`` (whether it is the layout of ``deploy.yaml``),
        ``late`` and ``slow`` (shares of requests that miss a bound), mean ``ttft_ms``, ``itl_ms``.
        """
        own = {cell.configuration: cell.workers for cell in self.load_cells}
        index = ["load", "configuration", "layout"]
        columns = [*index, "deployed", "late", "slow", "ttft_ms", "itl_ms"]
        rows = [
            (cell.load, cell.configuration, cell.split, cell.workers == own[cell.configuration],
             cell.late_first_token / cell.requests, cell.slow_pace / cell.requests,
             cell.ttft_ms.mean, cell.itl_ms.mean)
            for cell in self.summary.cells if cell.split
        ]  # fmt: skip
        cells = pd.DataFrame(rows, columns=columns).set_index(index)
        if cells.empty:
            return cells.assign(share=[])
        of_load, reference = {}, self.study.comparison
        for load, table in self.table[self.table["split"].notna()].groupby("load"):
            at = cells.loc[load]
            deployed = [name for name in at.index[at["deployed"]] if name[0] == reference]
            of_load[load] = layouts(table, deployed[0] if deployed else None, **self.settings)
        return cells.join(pd.concat(of_load, names=["load"]))

    def best_layouts(self, *by: str) -> pd.DataFrame:
        """Return the rows of `layouts` with most good requests, of each group by its levels."""
        return self.layouts.loc[self.layouts.groupby([*by], sort=False)["share"].idxmax()]

    @cached_property
    def gpus(self) -> dict[str, int]:
        """GPUs of each configuration."""
        return {cell.configuration: cell.gpus for cell in self.load_cells}

    @property
    def changes(self) -> list[str]:
        """What differs between the declarations now and those that were replayed."""
        changes, now = super().changes, self.declared(self.study)
        if {cell.load for cell in self.load_cells} != set(now.loads):
            changes.append("other loads are declared")
        labels = {split.label for split in now.splits} | {f"TP{n}" for n in now.tensor_parallel}
        swept = {(cell.load, cell.split) for cell in self.summary.cells if cell.split}
        if swept != {*product(now.layout_loads, labels)}:
            changes.append("other layouts of the workers are declared")
        return changes

    @cached_property
    def curves(self) -> Curves:
        """Shares, crossings and ratios with bursts at once, with workload intervals."""
        return self._curves(AT_ONCE)

    @property
    def readings(self) -> dict[Bursts, Curves]:
        """The curves of each reading of the clock: at once and, if there are bursts, spread."""
        return {AT_ONCE: self.curves} | ({SPREAD: self._curves(SPREAD)} if self.bursty else {})

    def _curves(self, bursts: Bursts) -> Curves:
        """Return the curves of one reading of the clock; ratios are of loads per GPU."""
        study, table = self.study, self.table

        def compute() -> Curves:
            first = (table["bursts"] == bursts) & (table["repeat"] == 1)
            made = curves(
                table[first & table["split"].isna()],
                [*self.arms],
                arms=(study.baseline, study.comparison),
                targets=self.declared(study).good_shares,
                **self.settings,
            )
            per_gpu = self.gpus[study.baseline] / self.gpus[study.comparison]
            return replace(made, ratios=made.ratios * per_gpu)

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


load_sweep = Sweep.load
