"""A Job from its start to its end: how far it is, why none of its pods starts, how it ended.

Input: a Job that was created. Output: the ended Job and its pods, or an error with the cause.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from kvab.clusters.kubernetes import health
from kvab.clusters.kubernetes.api import Kube, Object, Waiting
from kvab.errors import DependencyError
from kvab.study.manifests import at


class JobFailed(DependencyError):
    """A Job failed, or none of its pods can start."""


class Look(NamedTuple):
    """A Job, its pods, and the last lines of a pod's log that were seen so far."""

    job: Object
    pods: list[Object]
    log: str


def wait_ended(
    kube: Kube,
    name: str,
    note: Callable[[Look], str],
    *,
    title: str,
    limit_s: float = math.inf,
    late: str = "",
) -> Look:
    """Return a Job that is complete or failed.

    Parameters
    ----------
    kube, name : Kube, str
        Where it is.
    note : callable
        Gets each look at it, the last one too, and returns how far it is.
    title, late : str
        What is shown before a note, and the message when it has not ended in ``limit_s``.

    Raises
    ------
    JobFailed
        If none of its pods can start or be created, with the cause.
    DependencyError
        If it was deleted, or the time is over.
    """
    grace, log = health.Grace(kube.limits.grace_s), ""

    def probe() -> Waiting | Look:
        nonlocal log
        job, pods = kube.get("Job", name), kube.list("Pod", f"job-name={name}")
        if job is None:
            end = f"; its log ended with: {log}" if log else ""
            raise DependencyError(f"Job {name} was deleted while it ran; run again{end}")
        log = log_end(kube, pods) or log
        text = note(look := Look(job, pods, log))
        if health.holds(job, "Complete") or health.holds(job, "Failed"):
            return look
        causes = health.of_job(job, pods, kube.list("Event"))
        if cause := grace.lasting(causes, time.monotonic()):
            raise JobFailed(f"Job {name}: {cause}")
        return Waiting(text)

    return kube.wait_until(probe, limit_s, lambda _: late, title=title)


def check_complete(name: str, look: Look) -> None:
    """Raise JobFailed unless an ended Job is complete: why, and the last lines of its log."""
    if health.holds(look.job, "Failed"):
        failed = health.condition(look.job, "Failed")
        code = terminated(look.pods).get("exitCode", "unknown")
        raise JobFailed(
            f"Job {name}: {failed.get('reason', 'Failed')}, exit code {code}: "
            f"{failed.get('message', '')}; its log ends with: {look.log or 'nothing'}"
        )


def newest(pods: list[Object]) -> Object | None:
    """Return the pod that was created last."""
    return max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default=None)


def terminated(pods: list[Object]) -> Object:
    """Return how the newest pod's container ended, empty if it did not."""
    statuses = at(newest(pods), "status.containerStatuses") or []
    return next((end for one in statuses if (end := at(one, "state.terminated"))), {})


def log_end(kube: Kube, pods: list[Object]) -> str:
    """Return the last lines of the newest pod's log, on one line."""
    if (pod := newest(pods)) is None:
        return ""
    log = kube.log(pod["metadata"]["name"], health.main_container(pod), lines=50)
    return health.last_lines(log, 4)
