"""The simulated twins of live runs: the same rows, in several orders inside bursts.

Input: a cluster's live runs and their trace. Output: ``model-check/`` beside the runs: the twins'
requests, the statistics of every order, and how well each speed of the frontend fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.cache import write_beside
from kvab.clusters.base import Progress
from kvab.clusters.simulated import simulate
from kvab.clusters.simulated import versions as simulator_versions
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES
from kvab.runs.campaign import side_by_side
from kvab.runs.folder import Run, parquet_bytes
from kvab.study import Simulated, Study
from kvab.study.manifests import read_configuration
from kvab.study.topology import read_topology
from kvab.trace.reading import Trace, burst_order

FOLDER = Path("model-check")
TABLE, ORDERS, FITS = (FOLDER / f"{name}.parquet" for name in ("twins", "orders", "fits"))
FILE, SENT, SHORT, PAIRS = "file", "sent", "shortest first", "read two at once"
CHOSEN = [SENT, SHORT, PAIRS]  # orders that stand for something, apart from file and shuffles
SHUFFLES, FITTED = 8, 2  # shuffles of every twin, and those in which the frontend is fitted
SHUFFLED = [f"shuffle {n}" for n in range(1, SHUFFLES + 1)]
IN_FITS = [FILE, *SHUFFLED[:FITTED]]
NEAR = (0.8, 1.25)  # simulated over live TTFT of a request that is within a quarter
KEPT = ["row", "arrival_ms", "input_tokens", "output_tokens", "requested_output_tokens",
        *LATENCIES, "cached_tokens", "error"]  # fmt: skip
ROUNDED = {"ttft_ms": 1, "itl_ms": 3, "latency_ms": 1}


@dataclass(frozen=True)
class Twin:
    """A live run's rows, to be simulated in an order and with a speed of the frontend.

    That speed is the run's own where the profile is ``declared``.
    """

    run: Run
    trace: Trace
    label: str
    order: np.ndarray
    profile: Simulated
    declared: bool

    @property
    def rows(self) -> int:
        """Requests that are replayed."""
        return len(self.order)


def make_twins(
    live: Mapping[str, Sequence[Run]], study: Study, trace: Trace, folder: Path
) -> Path:  # fmt: skip
    """Simulate the rows of each configuration's first live run; keep what pages need in ``folder``.

    The twin proper has the rows of a burst in the order of the run's file. The same rows are also
    simulated in the order in which AIPerf sent them, with the shortest prompts of a burst first
    (a frontend that reads all prompts side by side has those first), in the order in which a
    frontend that reads two at once has read them, and in seeded shuffles: of these
    the statistics are kept, to tell what the order alone does. In file order and the first
    shuffles the frontend also takes each of the times that the study's key ``sensitivity`` has.

    Raises
    ------
    InputError
        If the runs are of another trace.
    """
    first = {name: repeats[0] for name, repeats in live.items()}
    replayed = next(iter(first.values())).manifest.trace
    if trace.sha256 != replayed.sha256:
        raise InputError(
            f"{trace.path}: expected the trace of the runs ({replayed.name}), got another; name "
            "that trace with --trace"
        )
    twins = [twin for run in first.values() for twin in _plan(run, study, trace)]
    made: dict[Path, list[pd.DataFrame]] = {FITS: [], ORDERS: [], TABLE: []}
    for twin, table in zip(twins, side_by_side(twins, _simulate), strict=True):
        of = {"configuration": twin.run.manifest.configuration, "order": twin.label}
        if twin.declared:
            made[ORDERS].append(_statistics(table, study).assign(**of))
        if twin.declared and twin.label == FILE:
            own = table[KEPT].round(ROUNDED)
            made[TABLE].append(own.assign(configuration=of["configuration"]))
        if twin.label in IN_FITS:
            frontend_ms = twin.profile.frontend_ms_per_1k_tokens
            fit = _fit(twin.run, table).assign(**of, frontend_ms_per_1k_tokens=frontend_ms)
            made[FITS].append(fit)
    for file, parts in made.items():
        write_beside(folder / file, parquet_bytes(pd.concat(parts, ignore_index=True)))
    return folder / TABLE


def _plan(run: Run, study: Study, trace: Trace) -> Iterator[Twin]:
    cluster = run.manifest.cluster
    declared = cluster.get("frontend_ms_per_1k_tokens", 0.0)
    others = study.sensitivity.frontend_ms_per_1k_tokens if study.sensitivity else []
    for frontend_ms in sorted({declared, *others}):
        profile = Simulated(
            kind="simulated", name=f"twin of {cluster['name']}", description="twin",
            hardware=cluster["hardware"], backend=cluster["backend"],
            kv_transfer_gb_per_s=cluster.get("kv_transfer_gb_per_s"),
            frontend_ms_per_1k_tokens=frontend_ms,
        )  # fmt: skip
        simulator_versions(profile)  # or the error that says what is missing
        for label, order in _orders(run, trace).items():
            if frontend_ms == declared or label in IN_FITS:
                yield Twin(run, trace, label, order, profile, frontend_ms == declared)


def _orders(run: Run, trace: Trace) -> dict[str, np.ndarray]:
    """Return rows in sending order, by label."""
    at_ms = trace.timestamp_ms[: len(run.requests)]
    sent = run.requests.sort_values(["arrival_ms", "send_lag_ms"])["row"].to_numpy()
    shuffled = {label: burst_order(at_ms, n) for n, label in enumerate(SHUFFLED, 1)}
    file, tokens = burst_order(at_ms, run.manifest.seed), trace.input_tokens[: len(at_ms)]
    short, pairs = np.lexsort((tokens, at_ms)), np.lexsort((_read_ms(at_ms, tokens, file), at_ms))
    return {FILE: file, SENT: sent, SHORT: short, PAIRS: pairs} | shuffled


def _read_ms(
    at_ms: np.ndarray, tokens: np.ndarray, order: np.ndarray, readers: int = 2, ms_per_1k: float = 1
) -> np.ndarray:  # fmt: skip
    """Return when each row's prompt is read by one of several readers who take them in order."""
    read_ms, free_ms = np.zeros(len(order)), [0.0] * readers
    for row in order:
        start_ms = max(heapq.heappop(free_ms), at_ms[row])
        read_ms[row] = start_ms + tokens[row] / 1000 * ms_per_1k
        heapq.heappush(free_ms, read_ms[row])
    return read_ms


def _simulate(twin: Twin, on_progress: Progress) -> pd.DataFrame:
    topology = read_topology(read_configuration(twin.run.path / "manifests"))
    return simulate(twin.profile, topology, twin.trace, twin.order, on_progress)[0]


def _statistics(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return ``metric``, ``statistic`` and ``value`` of what is compared, and of the good share."""
    summary = metrics.summarize(table, study.slo)
    rows = [(key, name, summary[key][name]) for key in LATENCIES for name in metrics.COMPARED]
    rows.append(("good_share", "share", summary["good"]["share"]))
    return pd.DataFrame(rows, columns=["metric", "statistic", "value"])


def _fit(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of the simulated TTFT in each half of the replay's time.

    They are ``far``, the share of requests further off than a quarter, and the relative errors of
    ``mean``, ``p50`` and ``p90``.
    """
    live, fits = run.requests.set_index("row"), []
    both = table.set_index("row").join(live["ttft_ms"], rsuffix="_live").dropna(subset="ttft_ms")
    second = both["arrival_ms"] >= live["arrival_ms"].max() / 2
    for half, rows in both.groupby(second.astype(int) + 1):
        twin, measured = rows["ttft_ms"], rows["ttft_ms_live"]
        far = 1 - (twin / measured).between(*NEAR).mean()
        p50, p90 = twin.quantile([0.5, 0.9]) / measured.quantile([0.5, 0.9]) - 1
        fits.append((half, far, twin.mean() / measured.mean() - 1, p50, p90))
    return pd.DataFrame(fits, columns=["half", "far", "mean", "p50", "p90"])
