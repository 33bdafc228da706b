"""The validity gate: whether each run tested what it claims and the arms may be compared.

Input: the evidence. Output: a table of checks; one that fails withholds every verdict.

A run is judged by what it left, so what leaves no mark is not seen: a disaggregated frontend behind
round-robin reports no reuse, and no check can tell whether its caches were cold.

Another trace than the study's is no failure: replayed on purpose (``--trace``) by every arm, it is
a fair comparison on another workload, and every page says so. Arms that replayed different traces
are not compared at all: `kvab.pages.evidence.load_evidence` rejects them before any check.

A frontend that rejects requests does so when most of them come: what it then serves is a lighter
workload than the other arm's, so far fewer may be rejected for overload than may fail otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvab.cache import remember, source_digest
from kvab.console import percent, plain
from kvab.declarations import digest
from kvab.pages.evidence import Evidence
from kvab.requests import metrics
from kvab.requests.aiperf import SERVER_METRICS
from kvab.runs.folder import Run, RunManifest
from kvab.study.manifests import read_configuration
from kvab.study.topology import Topology, read_topology

ERROR_LIMIT_SHARE = 0.01
OVERLOAD_LIMIT_SHARE = 0.001  # a tenth of the requests that a 99th percentile rests on
SEND_LAG_LIMIT_MS = 100.0  # a twentieth of the bound on TTFT: a burst is sent one by one
ARRIVAL_LIMIT_MS = 0.01  # published times are rounded to it
REUSE_WORTH_SHARE = 0.01  # of the prompt tokens, which caches could save beyond round-robin
IMAGE = "image "
OURS = ("kvab", "python")  # they send and read; nothing of a result depends on them
SERVING = ("kind", "name", "hardware", "backend", "image", "node_selector", "rdma_resource")
UNKNOWN = f"cannot tell: the file {SERVER_METRICS} was not given"
WITHHELD = "withheld: the gate is red"

Outcome = tuple[str, str, str, bool]
"""A check of one run: its name, what was expected and found, whether it passed."""
Placed = tuple[str, str, str, str, bool]
"""The same with where it was looked for, behind the name."""


@dataclass(frozen=True)
class Gate:
    """The outcome of all checks.

    Attributes
    ----------
    checks : DataFrame
        Columns check, where, expected, found (str) and passed (bool).
    """

    checks: pd.DataFrame

    @property
    def green(self) -> bool:
        """Whether every check passed."""
        return bool(self.checks["passed"].all())

    @property
    def reasons(self) -> list[str]:
        """One clause for each check that failed."""
        failed = self.checks[~self.checks["passed"]]
        return [
            f"{row.where}: {row.check}: expected {row.expected}, found {row.found}"
            for row in failed.itertuples()
        ]


def gate(evidence: Evidence) -> Gate:
    """Return the checks of every run and between the arms; judged once for all pages."""
    key = digest([evidence.key, source_digest()])
    return remember(key, "gate", lambda: _judged(evidence))


def verdict(evidence: Evidence, metric: str) -> str:
    """Return the verdict on a metric; withheld where the gate is red."""
    return evidence.comparison.metrics[metric].verdict if gate(evidence).green else WITHHELD


def _judged(evidence: Evidence) -> Gate:
    rows = [
        (check, f"{name} r{run.manifest.repeat}", *rest)
        for name, repeats in evidence.runs.items()
        for run in repeats
        for check, *rest in _run_checks(run, evidence)
    ]
    for name, repeats in evidence.runs.items():
        rows += [(check, name, *rest) for check, *rest in _repeat_checks(repeats)]
    rows += _arm_checks(evidence)
    columns = ["check", "where", "expected", "found", "passed"]
    return Gate(pd.DataFrame(rows, columns=columns).astype({"passed": bool}))


def _run_checks(run: Run, evidence: Evidence) -> Iterator[Outcome]:
    table, manifest = run.requests, run.manifest
    yield "the replay ended", "complete", manifest.status, manifest.status == "complete"
    deployed = read_topology(read_configuration(run.path / "manifests"))
    yield _deployed_check(deployed, manifest.configuration, evidence)
    rows = manifest.trace.rows
    right = int(table["row"].between(0, rows - 1).sum())  # `check_table` has each of them once
    whole = right == len(table) == rows
    counts = f"{len(table):,}" + ("" if whole else f", of which {right:,} are rows of the replay")
    yield "one row a request", f"{rows:,}", counts, whole
    errors, limit = float((~metrics.served(table)).mean()), ERROR_LIMIT_SHARE
    yield "failed requests", f"<= {percent(limit, 0)}", percent(errors, 2), errors <= limit
    overload, limit = float(metrics.overloaded(table).mean()), OVERLOAD_LIMIT_SHARE
    check = "requests rejected for overload (HTTP 503, 529)"
    yield check, f"<= {percent(limit)}", percent(overload, 2), overload <= limit
    yield from _row_checks(table[metrics.served(table)], evidence.workload.table)
    yield from _worker_checks(run, deployed)
    yield from _cache_checks(run, evidence)
    if deployed.router == "kv":
        yield from _event_checks(manifest)


def _deployed_check(deployed: Topology, configuration: str, evidence: Evidence) -> Outcome:
    factors, study = evidence.arms[configuration].factors, evidence.study
    models = " and ".join(sorted({group.model for group in deployed.groups.values()}))
    router = deployed.router.replace("_", "-")
    runs = f"{deployed.mode}, {router}, {models}"
    expected = f"{factors.split}, {factors.routing}, {study.model.name}"
    return "deployed as declared", expected, runs, runs == expected


def _row_checks(served: pd.DataFrame, workload: pd.DataFrame) -> Iterator[Outcome]:
    asked = workload.set_index("row").reindex(served["row"])
    early_ms = np.abs(served["arrival_ms"].to_numpy() - asked["arrival_ms"].to_numpy())
    for check, same in {
        "arrivals as in the trace": early_ms <= ARRIVAL_LIMIT_MS + 1e-6,
        "prompt tokens as in the trace": ~metrics.unlike(
            served["input_tokens"].to_numpy(), asked["input_tokens"].to_numpy()
        ),
        "answer tokens as asked": served["output_tokens"].to_numpy() == asked["output_tokens"],
    }.items():
        yield check, "all rows", f"{(~same).sum()} differ", bool(same.all())
    lag_ms, limit_ms = metrics.percentile(served["send_lag_ms"], 99), SEND_LAG_LIMIT_MS
    yield "send lag p99", f"<= {limit_ms:g} ms", f"{lag_ms:.2f} ms", lag_ms <= limit_ms


def _worker_checks(run: Run, deployed: Topology) -> Iterator[Outcome]:
    host = run.manifest.host
    components = [pod["component"] for pod in host.get("pods", {}).values()]
    for role, group in deployed.groups.items():
        column = "prefill_worker" if role == "prefill" else "decode_worker"
        check, seen = f"{role} workers that served", run.requests[column].nunique()
        needed = min(group.replicas, len(run.requests))
        if run.manifest.kind == "live":  # AIPerf's records name no worker
            seen = host.get("workers_served", {}).get(role, 0)
        elif run.manifest.kind == "kubernetes":
            check, seen = f"{role} workers that ran", components.count(group.component)
            needed = group.replicas
        elif run.manifest.kind == "imported":
            continue
        yield check, str(group.replicas), str(seen), seen == needed
    if run.manifest.kind == "kubernetes":
        restarts = host.get("restarts")
        count = "not counted" if restarts is None else str(sum(restarts.values()))
        yield "restarts of serving pods", "0", count, count == "0"


def _event_checks(manifest: RunManifest) -> Iterator[Outcome]:
    counted = manifest.host.get("router") or {}
    if manifest.kind == "simulated" or (manifest.kind == "imported" and not counted):
        return  # the simulator has no events to lose; not all artifacts tell of them
    if "after" in counted:
        seen = counted["after"]["events"] - counted["before"]["events"]
    else:
        seen = counted.get("kv_events", 0)
    yield "KV events that the router applied", "> 0", f"{seen:,.0f}", seen > 0


def _repeat_checks(runs: list[Run]) -> Iterator[Outcome]:
    repeats = [run.manifest.repeat for run in runs]
    numbers = ", ".join(map(str, repeats))
    yield "each repeat once", "no number twice", numbers, len(set(repeats)) == len(repeats)
    manifests = {read_configuration(run.path / "manifests").digest for run in runs}
    yield "same manifests in all repeats", "one", str(len(manifests)), len(manifests) == 1


def _cache_checks(run: Run, evidence: Evidence) -> Iterator[Outcome]:
    share, workload = run.reuse, evidence.workload.table
    if share is None:
        return  # a disaggregated frontend does not report it, only a KV router counts it
    if run.requests["cached_tokens"].notna().any():
        # Which request of the first burst comes first is not known: one may reuse another's tokens.
        burst = run.requests[run.requests["arrival_ms"] == run.requests["arrival_ms"].min()]
        reused = int(burst["cached_tokens"].sum())
        own = int(workload.set_index("row")["reusable_tokens"].reindex(burst["row"]).sum())
        yield (
            "caches cold at the start",
            f"<= {own:,} tokens reused in the first burst",
            f"{reused:,}",
            reused <= own,
        )
    bound = evidence.reusable_share
    yield (
        "reuse within an unlimited cache's",
        f"<= {percent(bound)}",
        percent(share),
        share <= bound,
    )


def _arm_checks(evidence: Evidence) -> Iterator[Placed]:
    yield from _same_checks(evidence)
    if not evidence.study.gpus.differ:
        numbers = set(evidence.gpus.values())
        by_arm = ", ".join(f"{name} {count}" for name, count in evidence.gpus.items())
        counts = by_arm if len(numbers) > 1 else str(*numbers)
        yield "same GPUs", "all runs", "one number", counts, len(numbers) == 1
    cells = {(arm.factors.split, arm.factors.routing): n for n, arm in evidence.arms.items()}
    for (split, routing), name in cells.items():
        control = cells.get((split, "round-robin"))
        if routing == "kv":
            reuse, without = _reuse(evidence, name), _reuse(evidence, control)
            if evidence.reusable_share - (without or 0) < REUSE_WORTH_SHARE:
                continue  # the first rows of a trace repeat next to nothing
            yield (
                "KV routing finds more of the cache",
                name if without is None else f"{name} and {control}",
                f"> {percent(without or 0)}",
                UNKNOWN if reuse is None else percent(reuse),
                reuse is None or reuse > (without or 0),
            )


def _same_checks(evidence: Evidence) -> Iterator[Placed]:
    """Yield what all runs must share; what does not change a result (limits, texts) may differ."""
    runs = {f"{name} r{run.manifest.repeat}": run.manifest
            for name, repeats in evidence.runs.items() for run in repeats}  # fmt: skip
    shared: dict[str, Callable[[RunManifest], object]] = {
        "same workload": lambda m: m.trace.sha256,
        "same cluster": lambda m: [m.cluster.get(key) for key in SERVING],
        "same versions": lambda m: _versions(m)[0],
        "same images": lambda m: _versions(m)[1],
        "same study version": lambda m: m.study_version,
    }
    for label, value in shared.items():
        values = {name: str(value(manifest)) for name, manifest in runs.items() if value(manifest)}
        if values:  # simulated and live runs name no image
            counts = Counter(values.values())
            odd = [name for name, text in values.items() if text == counts.most_common()[-1][0]]
            others = "" if len(counts) == 1 else f", {', '.join(odd)} unlike the others"
            yield label, "all runs", "one", f"{len(counts)}{others}", len(counts) == 1


def versions_text(versions: dict[str, str]) -> str:
    """Return versions as a notice names them: of what served and sent, not of what reads."""
    return ", ".join(f"{plain(name)} {plain(text)}" for name, text in versions.items()
                     if name not in OURS)  # fmt: skip


def _versions(manifest: RunManifest) -> tuple[list[tuple[str, str]], list[str]]:
    """Return versions by name, and beside them the images, whose components differ by arm."""
    items = [item for item in manifest.versions.items() if item[0] not in OURS]
    images = {version for name, version in items if name.startswith(IMAGE)}
    return sorted(item for item in items if not item[0].startswith(IMAGE)), sorted(images)


def _reuse(evidence: Evidence, configuration: str | None) -> float | None:
    """Return the mean share of prompt tokens from cache over the runs that tell it, if any."""
    shares = [run.reuse for run in evidence.runs.get(configuration or "", [])]
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None
