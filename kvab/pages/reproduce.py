"""The page on reproduction: how to make runs, what each cluster gains, whether they agree.

Input: a folder of runs and the published ones. Output: one object that a notebook loads, and its
tables and sentences, in the order of the page. Clusters are compared, never pooled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvab.console import counted, interval, number, plain
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, agreement, load_evidence, load_published
from kvab.pages.gate import WITHHELD, gate, verdict
from kvab.pages.printed import Table, agreed, agreement_cells, quantity, side_by_side
from kvab.pages.theme import KINDS
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.study import PUBLISHED, Study, load_study, root

PROFILE = ("description", "hardware", "backend", "image", "rdma_resource")
RULE = (
    "Means, comparison minus baseline, on the rows and repeats that both have; the gap is "
    "yours minus {known}. Agree: the whole {level} workload interval of the gap lies within the "
    "margin (±). Differ: it excludes zero and the gap is beyond the margin. Cannot tell: otherwise."
)


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
    def others(self) -> dict[str, Evidence]:
        """The clusters whose runs are not those of the reference."""
        key = self.reference.key
        return {name: evidence for name, evidence in self.places.items() if evidence.key != key}

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """The verdict on each cluster's good share, by its name; withheld where its gate is red."""
        return {name: verdict(evidence, "good_share") for name, evidence in self.places.items()}

    @cached_property
    def agreements(self) -> dict[str, pd.DataFrame | str]:
        """`kvab.stats.robustness.agreement` of each other cluster, or why there can be none.

        Where a gate is red, the cluster's or the reference's, every verdict is withheld.
        """
        return {name: self._agreement(evidence) for name, evidence in self.others.items()}

    def _agreement(self, evidence: Evidence) -> pd.DataFrame | str:
        reference, keys = self.reference, digest([self.reference.key, evidence.key])
        try:
            found = agreement(reference.study, reference.both, evidence.both, keys)
        except InputError as error:
            return str(error)
        sound = gate(reference).green and gate(evidence).green
        return found if sound else found.assign(verdict=WITHHELD)


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


def notice(clusters: Clusters) -> str:
    """Return the notice on top of the page: which clusters are shown, by the kind of their runs."""
    kinds: dict[str, list[str]] = {}
    for name, evidence in clusters.places.items():
        kinds.setdefault(KINDS[evidence.manifest.kind], []).append(plain(name))
    lines = [f"- {kind}: {', '.join(names)}" for kind, names in kinds.items()]
    return "\n".join([":::{admonition} Whose numbers these are", *lines, ":::"])


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


def overview_table(clusters: Clusters) -> Table:
    """Return what the comparison gains on each cluster."""
    lines = []
    for name, evidence in clusters.places.items():
        metrics = evidence.comparison.metrics
        good = metrics["good_share"].mean
        before, after, points = side_by_side("good_share", good)
        ends = interval(good.difference.low, good.difference.high, 100)
        line = {
            "cluster": f"{name} ({evidence.manifest.kind})\n"
            f"{evidence.manifest.trace.rows:,} × {evidence.repeats}",
            "good": f"{before} % → {after} %\n{points} ({ends})\n{clusters.verdicts[name]}",
        }
        for key in LATENCIES:
            ratio = metrics[key].mean.ratio
            ends = f"{number(ratio.low, 2)} to {number(ratio.high, 2)}"
            line[f"{METRICS[key].short} ratio"] = f"{number(ratio.value, 2)}\n({ends})"
        lines.append(line)
    verdicts = list(clusters.verdicts.values())
    withheld = verdicts.count(WITHHELD)
    red = f" (withheld on {withheld}, whose gate is red)" if withheld else ""
    caption = (
        f"The comparison's good share is better on {verdicts.count('better')} of "
        f"{counted(len(verdicts), 'cluster')}{red}. Requests × repeats; good share, its change in "
        "points, and the verdict on it; ratios of the mean latencies, comparison over baseline; in "
        f"brackets {clusters.reference.study.statistics.percent} workload intervals."
    )
    return Table(pd.DataFrame(lines), caption)


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
    for cluster, of in clusters.agreements.items():
        if isinstance(of, str):
            lines.append({"cluster": f"{cluster}\ncannot be compared: {of}"})
            continue
        for key, row in of.iterrows():
            name = f"{cluster}\n{quantity(str(key), 'mean')}"
            lines.append({"cluster": name, **agreement_cells(str(key), row)})
    frame = pd.DataFrame(lines, columns=["cluster", "published", "yours", "gap"])
    frame = frame.fillna("–").rename(columns={"published": clusters.known})
    level = clusters.reference.study.statistics.percent
    return Table(frame, RULE.format(known=clusters.known, level=level))


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


def learned(clusters: Clusters) -> str:
    """Return for each cluster where it agrees with the published runs and where it differs."""
    lines = []
    for cluster, of in clusters.agreements.items():
        if isinstance(of, str):
            said = f" cannot be compared: {plain(of)}"
        elif (of["verdict"] == WITHHELD).all():
            said = f": {WITHHELD}, so nothing is said of agreement"
        else:
            said = f", {counted(of['rows'].iloc[0], 'row')}: {agreed(of)}"
        lines.append(f"- **{plain(cluster)}**{said}.")
    return "\n".join(lines) or "Nothing yet: add a cluster of your own."
