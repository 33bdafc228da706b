"""How far the simulation can be trusted: live runs against simulations of the same rows.

Input: the live runs of a study. Output: their simulated twins, kept beside them in one small table,
and the errors of the simulation with their intervals.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kvab import metrics, recipes, runs, summaries
from kvab.declare import digest
from kvab.errors import InputError
from kvab.evidence import Evidence, load_evidence
from kvab.metrics import LATENCIES
from kvab.results import remember, source_digest
from kvab.simulate import Simulator
from kvab.study import Simulated, load_study, root
from kvab.trace import Trace, burst_order

TABLE = Path("model-check") / "twins.parquet"
DECLARED, AS_SENT = "in file order", "in the order sent"
KEPT = ["row", "arrival_ms", "input_tokens", "output_tokens", "requested_output_tokens",
        *LATENCIES, "cached_tokens", "error"]  # fmt: skip
ROUNDED = {"ttft_ms": 1, "itl_ms": 3, "latency_ms": 1}


def make_twins(evidence: Evidence, trace: Trace, folder: Path) -> Path:
    """Simulate the rows of each live configuration's first run, and keep the twins beside it.

    Each is simulated twice: with the rows of a burst in the order of the run's file, and in the
    order in which AIPerf really sent them.

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
    parts = []
    for name, found in evidence.runs.items():
        run = found[0]
        print(f"simulating the rows of {name} on {evidence.cluster}", file=sys.stderr)
        declared = burst_order(trace.timestamp_ms[: len(run.requests)], run.manifest.seed)
        sent = run.requests.sort_values(["arrival_ms", "send_lag_ms"])["row"].to_numpy()
        for label, order in ((DECLARED, declared), (AS_SENT, sent)):
            twin = _simulate(run, trace, order)
            parts.append(twin[KEPT].round(ROUNDED).assign(configuration=name, order=label))
    path = folder / evidence.study.name / evidence.cluster / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.write_beside(path, runs.parquet_bytes(pd.concat(parts, ignore_index=True)))
    return path


def _simulate(run: runs.Run, trace: Trace, order: np.ndarray) -> pd.DataFrame:
    cluster = run.manifest.cluster
    profile = Simulated(
        kind="simulated", name=f"twin of {cluster['name']}", description="twin",
        hardware=cluster["hardware"], backend=cluster["backend"],
    )  # fmt: skip
    simulator = Simulator(profile)
    simulator.prepare()
    simulator.deploy(recipes.topology(recipes.read_configuration(run.path / "manifests")))
    simulator.replay(trace, order)
    return simulator.collect()[0]


@dataclass(frozen=True)
class Check:
    """Live runs and their simulated twins; ``own`` is False for the published ones."""

    live: Evidence
    twins: pd.DataFrame
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
        return digest([self.live.key, self.twins.to_json(), self.own])

    def twin(self, configuration: str, order: str) -> pd.DataFrame:
        """Return the simulated requests table of a configuration."""
        own = (self.twins["configuration"] == configuration) & (self.twins["order"] == order)
        return self.twins[own].sort_values("row", ignore_index=True)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """Every request: ``configuration``, ``row``, and each metric ``_live`` and ``_twin``."""
        parts = []
        for name in self.live.runs:
            live, twin = self.live.tables(name)[0], self.twin(name, DECLARED)
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
                "simulated": metrics.cached_share(self.twin(name, DECLARED)),
            }
            for name in self.live.runs
        }
        return pd.DataFrame.from_dict(rows, orient="index")


def errors(check: Check) -> pd.DataFrame:
    """Return the relative error of the simulation for each metric and statistic.

    Returns
    -------
    DataFrame
        ``configuration``, ``order``, ``metric``, ``statistic``, ``live``, ``simulated`` (ms; shares
        of 1), ``error`` (simulated over live minus 1; for the good share the difference) and its
        workload interval ``ci_low``, ``ci_high``.
    """
    from kvab.compare import compare

    study, lines = check.live.study, []
    for name in check.live.runs:
        for order in (DECLARED, AS_SENT):
            tables = [check.live.tables(name)[0]], [check.twin(name, order)]
            found = compare(*tables, study.slo, **study.statistics.model_dump())
            cells = [
                (key, stat, row) for key in LATENCIES for stat, row in found.metrics[key].items()
            ]
            for key, statistic, row in [*cells, ("good_share", "share", found.good_share)]:
                share = key == "good_share"
                names = ("difference", "ci_low", "ci_high") if share else (
                    "ratio", "ratio_ci_low", "ratio_ci_high")  # fmt: skip
                error, low, high = (
                    np.nan if row[each] is None else row[each] - (not share) for each in names
                )
                lines.append((name, order, key, statistic, row["baseline"], row["comparison"],
                              error, low, high))  # fmt: skip
    columns = ["configuration", "order", "metric", "statistic", "live", "simulated", "error",
               "ci_low", "ci_high"]  # fmt: skip
    return pd.DataFrame(lines, columns=columns)


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
            return Check(load_evidence(study, name, place), pd.read_parquet(path), own)
    return None
