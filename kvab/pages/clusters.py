"""What the comparison gains on each cluster, and whether that agrees with the published.

Input: a folder of runs and the published ones. Output: one object that a notebook loads, and its
figure, table and sentences. Clusters are compared, never pooled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullLocator

from kvab.cache import remember, source_digest
from kvab.console import counted, interval, number, plain
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence, load_published
from kvab.pages.gate import WITHHELD, Gate, gate
from kvab.pages.outcome import both_shares
from kvab.pages.tables import Table
from kvab.pages.theme import COMPARISON, KINDS, PLAIN, WIDTH_IN, Drawing, drawn
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.study import Study, load_study, root

MARKERS = {"simulated": "o", "live": "^", "kubernetes": "s", "imported": "D"}


@dataclass(frozen=True)
class Clusters:
    """Every cluster that has runs of both configurations.

    Attributes
    ----------
    reference : Evidence
        The published runs that the others are compared with; where a study has none, those of its
        first cluster.
    known : str
        What pages call the reference: ``published``, or the cluster's name.
    places : dict of str to Evidence
        The clusters by the name that pages give them: the reader's, then the published.
    left_out : dict of str to str
        The clusters whose runs cannot be read or compared, each with why and the remedy.
    """

    reference: Evidence
    known: str
    places: dict[str, Evidence]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def simulated(self) -> bool:
        """Whether every cluster is a simulator."""
        return all(evidence.simulated for evidence in self.places.values())

    @property
    def synthetic(self) -> bool:
        """Whether a workload is generated."""
        return any(evidence.synthetic for evidence in self.places.values())

    @property
    def others(self) -> dict[str, Evidence]:
        """The clusters whose runs are not those of the reference."""
        key = self.reference.key
        return {name: evidence for name, evidence in self.places.items() if evidence.key != key}

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """The validity gate of each cluster, by its name."""
        return {name: gate(evidence) for name, evidence in self.places.items()}

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each cluster's good share, by its name; withheld where its gate is red."""
        return {
            name: evidence.comparison.good.verdict if self.gates[name].green else WITHHELD
            for name, evidence in self.places.items()
        }

    @cached_property
    def effects(self) -> pd.DataFrame:
        """What the comparison gains over the baseline on each cluster.

        Columns ``place``, ``metric``, ``difference``, ``ratio``, each of the two with ``_low`` and
        ``_high`` of its workload interval (NaN without one): means of latencies, in ms, and the
        good share, as a share of 1.
        """
        lines = []
        for name, evidence in self.places.items():
            for key, outcome in evidence.comparison.metrics.items():
                difference, ratio = outcome.mean.difference, outcome.mean.ratio
                lines.append({
                    "place": name, "metric": key, "difference": difference.value,
                    "difference_low": difference.low, "difference_high": difference.high,
                    "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
                })  # fmt: skip
        numbers = dict.fromkeys(lines[0].keys() - {"place", "metric"}, float)
        return pd.DataFrame(lines).astype(numbers)

    @cached_property
    def agreements(self) -> dict[str, pd.DataFrame | str]:
        """`kvab.stats.robustness.agreement` of each other cluster, or why there can be none.

        Where a gate is red, the cluster's or the reference's, every verdict is withheld.
        """
        agreements = {name: self._agreement(evidence) for name, evidence in self.others.items()}
        sound = gate(self.reference).green
        for name, table in agreements.items():
            if isinstance(table, pd.DataFrame) and not (sound and self.gates[name].green):
                agreements[name] = table.assign(verdict=WITHHELD)
        return agreements

    def _agreement(self, evidence: Evidence) -> pd.DataFrame | str:
        from kvab.stats.robustness import agreement

        study = self.reference.study

        def compute() -> pd.DataFrame:
            published, yours = (
                (runs.tables(study.baseline), runs.tables(study.comparison))
                for runs in (self.reference, evidence)
            )
            settings = study.statistics.model_dump()
            return agreement(published, yours, study.slo, study.margins, **settings)

        key = digest([self.reference.key, evidence.key, source_digest()])
        try:
            return remember(key, "agreement", compute)
        except InputError as error:
            return str(error)


def load_clusters(
    study: str | Path | Study, folder: str | Path, published: str | Path = "book/published"
) -> Clusters:
    """Return every cluster with runs of both configurations, in a folder and published.

    Raises
    ------
    InputError
        If there is none, or a run is damaged.
    """
    study = load_study(study)
    own, left_out = _read(study, folder)
    if (root() / folder).resolve() != (root() / published).resolve():
        known = {evidence.key for evidence in own.values()}
        public, more = _read(study, published)
        left_out |= {f"{name} (published)": why for name, why in more.items()}
        own |= {f"{name} (published)": evidence for name, evidence in public.items()
                if evidence.key not in known}  # fmt: skip
    try:
        return Clusters(load_published(study, published), "published", own, left_out)
    except InputError:  # a study of one's own has nothing published yet
        if not own:
            raise
        first = next(iter(own))
        return Clusters(own[first], first, own, left_out)


def _read(study: Study, folder: str | Path) -> tuple[dict[str, Evidence], dict[str, str]]:
    """Return the clusters with runs of both configurations, and why others are left out."""
    both = {study.baseline, study.comparison}
    clusters, left_out = {}, {}
    for path in sorted((root() / folder / study.name).glob("*/")):
        if not any(path.glob(f"{study.baseline}/r*/run.json")):
            continue
        try:
            evidence = load_evidence(study, path.name, folder)
            # Gate and comparison are wanted of every cluster, and kept.
            if both <= evidence.runs.keys() and gate(evidence) and evidence.comparison:
                clusters[path.name] = evidence
        except InputError as error:
            left_out[path.name] = (
                f"{path}: left out of the book, for its runs cannot be compared; move the folder "
                f"away, or replay or import it again ({error})"
            )
    return clusters, left_out


def source(clusters: Clusters, runs: bool = True) -> str:
    """Return where the figure's data come from, for the end of its caption."""
    clauses = [
        f"{name} ({KINDS[evidence.manifest.kind]}, {evidence.manifest.trace.rows:,} requests, "
        f"repeats: {evidence.repeats})"
        for name, evidence in clusters.places.items()
    ]
    synthetic = " GENERATED WORKLOAD." if clusters.synthetic and runs else ""
    return f"Source: {'; '.join(clauses)}.{synthetic}"


@drawn("clusters-forest", lambda c: c.effects, source=source)
def forest_figure(clusters: Clusters) -> Drawing:
    """Effect on the good share and on each mean latency, a line for each cluster."""
    height_in = 1.3 + 0.45 * len(clusters.places)
    figure, panels = plt.subplots(1, 4, figsize=(WIDTH_IN, height_in), sharey=True)
    shown = {"good_share": ("difference", 100.0), **dict.fromkeys(LATENCIES, ("ratio", 1.0))}
    for axes, (key, (column, factor)) in zip(panels, shown.items(), strict=True):
        rows = clusters.effects[clusters.effects["metric"] == key].set_index("place")
        values = factor * rows[[column, f"{column}_low", f"{column}_high"]]
        axes.axvline(0 if column == "difference" else 1, color="#333333", linewidth=0.9)
        for at, (name, evidence) in enumerate(clusters.places.items()):
            centre, low, high = values.loc[name]
            axes.hlines(at, low, high, color=COMPARISON, linewidth=1.6)
            hollow = "white" if evidence.simulated else COMPARISON
            axes.plot(centre, at, marker=MARKERS[evidence.manifest.kind], color=COMPARISON,
                      markerfacecolor=hollow)  # fmt: skip
        if column == "difference":
            axes.set_xlabel("good share,\ndifference [points]")
        else:
            axes.set(xscale="log", xlabel=f"mean {METRICS[key].short},\nratio [log scale]")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(PLAIN)
        axes.grid(axis="x")
    labels = [f"{name}\n({evidence.manifest.kind})" for name, evidence in clusters.places.items()]
    panels[0].set_yticks(range(len(labels)), labels, fontsize=7)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    caption = forest_caption(clusters)
    return figure, caption, f"Dots with intervals by cluster and metric. {caption}"


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


def overview_table(clusters: Clusters) -> Table:
    """Return what the comparison gains on each cluster."""
    lines = []
    for name, evidence in clusters.places.items():
        comparison = evidence.comparison
        before, after, points = both_shares(comparison.good.mean)
        difference = comparison.good.mean.difference
        lines.append({
            "cluster": f"{name}\n({evidence.manifest.kind})",
            "verdict": clusters.verdicts[name],
            "requests": f"{evidence.manifest.trace.rows:,} × {evidence.repeats}",
            "good": f"{before} % → {after} %",
            "difference [points]": f"{points}\n"
            f"({interval(difference.low, difference.high, 100)})",
            "TTFT ratio": number(comparison.ttft.mean.ratio.value, 2),
            "latency ratio": number(comparison.latency.mean.ratio.value, 2),
        })  # fmt: skip
    return Table(
        pd.DataFrame(lines),
        "Comparison against baseline on each cluster: requests × repeats, good share "
        f"({clusters.reference.study.statistics.percent} workload interval) and its verdict, "
        "ratios of means.",
        ("cluster", "verdict"),
    )


def learned(clusters: Clusters) -> str:
    """Return for each cluster where it agrees with the published runs and where it differs."""
    from kvab.stats.robustness import AGREE, DIFFER  # imports slowly, as all statistics do

    lines = []
    for cluster, agreement in clusters.agreements.items():
        name = plain(cluster)
        if isinstance(agreement, str):
            lines.append(f"- **{name}** cannot be compared: {plain(agreement)}.")
            continue
        verdicts = agreement["verdict"]
        if (verdicts == WITHHELD).all():
            lines.append(f"- **{name}**: {WITHHELD}, so nothing is said of agreement.")
            continue
        clauses = []
        for verdict, verb in ((AGREE, "agrees"), (DIFFER, "differs")):
            metrics = [METRICS[key].label.lower() for key in agreement.index[verdicts == verdict]]
            clauses += [f"{verb} on {' and '.join(metrics)}"] if metrics else []
        rest = len(agreement) - sum(verdicts.isin([AGREE, DIFFER]))
        clauses += [f"cannot tell on {rest} of {counted(len(agreement), 'metric')}"] if rest else []
        rows = counted(agreement["rows"].iloc[0], "row")
        lines.append(f"- **{name}**, {rows}: {', '.join(clauses)}.")
    return "\n".join(lines) or "Nothing yet: add a cluster of your own."
