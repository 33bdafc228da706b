"""The validity gate: whether each run tested what it claims and the arms may be compared.

Input: the evidence. Output: a table of checks; one that fails withholds every verdict.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kvab import metrics, recipes
from kvab.evidence import Evidence
from kvab.runs import Run, RunManifest, summaries

ERROR_LIMIT_SHARE = 0.01
SEND_LAG_LIMIT_MS = 50.0
REUSE_WORTH_SHARE = 0.01  # of the prompt tokens, which caches could save beyond round-robin
IMAGE = "image "


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
    """Return the checks of every run and between the arms."""
    rows = [
        (check, f"{name} r{run.manifest.repeat}", *rest)
        for name, found in evidence.runs.items()
        for run in found
        for check, *rest in _run_checks(run, evidence)
    ]
    rows += list(_arm_checks(evidence))
    columns = ["check", "where", "expected", "found", "passed"]
    return Gate(pd.DataFrame(rows, columns=columns).astype({"passed": bool}))


def _run_checks(run: Run, evidence: Evidence) -> Iterator[tuple[str, str, str, bool]]:
    table, manifest = run.requests, run.manifest
    yield "the replay ended", "complete", manifest.status, manifest.status == "complete"
    expected = np.arange(manifest.trace.rows)
    whole = np.array_equal(np.sort(table["row"]), expected)
    yield "one row a request", f"{len(expected):,}", f"{len(table):,}", whole
    errors = float((~metrics.served(table)).mean())
    yield (
        "failed requests",
        f"<= {ERROR_LIMIT_SHARE:.0%}",
        f"{errors:.2%}",
        (errors <= ERROR_LIMIT_SHARE),
    )
    served = table[metrics.served(table)]
    prompts = evidence.workload.table.set_index("row")["input_tokens"].reindex(served["row"])
    wrong = int((served["input_tokens"].to_numpy() != prompts.to_numpy()).sum())
    yield "prompt tokens as in the trace", "all rows", f"{wrong} differ", wrong == 0
    wrong = int((served["output_tokens"] != served["requested_output_tokens"]).sum())
    yield "answer tokens as asked", "all rows", f"{wrong} differ", wrong == 0
    lag_ms, limit_ms = metrics.percentile(served["send_lag_ms"], 99), SEND_LAG_LIMIT_MS
    yield "send lag p99", f"<= {limit_ms:g} ms", f"{lag_ms:.2f} ms", lag_ms <= limit_ms
    yield from _worker_checks(run)
    yield from _cache_checks(run, evidence)


def _worker_checks(run: Run) -> Iterator[tuple[str, str, str, bool]]:
    topology = recipes.topology(recipes.read_configuration(run.path / "manifests"))
    for role, group in topology.groups.items():
        column = "prefill_worker" if role == "prefill" else "decode_worker"
        seen = run.requests[column].nunique()
        if run.manifest.kind != "simulated" and seen == 0:  # AIPerf's records name no worker
            counted = run.manifest.host.get("workers_served")
            if counted is None:
                continue
            seen = counted[role]
        needed = min(group.replicas, len(run.requests))
        yield f"{role} workers that served", str(group.replicas), str(seen), seen == needed


def _cache_checks(run: Run, evidence: Evidence) -> Iterator[tuple[str, str, str, bool]]:
    if run.requests["cached_tokens"].isna().all():
        return  # a disaggregated frontend does not report it
    workload = evidence.workload.table
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
    bound = _reusable(evidence, run.manifest)
    share = metrics.cached_share(run.requests)
    yield "reuse within an unlimited cache's", f"<= {bound:.1%}", f"{share:.1%}", share <= bound


def _arm_checks(evidence: Evidence) -> Iterator[tuple[str, str, str, str, bool]]:
    manifests = [run.manifest for found in evidence.runs.values() for run in found]
    for label, values in {
        "same workload": {m.trace.sha256[:12] for m in manifests},
        "same cluster": {str(sorted(m.cluster.items())) for m in manifests},
        "same versions": {str(_versions(m)[0]) for m in manifests},
        "same images": {str(found) for m in manifests if (found := _versions(m)[1])},
        "same study version": {m.study_version for m in manifests},
    }.items():
        if values:  # simulated and live runs name no image
            yield label, "all runs", "one", str(len(values)), len(values) == 1
    cells = {(arm.factors.split, arm.factors.routing): n for n, arm in evidence.arms.items()}
    for (split, routing), name in cells.items():
        control = cells.get((split, "round-robin"))
        if routing == "kv":
            reuse = _reuse(evidence, name)
            without = _reuse(evidence, control) if control else 0.0
            if _reusable(evidence, evidence.manifest) - without < REUSE_WORTH_SHARE:
                continue  # the first rows of a trace repeat next to nothing
            yield (
                "KV routing finds more of the cache",
                f"{name} and {control}",
                f"> {without:.1%}",
                f"{reuse:.1%}",
                reuse > without,
            )


def _versions(manifest: RunManifest) -> tuple[list[tuple[str, str]], list[str]]:
    """Return versions by name, and apart from them the images, whose components differ by arm."""
    told = manifest.versions.items()
    images = {version for name, version in told if name.startswith(IMAGE)}
    return sorted(item for item in told if not item[0].startswith(IMAGE)), sorted(images)


def _reusable(evidence: Evidence, manifest: RunManifest) -> float:
    """Return the share of prompt tokens that an unlimited cache would reuse."""
    rows = evidence.workload.table.iloc[: manifest.trace.rows]
    return float(rows["reusable_tokens"].sum() / rows["input_tokens"].sum())


def _reuse(evidence: Evidence, configuration: str) -> float:
    return float(np.mean([summaries.reuse(run) or 0.0 for run in evidence.runs[configuration]]))
