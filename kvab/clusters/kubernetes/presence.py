"""What a cluster holds of a run: found again by a later start, removed at the end.

Input: the client and an assembled run. Output: its own objects; never those of somebody else.
"""

from __future__ import annotations

from typing import Any

from kvab.clusters.kubernetes import deploying, marks
from kvab.clusters.kubernetes.assembly import Assembly
from kvab.clusters.kubernetes.causes import condition
from kvab.clusters.kubernetes.kube import Kube
from kvab.clusters.kubernetes.lease import Held

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
    for kind, part in _benchmark_parts(run).items():
        deploying.remove(kube, kind, part, run.job.study.name)
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
    mine = run.mark("", "").run
    for kind, part in _benchmark_parts(run).items():
        found = kube.get(kind, part)
        if found and marks.run_of(found) == mine:
            deploying.remove(kube, kind, part, run.job.study.name)
    found = kube.get(deploying.DEPLOYMENT, name)
    if not found or marks.run_of(found) == mine:
        uid = found["metadata"]["uid"] if found else None
        deploying.take_down(kube, name, uid)  # or see the rest of it go


def _benchmark_parts(run: Assembly) -> dict[str, str]:
    """Return the names of the Job and the helper pod, by kind."""
    return {"Job": run.job_name, "Pod": run.helper}


def check_left(kube: Kube, run: Assembly) -> None:
    """Leave alone what somebody else's client, which is gone, left of the run with other inputs.

    Raises
    ------
    Held
        Naming who, and how to replace it.
    """
    found, mark = kube.get(deploying.DEPLOYMENT, run.recipe.deployment), run.digest_mark()
    if not found or marks.run_of(found) != mark.run or mark.owns(found):
        return
    who = marks.owner_of(found)
    if who not in ("", marks.owner_of(run.lease())):
        raise Held(
            f"deployment {run.recipe.deployment} of {mark.run}: made by {who} of other rows or "
            "manifests, and no client of it is alive; replace it with --take-over"
        )
