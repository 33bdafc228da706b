"""All clusters side by side: what the comparison gains on each, and whether that agrees.

Input: a folder of runs and the published ones. Output: one object that a notebook loads. Clusters
are compared, never pooled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvab.cache import remember, source_digest
from kvab.declarations import digest
from kvab.errors import InputError
from kvab.pages.evidence import Evidence, load_evidence, load_published
from kvab.pages.validity import WITHHELD, Gate, gate
from kvab.study import load_study, root


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
