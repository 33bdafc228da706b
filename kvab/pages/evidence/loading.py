"""From a folder of runs to the evidence of one cluster.

Input: a study, a cluster and a folder. Output: every run, verified, with its workload.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kvab import runs
from kvab.errors import InputError
from kvab.pages.evidence.outcomes import Evidence
from kvab.requests import metrics
from kvab.runs.sources import NOT_STREAMED
from kvab.runs.workload import load_workload
from kvab.study import load_study, root

RUNS = "*/*/r*/run.json"  # in a study's folder of runs


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
        If there are no runs, one is damaged or was not streamed, or they replayed different
        workloads.
    """
    declared = load_study(study)
    folder = root() / folder
    found: dict[str, list[runs.Run]] = {}
    for path in runs.find_runs(folder, declared, cluster):
        run = runs.read_run(path)
        if not metrics.streamed(run.requests):
            raise InputError(f"{path}: {NOT_STREAMED}")
        found.setdefault(run.manifest.configuration, []).append(run)
    if not found:
        held = sorted({path.parents[2].name for path in (folder / declared.name).glob(RUNS)})
        raise InputError(
            f"{folder / declared.name / cluster}: no runs; name the folder that has them "
            f"(papermill: -p runs runs), or make them: `kvab report --cluster {cluster}`"
            + (f", or name a cluster that has some: {', '.join(held)}" if held else "")
        )
    every = [run for each in found.values() for run in each]
    runs.check_comparable(every)
    runs.check_bounds(every)
    first = next(iter(found.values()))[0].manifest.trace
    workload = load_workload(folder / declared.name, first.sha256)
    return Evidence(declared, cluster, found, workload)


def load_published(study: str | Path, folder: str | Path) -> Evidence:
    """Return the published runs of a study: of the cluster with the most, in runs and rows.

    Raises
    ------
    InputError
        If nothing is published.
    """
    declared = load_study(study)
    place = root() / folder / declared.name
    sizes: Counter[str] = Counter()
    for path in place.glob(RUNS):
        sizes[path.parents[2].name] += runs.read_manifest(path.parent).trace.rows
    if not sizes:
        raise InputError(f"{place}: no published runs; make them with `make publish`")
    return load_evidence(study, sizes.most_common(1)[0][0], folder)
