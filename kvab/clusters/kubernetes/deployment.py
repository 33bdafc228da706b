"""One deployment at a time: created or resumed, watched until it serves, removed.

Input: the manifests of a run. Output: the deployment serves, or an error that names the cause.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain

from kvab.clusters.kubernetes import health, objects
from kvab.clusters.kubernetes.api import COMPONENT, DEPLOYMENT, Kube, Object, Waiting
from kvab.clusters.kubernetes.lease import Held
from kvab.clusters.kubernetes.objects import Assembly
from kvab.errors import DependencyError
from kvab.study.manifests import at

# What belongs to an object of a kind: the label that names it, and the kinds of its children.
CHILDREN = {
    "Job": ("job-name", ("Pod",)),
    DEPLOYMENT: (health.DEPLOYMENT_LABEL, (COMPONENT, "Pod")),
}


def refuse_others(kube: Kube, run: Assembly, own: Object | None = None) -> None:
    """Refuse to go on while another deployment of the study holds the GPUs.

    With ``own``, one that is there already, only an older one counts.

    Raises
    ------
    DependencyError
        Naming it, the run that it belongs to, and both ways out.
    """
    for other in kube.list(DEPLOYMENT, f"{objects.STUDY_LABEL}={run.job.study.base}"):
        name, of_run = other["metadata"]["name"], objects.annotation(other, objects.RUN)
        if of_run == run.name or (own and _age(own) <= _age(other)):
            continue
        made_by = f" (made by {who})" if (who := objects.owner_of(other)) else ""
        raise DependencyError(
            f"deployment {name} of {of_run} holds the GPUs since "
            f"{other['metadata'].get('creationTimestamp')}{made_by}; finish that run, or free them "
            f"with `kubectl -n {kube.namespace} delete dgd {name}`"
        )


def _age(deployment: Object) -> tuple[str, str]:
    """Return what orders deployments from the oldest; both sides see the same."""
    return deployment["metadata"]["creationTimestamp"], deployment["metadata"]["uid"]


def create(kube: Kube, run: Assembly, run_id: str) -> Object:
    """Create the deployment; of two that start at once, the younger gives way."""
    made = kube.create(run.manifests(run_id)[0])
    try:
        refuse_others(kube, run, made)
    except DependencyError:
        kube.delete(DEPLOYMENT, made["metadata"]["name"], made["metadata"]["uid"])
        raise
    return made


def wait_ready(kube: Kube, expected: health.Expected, probes: int) -> None:
    """Return when the deployment serves by every sign; completions are asked for last of all.

    Raises
    ------
    DependencyError
        With the cause as soon as it is known, at the latest after ``limits.deploy_s``.
    """
    grace = health.Grace(kube.limits.grace_s)
    causes: list[health.Cause] = []

    def probe() -> Waiting | None:
        made = kube.get(DEPLOYMENT, expected.deployment)
        if made is None or made["metadata"]["uid"] != expected.uid:
            raise DependencyError(
                f"{expected.deployment}: the deployment was deleted or replaced by someone "
                "else while it came up; run again"
            )
        pods, events = kube.list("Pod", expected.selector), kube.list("Event")
        causes[:] = [
            *health.of_deployment(made),
            *health.of_pods(pods, events),
            *health.of_creation(events, made, expected.owned),
        ]
        if cause := grace.lasting(causes, time.monotonic()):
            raise DependencyError(_with_log(kube, cause))
        unmet = chain(
            health.of_objects(expected, made, pods),
            health.of_frontend(expected, kube.proxy),
            *(health.of_completion(expected, kube.proxy) for _ in range(probes)),
        )
        if sign := next(unmet, ""):
            return Waiting(f"waits for {sign}", health.component_table(expected, pods, events))
        return None

    def late(waiting: Waiting) -> str:
        why = f"; {causes[0]}" if causes else ""
        limit = f"not ready in {kube.limits.deploy_s:g} s"
        return f"{expected.deployment}: {limit}, still {waiting.note}{why}"

    kube.wait_until(probe, kube.limits.deploy_s, late, title=expected.deployment)


def _with_log(kube: Kube, cause: health.Cause) -> str:
    if not cause.reason.startswith("CrashLoopBackOff"):
        return str(cause)
    log = kube.log(cause.pod, cause.container, previous=True, lines=50)
    return f"{cause}; its log (whole in diagnostics/) ended with: {health.last_lines(log, 4)}"


def remove(kube: Kube, kind: str, name: str, ours: Callable[[Object], bool]) -> None:
    """Delete an object unless it is not ours, and return when nothing of it is left.

    Its children go in the background; a foreground deletion has looped for hours. A finalizer that
    nobody removes is reported and left alone: stripping it would orphan what it guards.

    Raises
    ------
    DependencyError
        If something is left after ``limits.teardown_s``; it is named.
    """
    present = kube.get(kind, name)
    if present and not ours(present):
        return
    if present:
        kube.delete(kind, name, present["metadata"]["uid"])
    label, children = CHILDREN.get(kind, ("", ()))

    def probe() -> Waiting | None:
        now = kube.get(kind, name)
        if now and at(now, "metadata.uid") != at(present, "metadata.uid"):
            return None  # someone made another of that name; its pods are not ours
        left = [(kind, now)] if now else []
        left += [
            (child, part) for child in children for part in kube.list(child, f"{label}={name}")
        ]
        if not left:
            return None
        first = f"{left[0][0]} {left[0][1]['metadata']['name']}"
        return Waiting(f"{len(left)} objects are left, first {first}")

    def late(waiting: Waiting) -> str:
        after = f"after {kube.limits.teardown_s:g} s"
        if finalizers := at(kube.get(kind, name), "metadata.finalizers"):
            return (
                f"{kind} {name}: deleted, but held by the finalizer {', '.join(finalizers)} "
                f"{after}; only whoever put it there may remove it, such as Dynamo's operator: is "
                "it running? Nothing was stripped; run the same command again when it does"
            )
        return (
            f"{kind} {name}: deleted, but {after} {waiting.note}; see `kubectl -n "
            f"{kube.namespace} describe {kind.lower()} {name}`, then run again"
        )

    title = f"{name} goes" if kind == DEPLOYMENT else ""
    kube.wait_until(probe, kube.limits.teardown_s, late, title=title)


def find_job(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's Job if it is there.

    Raises
    ------
    DependencyError
        If a Job of that name is not the study's.
    """
    job = kube.get("Job", run.job_name)
    if job:
        objects.check_own(job, run.job.study.base)
    return job


def resumed(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's own deployment if it can go on; remove what is left of another try."""
    deployment, job = kube.get(DEPLOYMENT, run.recipe.deployment), find_job(kube, run)
    if deployment and run.owns(deployment) and not deployment["metadata"].get("deletionTimestamp"):
        tries = {objects.annotation(part, objects.RUN_ID) for part in (deployment, job) if part}
        if len(tries) == 1 and not health.holds(job, "Failed"):
            return deployment
    _remove_parts(kube, run, lambda part: objects.of_study(part, run.job.study.base))
    return None


def remove_run(kube: Kube, run: Assembly) -> None:
    """Delete the run's deployment, Job and helpers; storage stays.

    Raises
    ------
    DependencyError
        If something does not go away; it is named.
    """
    _remove_parts(kube, run, lambda part: objects.annotation(part, objects.RUN) == run.name)


def _remove_parts(kube: Kube, run: Assembly, ours: Callable[[Object], bool]) -> None:
    remove(kube, "Job", run.job_name, ours)
    remove(kube, "Pod", run.helper, ours)
    remove(kube, DEPLOYMENT, run.recipe.deployment, ours)


def check_left(kube: Kube, run: Assembly) -> None:
    """Leave alone what somebody else's client, which is gone, left of the run with other inputs.

    Raises
    ------
    Held
        Naming who, and how to replace it.
    """
    deployment = kube.get(DEPLOYMENT, run.recipe.deployment)
    if (
        not deployment
        or objects.annotation(deployment, objects.RUN) != run.name
        or run.owns(deployment)
    ):
        return
    who = objects.owner_of(deployment)
    if who not in ("", objects.owner_of(run.lease())):
        raise Held(
            f"deployment {run.recipe.deployment} of {run.name}: made by {who} of other rows or "
            "manifests, and no client of it is alive; replace it with --take-over"
        )
