"""The page on reproduction: how to make runs, whether they agree, how the set-ups differ.

Input: the clusters. Output: tables and sentences, in the order of the page.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import counted, plain
from kvab.pages.clusters import Clusters
from kvab.pages.evidence import Evidence
from kvab.pages.printed import size, with_ends
from kvab.pages.tables import Table
from kvab.requests.metrics import METRICS
from kvab.study import PUBLISHED, root

PROFILE = ("description", "hardware", "backend", "image", "rdma_resource")
RULE = (
    "Means, comparison minus baseline, on the rows and repeats that both have; the gap is "
    "yours minus {known}. Agree: the whole {level} workload interval of the gap lies within ± the "
    "margin. Differ: it excludes zero and the gap is beyond the margin. Cannot tell: otherwise."
)


def commands(clusters: Clusters) -> str:
    """Return the commands that make runs and compare them, for this study."""
    study, cluster = clusters.reference.study, clusters.reference.cluster
    both = f"{{{study.baseline},{study.comparison}}}"
    if (root() / PUBLISHED / study.name).is_dir():
        options = ""
        report = "make report    # simulated, no GPU, minutes\n"
        report += "make book      # this book from the published runs alone\n"
    else:
        path = study.folder / "study.yaml"
        inside = path.relative_to(root()) if path.is_relative_to(root()) else path
        options = f" --study {inside} --cluster {cluster}"
        report = f"kvab report{options}\n"
    return (
        f"```bash\n{report}"
        f"kvab run{options} --configuration {study.comparison}\n"
        f"kvab compare runs/{study.name}/{cluster}/{both}/r1\n"
        "```"
    )


def whose(clusters: Clusters) -> str:
    """Return what is compared with what."""
    reference = clusters.reference
    left = ", ".join(clusters.left_out)
    out = f" Left out, as its runs cannot be compared: {plain(left)}." if left else ""
    if not clusters.others:
        return (
            f"There are only the runs on {plain(reference.cluster)} "
            f"({counted(reference.repeats, 'repeat')}); nothing to compare them with yet.{out}"
        )
    return (
        f"Reference: {plain(clusters.known)}, {plain(reference.cluster)}, "
        f"{counted(reference.repeats, 'repeat')}. Compared with it: "
        f"{plain(', '.join(clusters.others))}.{out}"
    )


def agreement_table(clusters: Clusters) -> Table:
    """Return, for each cluster, whether it agrees with the published difference of each metric."""
    lines = []
    for cluster, agreement in clusters.agreements.items():
        if isinstance(agreement, str):
            lines.append({"cluster": cluster, "verdict": f"cannot be compared: {agreement}"})
            continue
        for key, row in agreement.iterrows():
            unit = "points" if key == "good_share" else "ms"
            lines.append({
                "cluster": f"{cluster}\n{METRICS[str(key)].short} [{unit}]",
                "verdict": f"{row['verdict']}\n({counted(row['rows'], 'row')})",
                **{name: _difference(row, name) for name in ("published", "yours", "gap")},
            })  # fmt: skip
    frame = pd.DataFrame(lines, columns=["cluster", "verdict", "published", "yours", "gap"])
    frame = frame.fillna("–").rename(columns={"published": clusters.known})
    level = clusters.reference.study.statistics.percent
    return Table(frame, RULE.format(known=clusters.known, level=level), ("cluster", "verdict"))


def _difference(row: pd.Series, name: str) -> str:
    """Return one of an agreement's differences with its interval; of the gap the margin too."""
    key = str(row.name)
    margin = f"\nmargin ± {size(key, row['margin'])}" if name == "gap" else ""
    return with_ends(key, row[name], row[f"{name}_low"], row[f"{name}_high"]) + margin


def setups_table(clusters: Clusters) -> Table:
    """Return what is known to differ between the setups, read from the runs' manifests."""
    setups = {clusters.known: _setup(clusters.reference)}
    setups |= {name: _setup(evidence) for name, evidence in clusters.others.items()}
    frame = pd.DataFrame(setups)
    frame = frame[frame.nunique(axis="columns", dropna=False) > 1].fillna("–")
    frame = frame.rename_axis("setup").reset_index()
    return Table(frame, "Only what differs is listed.", tuple(frame.columns))


def _setup(evidence: Evidence) -> dict[str, str]:
    manifest = evidence.manifest
    profile = {key: str(value) for key, value in manifest.cluster.items() if key in PROFILE}
    gpus = {gpu for pod in manifest.host.get("pods", {}).values() for gpu in pod.get("gpus", [])}
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
