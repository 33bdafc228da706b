"""What a run has on the cluster: made or resumed, watched until it serves or ends, removed.

Input: the manifests of a run. Output: claims, scripts, model, deployment and Jobs as they have to
be, or an error that names the cause.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import NamedTuple

from kvab.clusters.base import last_lines, missing_to_serve
from kvab.clusters.kubernetes import health, objects
from kvab.clusters.kubernetes.api import DEPLOYMENT, Kube, Pod, main_container
from kvab.clusters.kubernetes.health import Stuck, Waiting, wait_until
from kvab.clusters.kubernetes.objects import Assembly
from kvab.errors import DependencyError
from kvab.study.manifests import Object, at
from kvab.study.topology import Topology

ENDED = ("Succeeded", "Failed")


def claim_storage(kube: Kube, claims: list[Object]) -> None:
    """Create the volume claims that are not there; those that are stay as they are.

    Raises
    ------
    DependencyError
        If one that is there cannot serve.
    """
    for claim in claims:
        name, mode = claim["metadata"]["name"], claim["spec"]["accessModes"][0]
        present = kube.get("PersistentVolumeClaim", name)
        if present is None:
            kube.create(claim)
        elif present["metadata"].get("deletionTimestamp"):
            raise DependencyError(f"PVC {name} is being deleted; wait until it is gone, run again")
        elif mode not in (modes := present["spec"]["accessModes"]):
            got, fix = ", ".join(modes), "fix access_mode of the profile, or delete the claim"
            raise DependencyError(f"PVC {name}: expected access mode {mode}, got {got}; {fix}")


def ensure(kube: Kube, manifest: Object, serves: Callable[[Object], bool]) -> None:
    """Create an object unless one is there that serves; another one of the study's is replaced.

    Raises
    ------
    DependencyError
        If something else has its name.
    """
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    present = kube.get(kind, name)
    if present and serves(present):
        return
    if present:
        objects.check_own(present, manifest["metadata"]["labels"][objects.STUDY_LABEL])
        remove(kube, kind, name, lambda _: True)
    kube.create(manifest)


def fetch_model(kube: Kube, job: Object) -> None:
    """Run the download to its end, unless the same one has succeeded.

    Raises
    ------
    DependencyError
        If it fails, or is not done in ``limits.prepare_s``; it goes on by itself then.
    """
    name, limit_s = job["metadata"]["name"], kube.limits.prepare_s
    fix = "it goes on: run again later, or raise limits.prepare_s of the profile"
    late = f"Job {name}: not done in {limit_s:g} s; {fix}"
    wanted = objects.model_of(job)

    def serves(present: Object) -> bool:
        return objects.model_of(present) == wanted and not health.holds(present, "Failed")

    def note(look: Look) -> str:
        phases = ", ".join(health.phase(pod) for pod in look.pods)
        return look.log.rpartition(" | ")[2] or phases or "no pod yet"

    ensure(kube, job, serves)
    try:
        look = wait_ended(kube, name, note, title=f"Job {name}", limit_s=limit_s, late=late)
        check_complete(name, look)
    except Stuck:
        study = job["metadata"]["labels"][objects.STUDY_LABEL]
        remove(kube, "Job", name, lambda present: objects.of_study(present, study))
        raise


def refuse_others(kube: Kube, run: Assembly, own: Object | None = None) -> None:
    """Refuse to go on while another deployment of the study holds the GPUs.

    With ``own``, one that is there already, only an older one counts.

    Raises
    ------
    DependencyError
        Naming it, the run that it belongs to, and both ways out.
    """
    for other in kube.list(DEPLOYMENT, f"{objects.STUDY_LABEL}={run.study.base}"):
        metadata, of_run = other["metadata"], objects.annotation(other, objects.RUN)
        if of_run == run.name or (own and _age(own) <= _age(other)):
            continue
        made_by = f" (made by {who})" if (who := objects.owner_of(other)) else ""
        fix = f"finish that run, or `kubectl -n {kube.namespace} delete dgd {metadata['name']}`"
        raise DependencyError(
            f"deployment {metadata['name']} of {of_run} holds the GPUs since "
            f"{metadata['creationTimestamp']}{made_by}; {fix}"
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


def wait_ready(kube: Kube, run: Assembly, topology: Topology, uid: str) -> None:
    """Return when the deployment serves by every sign; the frontend is asked last.

    Raises
    ------
    DependencyError
        With the cause as soon as it is known, at the latest after ``limits.deploy_s``.
    """
    name, limit_s = run.recipe.deployment, kube.limits.deploy_s
    ask = partial(kube.proxy, run.service)

    def probe() -> Waiting | None:
        made = kube.get(DEPLOYMENT, name)
        if made is None or made["metadata"]["uid"] != uid:
            what = "the deployment was deleted or replaced by someone else while it came up"
            raise DependencyError(f"{name}: {what}; run again")
        pods, events = kube.list("Pod", health.selector(name)), kube.list("Event")
        unmet = chain(health.of_objects(run.replicas, made, pods), missing_to_serve(ask, topology))
        if not (sign := next(unmet, "")):
            return None
        causes = chain(
            health.of_deployment(made),
            health.of_pods(pods, events),
            health.of_creation(events, made, health.owned(name, run.replicas)),
        )
        table = health.component_table(run.replicas, pods, events)
        late = f"{name}: not ready in {limit_s:g} s, still waits for {sign}"
        return Waiting(f"waits for {sign}", table, [*causes], late)

    wait_until(kube, probe, limit_s, title=name)


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
    Stuck
        If none of its pods can start or be created, with the cause.
    DependencyError
        If it was deleted, or the time is over.
    """
    log = ""

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
        return Waiting(text, causes=health.of_job(job, pods, kube.list("Event")), late=late)

    return wait_until(kube, probe, limit_s, title=title, subject=f"Job {name}: ")


def check_complete(name: str, look: Look) -> None:
    """Raise Stuck unless an ended Job is complete: why, and the last lines of its log."""
    if health.holds(look.job, "Failed"):
        raise Stuck(f"Job {name}: {how_ended(look, health.condition(look.job, 'Failed'))}")


def how_ended(look: Look, failed: Object) -> str:
    """Return why and how the newest pod failed, by the status that says it and by its log."""
    statuses = at(newest(look.pods), "status.containerStatuses") or []
    ended: Object = next((end for one in statuses if (end := at(one, "state.terminated"))), {})
    reason = failed.get("reason") or ended.get("reason") or "Failed"
    message = f": {failed['message']}" if failed.get("message") else ""
    return (
        f"{reason}, exit code {ended.get('exitCode', 'unknown')}{message}; its log ends with: "
        f"{look.log or 'nothing'}"
    )


def newest(pods: list[Object]) -> Object | None:
    """Return the pod that was created last."""
    return max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), default=None)


def log_end(kube: Kube, pods: list[Object]) -> str:
    """Return the last lines of the newest pod's log, on one line."""
    if (pod := newest(pods)) is None:
        return ""
    return last_lines(kube.log(pod["metadata"]["name"], main_container(pod), lines=50))


@contextmanager
def helper_pod(kube: Kube, manifest: Object, job: str | None = None) -> Iterator[Pod]:
    """Yield a running pod that mounts the volume: that of a Job if it runs, else one made for it.

    Raises
    ------
    DependencyError
        If the pod made for it does not start; the cause is named.
    """
    for pod in kube.list("Pod", f"job-name={job}") if job else ():
        if health.phase(pod) == "Running" and not pod["metadata"].get("deletionTimestamp"):
            yield Pod(kube, pod)
            return
    name, study = manifest["metadata"]["name"], manifest["metadata"]["labels"][objects.STUDY_LABEL]

    def is_old(pod: Object) -> bool:
        return objects.of_study(pod, study) and health.phase(pod) in ENDED

    def probe() -> Waiting | None:
        pod = kube.get("Pod", name)
        if (phase := health.phase(pod)) == "Running":
            return None
        causes = [*health.of_pods([pod], kube.list("Event"))] if pod else []
        if pod is None or phase in ENDED:
            why = f": {causes[0]}" if causes else ""
            raise DependencyError(f"pod {name} ended ({phase}) before it could be used{why}")
        return Waiting(f"pod {name} did not start; see `kubectl describe pod`", causes=causes)

    remove(kube, "Pod", name, is_old)
    made = kube.create(manifest)
    try:
        wait_until(kube, probe, kube.limits.prepare_s)
        yield Pod(kube, made)
    finally:
        kube.delete("Pod", name, made["metadata"]["uid"])


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
    label, *children = health.CHILDREN.get(kind, ("",))
    limit_s = kube.limits.teardown_s

    def probe() -> Waiting | None:
        now = kube.get(kind, name)
        if now and at(now, "metadata.uid") != at(present, "metadata.uid"):
            return None  # someone made another of that name; its pods are not ours
        parts = [part for child in children for part in kube.list(child, f"{label}={name}")]
        left = [part["metadata"]["name"] for part in (now, *parts) if part]
        if not left:
            return None
        note = f"{len(left)} objects are left, first {left[0]}"
        why = f"after {limit_s:g} s {note}; see `kubectl describe`, then run again"
        if finalizers := at(now, "metadata.finalizers"):
            why = (
                f"held by the finalizer {', '.join(finalizers)} after {limit_s:g} s. Nothing was "
                "stripped: is whoever put it there, such as Dynamo's operator, running? Run again "
                "when it does"
            )
        return Waiting(note, late=f"{kind} {name}: deleted, but {why}")

    wait_until(kube, probe, limit_s, title=f"{name} goes" if kind == DEPLOYMENT else "")


def find_job(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's Job if it is there.

    Raises
    ------
    DependencyError
        If a Job of that name is not the study's.
    """
    job = kube.get("Job", run.job_name)
    if job:
        objects.check_own(job, run.study.base)
    return job


def resumed(kube: Kube, run: Assembly) -> Object | None:
    """Return the run's own deployment if it can go on; remove what is left of another try."""
    made, job = kube.get(DEPLOYMENT, run.recipe.deployment), find_job(kube, run)
    if made and run.owns(made) and not made["metadata"].get("deletionTimestamp"):
        tries = {objects.annotation(part, objects.RUN_ID) for part in (made, job) if part}
        if len(tries) == 1 and not health.holds(job, "Failed"):
            return made
    remove_parts(kube, run.parts, lambda part: objects.of_study(part, run.study.base))
    return None


def remove_parts(kube: Kube, parts: dict[str, str], ours: Callable[[Object], bool]) -> None:
    """Delete what has the names of these parts, by kind, if it is ours.

    Raises
    ------
    DependencyError
        If something does not go away; it is named.
    """
    for kind, name in parts.items():
        remove(kube, kind, name, ours)
