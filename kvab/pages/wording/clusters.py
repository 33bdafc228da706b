"""Clusters side by side, in sentences: what each shows, and whether it agrees with the published.

Input: the clusters. Output: Markdown and captions.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import counted, plain
from kvab.pages.clusters import Clusters
from kvab.pages.validity import WITHHELD
from kvab.pages.wording.captions import KINDS
from kvab.requests.metrics import METRICS
from kvab.stats.agreement import AGREE, DIFFER
from kvab.study import root
from kvab.study.declaration import PUBLISHED


def source(clusters: Clusters, runs: bool = True) -> str:
    """Return where the figure's data come from, for the end of its caption."""
    told = [
        f"{name} ({KINDS[each.manifest.kind]}, {each.manifest.trace.rows:,} requests, repeats: "
        f"{each.repeats})"
        for name, each in clusters.places.items()
    ]
    synthetic = " SYNTHETIC WORKLOAD." if clusters.synthetic and runs else ""
    return f"Source: {'; '.join(told)}.{synthetic}"


def forest_caption(clusters: Clusters) -> str:
    """Return the caption of the forest plot."""
    verdicts = list(clusters.verdicts.values())
    withheld = verdicts.count(WITHHELD)
    red = f" (withheld on {withheld}, whose gate is red)" if withheld else ""
    return (
        f"The comparison's good share is better on {verdicts.count('better')} of "
        f"{counted(len(verdicts), 'cluster')}{red}. Difference of the good share and ratio of the "
        "mean latencies, comparison over baseline, with "
        f"{clusters.reference.study.statistics.percent} workload intervals. Requests differ in "
        "number, so a short run shows only its part of the trace."
    )


def commands(clusters: Clusters) -> str:
    """Return the commands that make runs and compare them, for this study."""
    study = clusters.reference.study
    both = f"{{{study.baseline},{study.comparison}}}"
    if (root() / PUBLISHED / study.name).is_dir():
        named, report = "", "make report    # simulated, no GPU, minutes\n"
        report += "make book      # this book from the published runs alone\n"
    else:
        path = study.folder / "study.yaml"
        inside = path.relative_to(root()) if path.is_relative_to(root()) else path
        named = f" --study {inside} --cluster {clusters.reference.cluster}"
        report = f"kvab report{named}\n"
    return (
        f"```bash\n{report}"
        f"kvab run{named} --configuration {study.comparison}\n"
        f"kvab compare runs/{study.name}/{clusters.reference.cluster}/{both}/r1\n"
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
        f"{plain(', '.join(clusters.others))}. Each cluster has lines of its own, never "
        f"pooled.{out}"
    )


def learned(clusters: Clusters) -> str:
    """Return for each cluster where it agrees with the published runs and where it differs."""
    lines = []
    for name, found in clusters.agreements.items():
        place = plain(name)
        if isinstance(found, str):
            lines.append(f"- **{place}** cannot be compared: {plain(found)}.")
            continue
        if (found["verdict"] == WITHHELD).all():
            lines.append(f"- **{place}**: {WITHHELD}, so nothing is said of agreement.")
            continue
        told = [f"{word} on {_names(found, verdict)}" for verdict, word in
                ((AGREE, "agrees"), (DIFFER, "differs")) if _names(found, verdict)]  # fmt: skip
        rest = len(found) - sum(found["verdict"].isin([AGREE, DIFFER]))
        told += [f"cannot tell on {rest} of {counted(len(found), 'metric')}"] if rest else []
        lines.append(f"- **{place}**, {counted(found['rows'].iloc[0], 'row')}: {', '.join(told)}.")
    return "\n".join(lines) or "Nothing yet: add a cluster of your own."


def _names(found: pd.DataFrame, verdict: str) -> str:
    return " and ".join(
        METRICS[str(key)].label.lower() for key in found.index[found["verdict"] == verdict]
    )
