"""A run planned: what it is asked to do, checked before anything starts.

Input: a study, a cluster, a configuration and a repeat. Output: a job.
"""

from __future__ import annotations

from pathlib import Path

from kvab.clusters import open_cluster
from kvab.clusters.base import Job
from kvab.errors import InputError
from kvab.study import Study, check_product, load_cluster, recipes
from kvab.study.sweep import AS_DECLARED, Variant
from kvab.trace import Trace, find_trace


def plan_job(
    study: Study,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    rows: int | None = None,
    trace: Trace | Path | None = None,
    folder: Path = Path("runs"),
    variant: Variant = AS_DECLARED,
) -> Job:
    """Return a checked job; ``rows`` is the number of first trace rows, None for all.

    ``trace`` is the workload, or as for `find_trace`; it is found once the rest is checked.
    A variant replays the trace at another speed, or the topology with another split.

    Raises
    ------
    InputError
        If the configuration, cluster or repeat is not declared, the manifests are not what the
        study says or of unequal hardware, the cluster has other GPUs than the study is about, or
        the trace has fewer rows.
    """
    study.configuration_folder(configuration)
    study.seed(repeat)
    profile = load_cluster(cluster)
    check_product(study, profile)
    variant.topology(recipes.declared_topology(study, configuration))
    recipes.check_gpus(study)
    identity = open_cluster(profile).identity()
    if trace is None:
        _check_rows(rows, study.trace.rows, study.trace.name)
    if not isinstance(trace, Trace):
        trace = find_trace(study.trace, trace)
    _check_rows(rows, len(trace), trace.path)
    rows, replayed = rows or len(trace), variant.trace(trace)
    return Job(study, profile, configuration, repeat, rows, replayed, folder, identity, variant)


def _check_rows(rows: int | None, most: int, where: str | Path) -> None:
    if rows is not None and not 1 <= rows <= most:
        raise InputError(f"{where}: expected rows from 1 to {most}, got {rows}")
