"""What the pages show: every run of one cluster, verified, with its workload and statistics.

Input: a study, a cluster and a folder of runs. Output: one object that a notebook loads and passes
on; its statistics are computed when a page first asks for them, and kept for the others.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.cache import Result, remember, source_digest
from kvab.declarations import Json, digest
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.requests.metrics import LATENCIES
from kvab.requests.table import PARTS
from kvab.runs import folder as runs
from kvab.runs.folder import Run, RunManifest, Workload, load_workload
from kvab.runs.hours import MadeHours, load_hours
from kvab.runs.sensitivity import Answers, load_sensitivity
from kvab.runs.sources import NOT_STREAMED
from kvab.stats import robustness
from kvab.stats.attribution import CELLS, attribute, misses
from kvab.stats.compare import Comparison, compare
from kvab.stats.contrasts import pair
from kvab.stats.effects import effect_by_groups, quantile_differences
from kvab.study import Arm, Study, load_study, root
from kvab.study.manifests import read_configuration
from kvab.study.topology import Topology, read_topology

Arms = tuple[list[pd.DataFrame], list[pd.DataFrame]]  # requests tables of baseline and comparison
RUNS = "*/*/r*/run.json"  # in a study's folder of runs


def kept(compute: Callable[[Evidence], Result]) -> cached_property[Result]:
    """Return a property that is computed once for the runs, study and code at hand."""

    @functools.wraps(compute)
    def remembered(evidence: Evidence) -> Result:
        key = digest([evidence.key, source_digest()])
        return remember(key, compute.__name__, lambda: compute(evidence))

    return cached_property(remembered)


@dataclass(frozen=True)
class Evidence:
    """The runs of a study on one cluster.

    Attributes
    ----------
    study : Study
        The declaration.
    cluster : str
        Name of the cluster.
    runs : dict of str to list of Run
        Verified runs by configuration, in declared order; without runs, no entry.
    workload : Workload
        The trace that they replayed.
    """

    study: Study
    cluster: str
    runs: dict[str, list[Run]]
    workload: Workload

    @property
    def simulated(self) -> bool:
        """Whether the numbers come from a simulator."""
        return self.manifest.kind == "simulated"

    @property
    def synthetic(self) -> bool:
        """Whether the workload is generated."""
        return self.manifest.trace.synthetic

    @property
    def manifest(self) -> RunManifest:
        """Manifest of the first run."""
        return self._first.manifest

    @property
    def folder(self) -> Path:
        """The folder of runs that they were read from."""
        return self._first.path.parents[3]

    @property
    def arms(self) -> dict[str, Arm]:
        """The configurations that were run, in declared order."""
        return {name: self.study.configurations[name] for name in self.runs}

    @property
    def replayed(self) -> pd.DataFrame:
        """The rows of the workload that were replayed: its first ones."""
        return self.workload.table.iloc[: self.manifest.trace.rows]

    @property
    def reusable_share(self) -> float:
        """Share of the replayed prompt tokens that an unlimited cache would reuse."""
        return float(self.replayed["reusable_tokens"].sum() / self.replayed["input_tokens"].sum())

    @cached_property
    def topologies(self) -> dict[str, Topology]:
        """What each configuration deployed, by the manifests of its first run."""
        return {
            name: read_topology(read_configuration(repeats[0].path / "manifests"))
            for name, repeats in self.runs.items()
        }

    @property
    def gpus(self) -> dict[str, int]:
        """GPUs that each configuration filled."""
        return {name: topology.gpus for name, topology in self.topologies.items()}

    @property
    def missing(self) -> str:
        """What the 2x2 lacks: configurations without a run, cells without one; empty if whole."""
        declared = self.study.configurations
        lacking = [arm.label for name, arm in declared.items() if name not in self.runs]
        placed = {(arm.factors.split, arm.factors.routing) for arm in declared.values()}
        lacking += [" + ".join(cell) for cell in CELLS if cell not in placed]
        return " and ".join(lacking)

    @property
    def repeats(self) -> int:
        """Smallest number of repeats over the configurations."""
        return min(map(len, self.runs.values()))

    def tables(self, configuration: str) -> list[pd.DataFrame]:
        """Return the requests tables of a configuration, by repeat.

        Raises
        ------
        InputError
            If it has no run.
        """
        if configuration not in self.runs:
            raise InputError(
                f"no run of {configuration} on {self.cluster}; "
                f"run `kvab run --cluster {self.cluster} --configuration {configuration}`, or "
                "import it"
            )
        return [run.requests for run in self.runs[configuration]]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """All requests: schema-1 columns plus configuration, label, repeat and good."""
        return pd.concat(
            (
                run.requests.assign(
                    configuration=name,
                    label=self.arms[name].label,
                    repeat=run.manifest.repeat,
                    good=metrics.good(run.requests, self.study.slo),
                )
                for name, repeats in self.runs.items()
                for run in repeats
            ),
            ignore_index=True,
        )

    @kept
    def comparison(self) -> Comparison:
        """The comparison against the baseline, with intervals and verdicts."""
        study, settings = self.study, self.study.statistics.model_dump()
        return compare(*self.both, study.slo, margins=study.margins, **settings)

    @kept
    def attribution(self) -> pd.DataFrame:
        """Main effects of routing and of the split, and their interaction."""
        cells: dict[tuple[str, str], list[pd.DataFrame]] = {
            (arm.factors.split, arm.factors.routing): self.tables(name)
            for name, arm in self.study.configurations.items()
        }
        return attribute(cells, self.study.slo, **self.study.statistics.model_dump())

    @kept
    def quantile_differences(self) -> dict[str, pd.DataFrame]:
        """Difference at every quantile of each latency, see `kvab.stats.effects`."""
        pairs = pair(*self.both)
        return {key: quantile_differences(pairs, key, **self._in_blocks) for key in LATENCIES}

    @kept
    def groups(self) -> pd.DataFrame:
        """Effect within groups of the requests, see `kvab.stats.effects.effect_by_groups`."""
        workload, study = self.workload.table, self.study
        return effect_by_groups(*self.both, workload, study.slo, **study.statistics.model_dump())

    @kept
    def robustness(self) -> pd.DataFrame:
        """The verdicts under other choices, see `kvab.stats.robustness.choices`."""
        study = self.study
        return robustness.choices(
            *self.both, study.slo, margins=study.margins, other_slos=study.other_slos,
            **self._in_blocks,
        )  # fmt: skip

    @kept
    def by_itl_bound(self) -> pd.DataFrame:
        """Difference of the good share by bound, see `kvab.stats.robustness.by_itl_bound`."""
        return robustness.by_itl_bound(*self.both, self.study.slo, **self._in_blocks)

    @cached_property
    def made_hours(self) -> MadeHours | None:
        """Hours made of what both arms replayed; None where there are none that fit the runs."""
        made = load_hours(self.study, self.cluster, self.folder)
        arms = [run for name in (self.study.baseline, self.study.comparison)
                for run in self.runs.get(name, ())]  # fmt: skip
        return made if made and all(made.fit(run.manifest) for run in arms) else None

    @cached_property
    def answers(self) -> Answers | None:
        """Replays at other values and in other orders; None where none fit the runs."""
        answers = load_sensitivity(self.study, self.cluster, self.folder)
        same = answers and answers.cluster == self.cluster
        return answers if same and answers and answers.fit(self.manifest) else None

    @cached_property
    def minutes(self) -> pd.DataFrame:
        """Good share (of 1) by configuration and arrival minute, repeats pooled."""
        minute = (self.requests["arrival_ms"] // 60_000).astype(int).rename("minute")
        return self.requests.groupby(["configuration", minute])[["good"]].mean()

    @cached_property
    def percentiles(self) -> pd.DataFrame:
        """Percentiles (0 to 100 by 1/8) of each latency by configuration, repeats pooled."""
        places = pd.Index(np.linspace(0, 100, 801), name="percentile")
        parts = {}
        for name, tables in self._all.items():
            pooled = pd.concat(tables)
            columns = {key: metrics.percentile(pooled[key], places.to_numpy()) for key in LATENCIES}
            parts[name] = pd.DataFrame(columns, places)
        return pd.concat(parts, names=["configuration"])

    @cached_property
    def anatomy(self) -> pd.DataFrame:
        """Mean of each part of the TTFT, in ms, indexed by configuration; NaN if not recorded."""
        parts = self.requests.groupby("configuration", sort=False)[[*PARTS]].mean()
        return parts.astype(float)

    @cached_property
    def pooled(self) -> pd.DataFrame:
        """Statistics of each configuration over the requests of all its repeats; by configuration.

        Columns are those of `kvab.requests.metrics.summarize`, such as ``ttft_ms.p99``, and
        ``reuse``, the share of prompt tokens from cache; NaN where a number is not known. What
        belongs to a run and not to requests (``good.rps``, ``reuse``) is the mean over the repeats.
        """
        rows, slo = [], self.study.slo
        for name, tables in self._all.items():
            rates = [metrics.summarize(table, slo)["good"]["rps"] for table in tables]
            reuse = [run.reuse for run in self.runs[name]]
            row = metrics.summarize(pd.concat(tables), slo) | {"configuration": name}
            row["good"]["rps"] = np.array(rates, float).mean()
            rows.append(row | {"reuse": np.array(reuse, float).mean()})
        return pd.json_normalize(rows).set_index("configuration").astype(float)

    @cached_property
    def misses(self) -> pd.DataFrame:
        """Why requests miss their bounds, see `kvab.stats.attribution.misses`."""
        return misses(self._all, self.study.slo)

    @cached_property
    def key(self) -> str:
        """Digest of study, workload and every run: its manifest, and by that all its files."""
        every = [run for repeats in self.runs.values() for run in repeats]
        manifests = [run.manifest.model_dump(mode="json") for run in every]
        workload = pd.util.hash_pandas_object(self.workload.table).to_numpy().tobytes().hex()
        return digest([self.study.digest, workload, manifests])

    @property
    def _first(self) -> Run:
        return next(iter(self.runs.values()))[0]

    @property
    def both(self) -> Arms:
        """The requests tables of baseline and comparison, by repeat."""
        return self.tables(self.study.baseline), self.tables(self.study.comparison)

    @property
    def _all(self) -> dict[str, list[pd.DataFrame]]:
        return {name: self.tables(name) for name in self.runs}

    @property
    def _in_blocks(self) -> Json:
        """How statistics resample: as declared, in blocks as long as the comparison's."""
        block = {"block_bursts": self.comparison.method.block_bursts}
        return self.study.statistics.model_dump() | block


def load_evidence(study: str | Path | Study, cluster: str, folder: str | Path) -> Evidence:
    """Return the runs of a study on a cluster, each verified against its manifest.

    Parameters
    ----------
    study : path or Study
        The study, or its file.
    cluster : str
        Name of the cluster.
    folder : path
        The folder of runs; a relative one counts from the checkout.

    Raises
    ------
    InputError
        If there are no runs, one is damaged or was not streamed, or they replayed different
        workloads.
    """
    declared = load_study(study)
    folder = root() / folder
    paths = runs.find_runs(folder, declared, cluster)
    if not paths:
        held = sorted({path.parents[2].name for path in (folder / declared.name).glob(RUNS)})
        raise InputError(
            f"{folder / declared.name / cluster}: no runs; name the folder that has them "
            f"(papermill: -p runs runs), or make them: `kvab report --cluster {cluster}`"
            + (f", or name a cluster that has some: {', '.join(held)}" if held else "")
        )
    every = _checked(paths)
    runs.check_comparable(every)
    by_configuration: dict[str, list[Run]] = {}
    for run in every:
        by_configuration.setdefault(run.manifest.configuration, []).append(run)
    workload = load_workload(folder / declared.name, every[0].manifest.trace.sha256)
    return Evidence(declared, cluster, by_configuration, workload)


def _checked(paths: list[Path]) -> list[Run]:
    """Return runs of which every file is what ``run.json`` says, now and whoever asks.

    That their tables are whole is looked at once for the files at hand, and kept for other pages.
    """
    manifests = [runs.verified_manifest(path) for path in paths]

    def read() -> list[Run]:
        every = [*map(runs.read_run, paths, manifests)]
        for run in every:
            if not metrics.streamed(run.requests):
                raise InputError(f"{run.path}: {NOT_STREAMED}")
        return every

    told = [manifest.model_dump(mode="json") for manifest in manifests]
    return remember(digest([[*map(str, paths)], told, source_digest()]), "runs", read)


def agreement(study: Study, published: Arms, yours: Arms, key: str) -> pd.DataFrame:
    """Return whether two places agree, kept by a key; see `kvab.stats.robustness.agreement`."""
    settings = study.statistics.model_dump()
    return remember(
        digest([key, source_digest()]), "agreement",
        lambda: robustness.agreement(published, yours, study.slo, study.margins, **settings),
    )  # fmt: skip


def load_published(study: str | Path | Study, folder: str | Path) -> Evidence:
    """Return the published runs of a study: of the cluster with the most, in runs and rows.

    Raises
    ------
    InputError
        If nothing is published.
    """
    declared = load_study(study)
    published = root() / folder / declared.name
    sizes: Counter[str] = Counter()
    for path in published.glob(RUNS):
        sizes[path.parents[2].name] += runs.read_manifest(path.parent).trace.rows
    if not sizes:
        raise InputError(f"{published}: no published runs; make them with `make publish`")
    return load_evidence(declared, sizes.most_common(1)[0][0], folder)
