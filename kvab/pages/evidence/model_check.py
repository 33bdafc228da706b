"""How far the simulation can be trusted: live runs against simulations of the same rows.

Input: the live runs of a study. Output: their simulated twins, kept beside them in one small table,
and the errors of the simulation with their intervals.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kvab import runs
from kvab.cache import remember, source_digest
from kvab.clusters.simulated import simulate, versions
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES
from kvab.runs import summaries
from kvab.study import Simulated, load_study, recipes, root
from kvab.trace import Trace, burst_order

TABLE, ORDERS = Path("model-check") / "twins.parquet", Path("model-check") / "orders.parquet"
FILE, SENT, SHORT = "file", "sent", "shortest first"
SHUFFLES = 8
KEPT = ["row", "arrival_ms", "input_tokens", "output_tokens", "requested_output_tokens",
        *LATENCIES, "cached_tokens", "error"]  # fmt: skip
ROUNDED = {"ttft_ms": 1, "itl_ms": 3, "latency_ms": 1}


def make_twins(evidence: Evidence, trace: Trace, folder: Path) -> Path:
    """Simulate the rows of each live configuration's first run, and keep the twins beside it.

    The twin proper has the rows of a burst in the order of the run's file. The same rows are also
    simulated in the order in which AIPerf sent them, with the shortest prompts of a burst first
    (a frontend that reads prompts side by side has those first), and in seeded shuffles: of these
    only the statistics are kept, to tell what the order alone does.

    Raises
    ------
    InputError
        If the runs are of another trace.
    """
    if trace.sha256 != evidence.manifest.trace.sha256:
        raise InputError(
            f"{trace.path}: expected the trace of the runs ({evidence.manifest.trace.name}), got "
            f"another; name that trace with --trace"
        )
    jobs = [
        (found[0], trace, label, order)
        for found in evidence.runs.values()
        for label, order in _orders(found[0], trace).items()
    ]
    print(f"simulating the same rows: {len(jobs)} short replays", file=sys.stderr)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("fork")) as pool:
        tables = [*pool.map(_simulate, jobs)]
    twins, told = [], []
    for (run, _, label, _), table in zip(jobs, tables, strict=True):
        name, found = run.manifest.configuration, metrics.summarize(table, evidence.study.slo)
        if label == FILE:
            twins.append(table[KEPT].round(ROUNDED).assign(configuration=name))
        told += [
            {"configuration": name, "order": label, "metric": key, "statistic": each,
             "value": found[key][each]}
            for key in LATENCIES for each in metrics.COMPARED
        ]  # fmt: skip
        told.append({"configuration": name, "order": label, "metric": "good_share",
                     "statistic": "share", "value": found["good"]["share"]})  # fmt: skip
    place = folder / evidence.study.name / evidence.cluster
    (place / TABLE).parent.mkdir(parents=True, exist_ok=True)
    runs.write_beside(place / ORDERS, runs.parquet_bytes([pd.DataFrame(told)]))
    runs.write_beside(place / TABLE, runs.parquet_bytes([pd.concat(twins, ignore_index=True)]))
    return place / TABLE


def _orders(run: runs.Run, trace: Trace) -> dict[str, np.ndarray]:
    """Return rows in sending order, by label."""
    at_ms = trace.timestamp_ms[: len(run.requests)]
    sent = run.requests.sort_values(["arrival_ms", "send_lag_ms"])["row"].to_numpy()
    shuffled = {f"shuffle {n}": burst_order(at_ms, n) for n in range(1, SHUFFLES + 1)}
    short = np.lexsort((trace.input_tokens[: len(at_ms)], at_ms))
    return {FILE: burst_order(at_ms, run.manifest.seed), SENT: sent, SHORT: short} | shuffled


def _simulate(job: tuple[runs.Run, Trace, str, np.ndarray]) -> pd.DataFrame:
    run, trace, _, order = job
    cluster = run.manifest.cluster
    profile = Simulated(
        kind="simulated", name=f"twin of {cluster['name']}", description="twin",
        hardware=cluster["hardware"], backend=cluster["backend"],
    )  # fmt: skip
    versions(profile)  # or the error that says what is missing
    topology = recipes.topology(recipes.read_configuration(run.path / "manifests"))
    return simulate(profile, topology, trace, order)[0]


@dataclass(frozen=True)
class Check:
    """Live runs and their simulated twins; ``own`` is False for the published ones."""

    live: Evidence
    twins: pd.DataFrame
    orders: pd.DataFrame
    own: bool

    @property
    def simulated(self) -> bool:
        """Not as a whole: its figures name both sides."""
        return False

    @property
    def synthetic(self) -> bool:
        """Whether the workload is made up."""
        return self.live.synthetic

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of the check."""
        return digest([self.live.key, self.twins.to_json(), self.orders.to_json(), self.own])

    def twin(self, configuration: str) -> pd.DataFrame:
        """Return the simulated requests table of a configuration; it sends without a lag."""
        own = self.twins[self.twins["configuration"] == configuration]
        return own.sort_values("row", ignore_index=True).assign(send_lag_ms=0.0)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every request: ``configuration``, ``row``, and each metric ``_live`` and ``_twin``."""
        parts = []
        for name in self.live.runs:
            live, twin = self.live.tables(name)[0], self.twin(name)
            both = live.merge(twin, on="row", suffixes=("_live", "_twin"))
            parts.append(both.assign(configuration=name))
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def errors(self) -> pd.DataFrame:
        """Errors of the simulation, see `errors`."""
        return remember(digest([self.key, source_digest()]), "model-check", lambda: errors(self))

    @cached_property
    def reuse(self) -> pd.DataFrame:
        """Share of prompt tokens from cache: indexed by configuration, ``live``, ``simulated``."""
        rows = {
            name: {
                "live": summaries.reuse(self.live.runs[name][0]),
                "simulated": metrics.cached_share(self.twin(name)),
            }
            for name in self.live.runs
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def errors(check: Check) -> pd.DataFrame:
    """Return the relative error of the simulation for each metric and statistic.

    Returns
    -------
    DataFrame
        ``configuration``, ``metric``, ``statistic``, ``live``, ``simulated`` (ms; shares of 1),
        ``error`` (simulated over live minus 1; for the good share the difference) and its workload
        interval ``ci_low``, ``ci_high``; ``sent`` (the error in the order sent), ``centre``,
        ``least`` and ``most`` (mean over file order and shuffles; ends over all orders).
    """
    from kvab.stats.compare import compare

    study, lines = check.live.study, []
    for name in check.live.runs:
        tables = [check.live.tables(name)[0]], [check.twin(name)]
        found = compare(*tables, study.slo, **study.statistics.model_dump())
        cells = [(key, *of) for key in LATENCIES for of in found.metrics[key].statistics.items()]
        for key, statistic, row in [*cells, ("good_share", "share", found.good.mean)]:
            share = key == "good_share"
            ends = row.difference if share else row.ratio
            low, high = ends.low - (not share), ends.high - (not share)
            live = row.baseline
            off = _values(check, name, key, statistic)
            off = off - live if share else off / live - 1
            shuffled = off.drop([SENT, SHORT], errors="ignore")
            lines.append(
                {"configuration": name, "metric": key, "statistic": statistic, "live": live,
                 "simulated": row.comparison, "error": off[FILE], "ci_low": low,
                 "ci_high": high, "sent": off[SENT], "centre": shuffled.mean(),
                 "least": off.min(), "most": off.max()}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _values(check: Check, configuration: str, metric: str, statistic: str) -> pd.Series:
    """Return the simulated value by order."""
    found = check.orders
    own = (found["configuration"] == configuration) & (found["metric"] == metric)
    return found[own & (found["statistic"] == statistic)].set_index("order")["value"]


def load_check(
    study: str | Path, cluster: str, folder: str | Path, published: str | Path = "book/published"
) -> Check | None:
    """Return the check of a live cluster in a folder of runs, else the published one, if any."""
    read = load_study(study)
    places = [(root() / folder, cluster)]
    public = root() / published
    places += [
        (public, path.parents[1].name) for path in sorted(public.glob(f"{read.name}/*/{TABLE}"))
    ]
    for place, name in places:
        path = place / read.name / name / TABLE
        if path.is_file():
            own = not path.resolve().is_relative_to(public.resolve())
            orders = pd.read_parquet(place / read.name / name / ORDERS)
            return Check(load_evidence(study, name, place), pd.read_parquet(path), orders, own)
    return None
