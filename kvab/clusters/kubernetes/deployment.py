"""One deployment at a time: created or found again, watched until it serves, taken down.

Input: a marked DynamoGraphDeployment. Output: it serves, or an error that names the cause.
"""

from __future__ import annotations

import time
from typing import Any

from kvab.clusters.kubernetes import health, objects
from kvab.clusters.kubernetes.api import COMPONENT, DEPLOYMENT, Kube, Waiting
from kvab.clusters.kubernetes.health import component_table, condition, last_lines
from kvab.clusters.kubernetes.lease import Held
from kvab.clusters.kubernetes.objects import Assembly
from kvab.errors import DependencyError

Object = dict[str, Any]


def refuse_others(
    kube: Kube, mark: objects.Mark, names: set[str], own: Object | None = None
) -> None:
    """Refuse to go on while another deployment of the study holds the GPUs.

    With ``own``, one that is there already, only an older one counts.

    Raises
    ------
    DependencyError
        Naming it, the run that it belongs to, and both ways out.
    """
    for found in kube.list(DEPLOYMENT):
        metadata = found["metadata"]
        labelled = (metadata.get("labels") or {}).get(objects.STUDY_LABEL) == mark.study
        if not labelled and metadata["name"] not in names:
            continue
        run = (metadata.get("annotations") or {}).get(objects.RUN)
        if run == mark.run or (own and _age(own) <= _age(found)):
            continue
        made_by = f" (made by {who})" if (who := objects.owner_of(found)) else ""
        raise DependencyError(
            f"deployment {metadata['name']} of {run or 'another owner'} holds the GPUs since "
            f"{metadata.get('creationTimestamp')}{made_by}; finish that run, or free them with "
            f"`kubectl -n {kube.namespace} delete dgd {metadata['name']}`"
        )


def _age(found: Object) -> tuple[str, str]:
    """Return what orders deployments from the oldest; both sides see the same."""
    return found["metadata"]["creationTimestamp"], found["metadata"]["uid"]


def create(kube: Kube, manifest: Object, mark: objects.Mark, names: set[str]) -> Object:
    """Create the deployment; of two that start at once, the younger gives way."""
    made = kube.create(manifest)
    try:
        refuse_others(kube, mark, names, made)
    except DependencyError:
        kube.delete(DEPLOYMENT, made["metadata"]["name"], made["metadata"]["uid"])
        raise
    return made


def wait_ready(kube: Kube, expected: health.Expected, probes: int) -> None:
    """Return when the deployment serves by every sign of `readiness`.

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
            raise DependencyError(_explained(kube, cause))
        unmet = _unmet(kube, expected, made, pods, probes)
        return (
            Waiting(f"waits for {unmet}", component_table(expected, pods, events))
            if unmet
            else None
        )

    def late(waiting: Waiting) -> str:
        why = f"; {causes[0]}" if causes else ""
        return (
            f"{expected.deployment}: not ready in {kube.limits.deploy_s:g} s, still "
            f"{waiting.note}{why}"
        )

    title, limit_s = expected.deployment, kube.limits.deploy_s
    kube.wait_until(probe, limit_s, late, title=title, selector=expected.selector)


def _unmet(
    kube: Kube, expected: health.Expected, found: Object, pods: list[Object], probes: int
) -> str:
    """Return the first sign that is missing; completions are asked for last of all."""
    for check in health.of_objects(expected, found, pods):
        if not check.ok:
            return check.what
    for check in health.of_frontend(expected, kube.proxy):
        if not check.ok:
            return check.what
    for _ in range(probes):
        check = health.complete(expected, kube.proxy)
        if not check.ok:
            return check.what
    return ""


def _explained(kube: Kube, cause: health.Cause) -> str:
    if not cause.reason.startswith("CrashLoopBackOff"):
        return str(cause)
    log = kube.log(cause.pod, cause.container, previous=True, lines=50)
    return f"{cause}; its log (whole in diagnostics/) ended with: {last_lines(log, 4)}"


def remove(kube: Kube, kind: str, name: str, study: str) -> None:
    """Delete an object of the study and return when it and its pods are gone.

    Raises
    ------
    DependencyError
        If it is still there after ``limits.teardown_s``.
    """
    found = kube.get(kind, name)
    if found is None or (found["metadata"].get("labels") or {}).get(objects.STUDY_LABEL) != study:
        return
    uid = found["metadata"]["uid"]
    kube.delete(kind, name, uid)

    def probe() -> Waiting | None:
        left = kube.get(kind, name)
        ours = left is not None and left["metadata"]["uid"] == uid
        pods = kind == "Job" and kube.list("Pod", f"job-name={name}")
        return Waiting(f"{kind} {name}") if ours or pods else None

    kube.wait_until(
        probe,
        kube.limits.teardown_s,
        lambda waiting: (
            f"{waiting.note}: deleted, but not gone after {kube.limits.teardown_s:g} s; see "
            f"`kubectl -n {kube.namespace} describe {kind.lower()} {name}`"
        ),
    )


def take_down(kube: Kube, name: str, uid: str | None) -> None:
    """Delete a deployment and return when nothing of it is left.

    Without ``uid`` it is gone already, and only its children are waited for.

    Its children go in the background; a foreground deletion has looped for hours. A finalizer that
    nobody removes is reported and left alone: stripping it would orphan what it guards.

    Raises
    ------
    DependencyError
        If something is left after ``limits.teardown_s``; it is named.
    """
    selector = f"{health.DEPLOYMENT_LABEL}={name}"
    own: Object | None = None
    left: list[str] = []

    def probe() -> Waiting | None:
        nonlocal own
        now = kube.get(DEPLOYMENT, name)
        own = now if now and now["metadata"]["uid"] == uid else None
        if now and not own:
            return None  # someone made another of that name; its pods are not ours
        left[:] = [f"deployment {name}"] if own else []
        left.extend(f"component {o['metadata']['name']}" for o in kube.list(COMPONENT, selector))
        left.extend(f"pod {pod['metadata']['name']}" for pod in kube.list("Pod", selector))
        return Waiting(f"waits for {len(left)} objects: {left[0]}") if left else None

    if uid:
        kube.delete(DEPLOYMENT, name, uid)
    kube.wait_until(
        probe,
        kube.limits.teardown_s,
        lambda _: _stuck(kube, name, own, left),
        title=f"{name} goes",
        selector=selector,
    )


def _stuck(kube: Kube, name: str, own: Object | None, left: list[str]) -> str:
    finalizers = ((own or {}).get("metadata") or {}).get("finalizers") or []
    if finalizers:
        return (
            f"deployment {name}: deleted, but held by the finalizer {', '.join(finalizers)} after "
            f"{kube.limits.teardown_s:g} s; only Dynamo's operator may remove it: is the operator "
            "running? Nothing was stripped; run the same command again when it does"
        )
    return (
        f"deployment {name}: deleted, but after {kube.limits.teardown_s:g} s {len(left)} objects "
        f"are left, first {left[0]}; see `kubectl -n {kube.namespace} describe`, then run again"
    )


def find_job(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's Job if it is there.

    Raises
    ------
    DependencyError
        If a Job of that name is not the study's.
    """
    found = kube.get("Job", run.job_name)
    if found:
        objects.check_own(found, run.job.study.name)
    return found


def found_again(kube: Kube, run: Assembly, mark: objects.Mark) -> Object | None:
    """Return the run's own deployment if it can go on; remove what is left of another try."""
    name = run.recipe.deployment
    found, job = kube.get(DEPLOYMENT, name), find_job(kube, run)
    if found and mark.owns(found) and not found["metadata"].get("deletionTimestamp"):
        parts = [part for part in (found, job) if part]
        ids = {part["metadata"]["annotations"].get(objects.RUN_ID) for part in parts}
        if len(ids) == 1 and not condition(job, "Failed"):
            return found
    for kind, part in _benchmark_parts(run).items():
        remove(kube, kind, part, run.job.study.name)
    if found:
        take_down(kube, name, found["metadata"]["uid"])
    return None


def remove_run(kube: Kube, run: Assembly) -> None:
    """Delete the run's deployment, Job and helpers; storage stays.

    Raises
    ------
    DependencyError
        If something does not go away; it is named.
    """
    name = run.recipe.deployment
    mine = run.name
    for kind, part in _benchmark_parts(run).items():
        found = kube.get(kind, part)
        if found and objects.run_of(found) == mine:
            remove(kube, kind, part, run.job.study.name)
    found = kube.get(DEPLOYMENT, name)
    if not found or objects.run_of(found) == mine:
        uid = found["metadata"]["uid"] if found else None
        take_down(kube, name, uid)  # or see the rest of it go


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
    found, mark = kube.get(DEPLOYMENT, run.recipe.deployment), run.mark()
    if not found or objects.run_of(found) != mark.run or mark.owns(found):
        return
    who = objects.owner_of(found)
    if who not in ("", objects.owner_of(run.lease())):
        raise Held(
            f"deployment {run.recipe.deployment} of {mark.run}: made by {who} of other rows or "
            "manifests, and no client of it is alive; replace it with --take-over"
        )
