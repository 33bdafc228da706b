"""What a cluster holds of a run: found again by a later start, removed at the end.

Input: the client and an assembled run. Output: its own objects; never those of somebody else.
"""

from __future__ import annotations

from typing import Any

from kvab.cluster import deploying, marks
from kvab.cluster.assembly import Assembly
from kvab.cluster.causes import condition
from kvab.cluster.kube import Kube

Object = dict[str, Any]


def benchmark(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's Job if it is there.

    Raises
    ------
    DependencyError
        If a Job of that name is not the study's.
    """
    found = kube.get("Job", run.job_name)
    if found:
        marks.check_own(found, run.job.study.name)
    return found


def found_again(kube: Kube, run: Assembly, mark: marks.Mark) -> Object | None:
    """Return the run's own deployment if it can go on; remove what is left of another try."""
    name = run.recipe.deployment
    found, job = kube.get(deploying.DEPLOYMENT, name), benchmark(kube, run)
    if found and mark.owns(found) and not found["metadata"].get("deletionTimestamp"):
        parts = [part for part in (found, job) if part]
        ids = {part["metadata"]["annotations"].get(marks.RUN_ID) for part in parts}
        if len(ids) == 1 and not condition(job, "Failed"):
            return found
    _remove_benchmark(kube, run)
    if found:
        deploying.take_down(kube, name, found["metadata"]["uid"])
    return None


def remove(kube: Kube, run: Assembly) -> None:
    """Delete the run's deployment, Job and helpers; storage stays.

    Raises
    ------
    DependencyError
        If something does not go away; it is named.
    """
    name = run.recipe.deployment
    _remove_benchmark(kube, run)
    found = kube.get(deploying.DEPLOYMENT, name)
    own, mine = found["metadata"] if found else {}, run.mark("", "").run
    if not found or (own.get("annotations") or {}).get(marks.RUN) == mine:
        deploying.take_down(kube, name, own.get("uid"))  # or see the rest of it go


def _remove_benchmark(kube: Kube, run: Assembly) -> None:
    """Remove the run's Job and the helper pod, if they are the study's."""
    names = {"Job": run.job_name, "Pod": run.helper}
    for kind, name in names.items():
        deploying.remove(kube, kind, name, run.job.study.name)
