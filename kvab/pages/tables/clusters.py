"""The tables that put clusters side by side: effects, agreement with the published, setups.

Input: the clusters. Output: tables that a notebook shows.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from kvab.console import counted, interval, number, percent, signed
from kvab.pages.clusters import Clusters
from kvab.pages.evidence import Evidence
from kvab.pages.tabling import Table
from kvab.requests.metrics import METRICS

PROFILE = ("description", "hardware", "backend", "image", "rdma_resource")
RULE = (
    "Means, comparison minus baseline, on the rows and repeats that both have; the gap is "
    "yours minus {known}. Agree: the whole {level} workload interval of the gap lies within ± the "
    "margin. Differ: it excludes zero and the gap is beyond the margin. Cannot tell: otherwise."
)


def overview(clusters: Clusters) -> Table:
    """Return what the comparison gains on each cluster."""
    lines = []
    for place, evidence in clusters.places.items():
        comparison = evidence.comparison
        good, difference = comparison.good.mean, comparison.good.mean.difference
        lines.append({
            "cluster": f"{place}\n({evidence.manifest.kind})",
            "verdict": clusters.verdicts[place],
            "requests": f"{evidence.manifest.trace.rows:,} × {evidence.repeats}",
            "good": f"{percent(good.baseline)} → {percent(good.comparison)}",
            "difference [points]": f"{signed(100 * difference.value, 1)}\n"
            f"({interval(difference.low, difference.high, 100)})",
            "TTFT ratio": number(comparison.ttft.mean.ratio.value, 2),
            "latency ratio": number(comparison.latency.mean.ratio.value, 2),
        })  # fmt: skip
    return Table(
        pd.DataFrame(lines),
        "Comparison against baseline on each cluster, never pooled: requests × repeats, good share "
        f"({clusters.reference.study.statistics.percent} workload interval) and its verdict, "
        "ratios of means.",
        ("cluster", "verdict"),
    )


def cards(clusters: Clusters) -> Table:
    """Return, for each cluster, whether it agrees with the published difference of each metric."""
    lines = []
    for place, found in clusters.agreements.items():
        if isinstance(found, str):
            lines.append({"cluster": place, "verdict": f"cannot be compared: {found}"})
            continue
        for key, row in found.iterrows():
            verdict = f"{row['verdict']}\n({counted(row['rows'], 'row')})"
            lines.append({**_line(place, str(key), row), "verdict": verdict})
    text = ("cluster", "verdict")
    columns = ["cluster", "verdict", "published", "yours", "gap"]
    frame = pd.DataFrame(lines, columns=columns).fillna("–")
    frame = frame.rename(columns={"published": clusters.known})
    level = clusters.reference.study.statistics.percent
    return Table(frame, RULE.format(known=clusters.known, level=level), text)


def _line(place: str, key: str, row: pd.Series) -> dict[str, str]:
    metric = METRICS[key]
    of = f"{metric.short} [{'points' if key == 'good_share' else 'ms'}]"
    decimals = 1 if key == "good_share" else None

    def shown(name: str) -> str:
        ends = [metric.factor * row[f"{name}_{end}"] for end in ("low", "high")]
        margin = f"\nmargin ± {number(metric.factor * row['margin'])}" if name == "gap" else ""
        return f"{signed(metric.factor * row[name], decimals)}\n({_ends(*ends)}){margin}"

    told = {name: shown(name) for name in ("published", "yours", "gap")}
    return {"cluster": f"{place}\n{of}", **told}


def _ends(low: float, high: float) -> str:
    return "no interval" if pd.isna(low) else f"{signed(low)} to {signed(high)}"


def setups(clusters: Clusters) -> Table:
    """Return what is known to differ between the setups, read from the runs' manifests."""
    told = {clusters.known: _setup(clusters.reference)}
    told |= {name: _setup(each) for name, each in clusters.others.items()}
    frame = pd.DataFrame(told)
    frame = frame[frame.nunique(axis="columns", dropna=False) > 1].fillna("–")
    frame = frame.rename_axis("setup").reset_index()
    return Table(frame, "Only what differs is listed.", tuple(frame.columns))


def _setup(evidence: Evidence) -> dict[str, Any]:
    manifest = evidence.manifest
    profile = {key: str(value) for key, value in manifest.cluster.items() if key in PROFILE}
    pods = manifest.host.get("pods", {}).values()
    gpus = {gpu for pod in pods for gpu in pod.get("gpus", [])}
    slo = manifest.slo or evidence.study.slo
    return {
        "cluster": evidence.cluster,
        "kind": manifest.kind,
        **profile,
        "GPUs seen": str(len(gpus)),
        "workload": manifest.trace.name,
        "requests": f"{manifest.trace.rows:,}",
        "repeats": str(evidence.repeats),
        "SLO at the run": f"TTFT {slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms",
        "study version": str(manifest.study_version),
        **manifest.versions,
    }
