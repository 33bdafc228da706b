"""All clusters side by side: what the comparison gains on each, and whether that agrees.

Input: a folder of runs and the published ones. Output: one object that a notebook loads. Clusters
are compared, never pooled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator, NullLocator

from kvab.cache import remember, source_digest
from kvab.console import counted, interval, number, percent, plain, signed
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence, load_published
from kvab.pages.gate import WITHHELD, Gate, gate
from kvab.pages.theme import COMPARISON, KINDS, PLAIN, WIDTH_IN, Drawing, Table, drawn
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.stats.agreement import AGREE, DIFFER
from kvab.study import load_study, root
from kvab.study.declaration import PUBLISHED


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
        return all(each.simulated for each in self.places.values())

    @property
    def synthetic(self) -> bool:
        """Whether a workload is made up."""
        return any(each.synthetic for each in self.places.values())

    @property
    def others(self) -> dict[str, Evidence]:
        """The clusters whose runs are not those of the reference."""
        return {name: each for name, each in self.places.items() if each.key != self.reference.key}

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """The validity gate of each cluster, by its name."""
        return {name: gate(each) for name, each in self.places.items()}

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each cluster's good share, by its name; withheld where its gate is red."""
        return {
            name: each.comparison.good.verdict if self.gates[name].green else WITHHELD
            for name, each in self.places.items()
        }

    @cached_property
    def effects(self) -> pd.DataFrame:
        """What the comparison gains over the baseline on each cluster.

        Columns ``place``, ``metric``, ``difference``, ``ratio``, each of the two with ``_low`` and
        ``_high`` of its workload interval (NaN without one): means of latencies, in ms, and the
        good share, as a share of 1.
        """
        lines = []
        for place, evidence in self.places.items():
            for key, outcome in evidence.comparison.metrics.items():
                difference, ratio = outcome.mean.difference, outcome.mean.ratio
                lines.append({
                    "place": place, "metric": key, "difference": difference.value,
                    "difference_low": difference.low, "difference_high": difference.high,
                    "ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high,
                })  # fmt: skip
        numbers = dict.fromkeys(lines[0].keys() - {"place", "metric"}, float)
        return pd.DataFrame(lines).astype(numbers)

    @cached_property
    def agreements(self) -> dict[str, pd.DataFrame | str]:
        """`kvab.stats.agreement` of each other cluster, or why there can be none.

        Where a gate is red, the cluster's or the reference's, every verdict is withheld.
        """
        found = {name: self._agreement(each) for name, each in self.others.items()}
        sound = gate(self.reference).green
        for name, each in found.items():
            if isinstance(each, pd.DataFrame) and not (sound and self.gates[name].green):
                found[name] = each.assign(verdict=WITHHELD)
        return found

    def _agreement(self, evidence: Evidence) -> pd.DataFrame | str:
        from kvab.stats.agreement import agreement

        study = self.reference.study

        def compute() -> pd.DataFrame:
            published, yours = (
                (each.tables(study.baseline), each.tables(study.comparison))
                for each in (self.reference, evidence)
            )
            settings = study.statistics.model_dump()
            return agreement(published, yours, study.slo, study.margins, **settings)

        key = digest([self.reference.key, evidence.key, source_digest()])
        try:
            return remember(key, "agreement", compute)
        except InputError as error:
            return str(error)


def load_clusters(
    study: str | Path, folder: str | Path, published: str | Path = "book/published"
) -> Clusters:
    """Return every cluster with runs of both configurations, in a folder and published.

    Raises
    ------
    InputError
        If there is none, or a run is damaged.
    """
    own, odd = _places(study, folder)
    if (root() / folder).resolve() != (root() / published).resolve():
        known = {each.key for each in own.values()}
        public, more = _places(study, published)
        odd |= {f"{name} (published)": why for name, why in more.items()}
        own |= {f"{name} (published)": each for name, each in public.items()
                if each.key not in known}  # fmt: skip
    try:
        return Clusters(load_published(study, published), "published", own, odd)
    except InputError:  # a study of one's own has nothing published yet
        if not own:
            raise
        first = next(iter(own))
        return Clusters(own[first], first, own, odd)


def _places(study: str | Path, folder: str | Path) -> tuple[dict[str, Evidence], dict[str, str]]:
    """Return the clusters with runs of both configurations, and why others are left out."""
    declared = load_study(study)
    both = {declared.baseline, declared.comparison}
    found, odd = {}, {}
    for path in sorted((root() / folder / declared.name).glob("*/")):
        if not any(path.glob(f"{declared.baseline}/r*/run.json")):
            continue
        try:
            evidence = load_evidence(study, path.name, folder)
            # Gate and comparison are wanted of every cluster, and kept.
            if both <= evidence.runs.keys() and gate(evidence) and evidence.comparison:
                found[path.name] = evidence
        except InputError as error:
            odd[path.name] = (
                f"{path}: left out of the book, for its runs cannot be compared; move the folder "
                f"away, or replay or import it again ({error})"
            )
    return found, odd


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


MARKERS = {"simulated": "o", "live": "^", "kubernetes": "s", "imported": "D"}


@drawn("clusters-forest", lambda c: c.effects, source=source)
def forest_figure(clusters: Clusters) -> Drawing:
    """Effect on the good share and on each mean latency, a line for each cluster."""
    places = clusters.places
    height_in = 1.3 + 0.45 * len(places)
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH_IN, height_in), sharey=True)
    shown = {"good_share": ("difference", 100.0), **dict.fromkeys(LATENCIES, ("ratio", 1.0))}
    for axis, (key, (column, factor)) in zip(axes, shown.items(), strict=True):
        rows = clusters.effects[clusters.effects["metric"] == key].set_index("place")
        values = factor * rows[[column, f"{column}_low", f"{column}_high"]]
        axis.axvline(0 if column == "difference" else 1, color="#333333", linewidth=0.9)
        for at, (place, evidence) in enumerate(places.items()):
            centre, low, high = values.loc[place]
            axis.hlines(at, low, high, color=COMPARISON, linewidth=1.6)
            hollow = "white" if evidence.simulated else COMPARISON
            axis.plot(centre, at, marker=MARKERS[evidence.manifest.kind], color=COMPARISON,
                      markerfacecolor=hollow)  # fmt: skip
        short = METRICS[key].short
        if column == "difference":
            axis.set_xlabel("good share,\ndifference [points]")
        else:
            axis.set(xscale="log", xlabel=f"mean {short},\nratio [log scale]")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(PLAIN)
        axis.grid(axis="x")
    names = [f"{place}\n({each.manifest.kind})" for place, each in places.items()]
    axes[0].set_yticks(range(len(places)), names, fontsize=7)
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    caption = forest_caption(clusters)
    return figure, caption, f"Dots with intervals by cluster and metric. {caption}"


PROFILE = ("description", "hardware", "backend", "image", "rdma_resource")
RULE = (
    "Means, comparison minus baseline, on the rows and repeats that both have; the gap is "
    "yours minus {known}. Agree: the whole {level} workload interval of the gap lies within ± the "
    "margin. Differ: it excludes zero and the gap is beyond the margin. Cannot tell: otherwise."
)


def overview_table(clusters: Clusters) -> Table:
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


def cards_table(clusters: Clusters) -> Table:
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


def setups_table(clusters: Clusters) -> Table:
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
