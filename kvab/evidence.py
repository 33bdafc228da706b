"""What the pages stand on: every run of one cluster, verified, with its workload.

Input: a folder of runs. Output: one object that a notebook loads and passes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from kvab import metrics, runs
from kvab.attribution import Attribution, attribute
from kvab.compare import Comparison, compare
from kvab.errors import InputError
from kvab.study import Arm, Study, load_study, root
from kvab.workload import Workload, load_workload


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
    runs: dict[str, list[runs.Run]]
    workload: Workload

    @property
    def simulated(self) -> bool:
        """Whether the numbers come from a simulator."""
        return self.manifest.kind == "simulated"

    @property
    def synthetic(self) -> bool:
        """Whether the workload is made up."""
        return self.manifest.trace.synthetic

    @property
    def manifest(self) -> runs.RunManifest:
        """Manifest of the first run."""
        return next(iter(self.runs.values()))[0].manifest

    @property
    def arms(self) -> dict[str, Arm]:
        """The configurations that were run, in declared order."""
        return {name: self.study.configurations[name] for name in self.runs}

    @property
    def repeats(self) -> int:
        """Smallest number of repeats over the configurations."""
        return min(len(found) for found in self.runs.values())

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
                f"run `kvab run --cluster {self.cluster} --configuration {configuration}`"
            )
        return [run.requests for run in self.runs[configuration]]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """All requests: schema-1 columns plus configuration, label, repeat and good."""
        parts = [
            run.requests.assign(
                configuration=name,
                label=self.arms[name].label,
                repeat=run.manifest.repeat,
                good=metrics.good(run.requests, self.study.slo),
            )
            for name, found in self.runs.items()
            for run in found
        ]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison against the baseline, with intervals and verdicts."""
        study = self.study
        return compare(
            self.tables(study.baseline),
            self.tables(study.comparison),
            study.slo,
            margins=study.margins,
            **study.statistics.model_dump(),
        )

    @cached_property
    def attribution(self) -> Attribution:
        """Main effects of routing and of the split, and their interaction."""
        cells = {
            (arm.factors.split, arm.factors.routing): self.tables(name)
            for name, arm in self.study.configurations.items()
        }
        return attribute(cells, self.study.slo, **self.study.statistics.model_dump())


def load_evidence(study: str | Path, cluster: str, folder: str | Path) -> Evidence:
    """Return the runs of a study on a cluster, each verified against its manifest.

    Parameters
    ----------
    study : path
        The study file.
    cluster : str
        Name of the cluster.
    folder : path
        The folder of runs; a relative one counts from the checkout.

    Raises
    ------
    InputError
        If there are no runs, one is damaged, or they replayed different workloads.
    """
    declared = load_study(study)
    folder = root() / folder
    found: dict[str, list[runs.Run]] = {}
    for path in runs.find_runs(folder, declared, cluster):
        run = runs.read_run(path)
        found.setdefault(run.manifest.configuration, []).append(run)
    if not found:
        raise InputError(
            f"{folder / declared.name / cluster}: no runs; run `kvab report --cluster {cluster}`"
        )
    first = next(iter(found.values()))[0].manifest.trace
    for run in (run for each in found.values() for run in each):
        if (run.manifest.trace.sha256, run.manifest.trace.rows) != (first.sha256, first.rows):
            raise InputError(
                f"{run.path}: replayed {run.manifest.trace.rows} rows of "
                f"{run.manifest.trace.name}, other runs {first.rows} rows of {first.name}; "
                f"run `kvab report --cluster {cluster}` to make them agree"
            )
    workload = load_workload(folder / declared.name, first.sha256)
    return Evidence(declared, cluster, found, workload)
