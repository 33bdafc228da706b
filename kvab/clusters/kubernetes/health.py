"""Why pods do not come up, and whether a deployment serves: read from statuses and events.

Input: a deployment or a Job, its pods and events, as plain objects. Output: causes, each with its
fix, and signs of readiness; and the one wait, which ends with a cause that lasts. The operator's
own status says no more than "not ready" for most of them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from rich.table import Table
from rich.text import Text

from kvab.clusters.base import last_lines
from kvab.clusters.kubernetes.api import COMPONENT, DEPLOYMENT, REJECTIONS, Kube
from kvab.console import Display, mask
from kvab.errors import DependencyError, KvabError
from kvab.study.manifests import Object, at

T = TypeVar("T")

IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable")
AT_ONCE = ("InvalidImageName", "ValidationFailed")
CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
LOOP = 3  # restarts that no start-up order explains
VOLUME_EVENTS = ("FailedAttachVolume", "FailedMount")
CLAIM_EVENTS = ("ProvisioningFailed", "FailedBinding")
# What ReplicaSets, StatefulSets and Jobs say, and Grove's PodCliques.
NO_PODS = ("FailedCreate", "PodCreateFailed", "PodCreationFailed")
NO_PODS_S = 20.0  # a cause of it that lasts so long is told, so that it is within half a minute
# What a cause says, as a pattern, and how to fix it; the first that fits counts.
FIXES = (
    (f"^({'|'.join(IMAGE)}|InvalidImageName): ",
     "check image and image_pull_secret of the profile"),
    ("^SchedulingGated: ", "the scheduler holds the group back until it fits: free GPUs"),
    *((rule.words, rule.fix) for rule in REJECTIONS),
    ("PersistentVolumeClaim|PVC|persistentvolumeclaim", "run prepare first, or check the storage "
     "class of the profile with `kubectl describe pvc`"),
    ("nvidia.com/gpu", "free the GPUs, or check node_selector and tolerations of the profile"),
    ("rdma/|hca|vpc.amazonaws.com/efa", "set rdma_resource of the profile to what `kubectl "
     "describe node` lists, or leave it out"),
    ("taint|affinity|selector", "check node_selector and tolerations of the profile"),
    ("Multi-Attach", "choose a storage class that offers ReadWriteMany"),
    ("secret", "create it with `kubectl create secret generic`, or name it in the profile"),
)  # fmt: skip


class Cause(NamedTuple):
    """Why a deployment cannot come up; one that may pass counts after the grace time."""

    subject: str  # empty for the object itself that is watched
    reason: str
    message: str
    passing: bool = True
    container: str = ""  # of the pod that is the subject, where its log says more

    def __str__(self) -> str:
        """Say what is wrong and how to fix it, in one line."""
        subject = f"{self.subject}: " if self.subject else ""
        said = f"{self.reason}: {' '.join(self.message.split())}"
        fix = next((f"; {fix}" for words, fix in FIXES if re.search(words, said)), "")
        return f"{subject}{said}{fix}"


def condition(thing: Object | None, kind: str) -> Object:
    """Return a condition of an object's status, empty where it has none."""
    listed = at(thing, "status.conditions") or []
    return next((entry for entry in listed if entry["type"] == kind), {})


def holds(thing: Object | None, kind: str) -> bool:
    """Whether a condition of an object's status is true."""
    return bool(condition(thing, kind).get("status") == "True")


def of_deployment(deployment: Object) -> Iterator[Cause]:
    """Yield why the operator cannot reconcile a deployment.

    ``failed`` passes by itself when what was missing appears; a failed validation does not.
    """
    if at(deployment, "status.state") == "failed":
        ready, name = condition(deployment, "Ready"), deployment["metadata"]["name"]
        reason = ready.get("reason", "failed")
        yield Cause(name, reason, ready.get("message", ""), reason not in AT_ONCE)


def of_pods(pods: list[Object], events: Sequence[Object] = ()) -> Iterator[Cause]:
    """Yield why pods do not start or stay up, from their statuses and events.

    Of the events about volumes only a pod's newest counts: an older failure was overcome.
    """
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        if pod["metadata"].get("deletionTimestamp"):
            continue
        scheduled, event = condition(pod, "PodScheduled"), newest(events, {name}) or {}
        if scheduled.get("status") == "False":
            yield Cause(name, scheduled.get("reason", ""), scheduled.get("message", ""))
        if phase(pod) == "Failed":
            yield Cause(name, status.get("reason", "Failed"), status.get("message", ""))
        for kind in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(kind, []):
                yield from _of_container(name, container)
        if phase(pod) == "Pending" and event.get("reason") in VOLUME_EVENTS:
            yield Cause(name, event["reason"], event.get("message", ""))


def _of_container(pod: str, container: Object) -> Iterator[Cause]:
    waiting, name = at(container, "state.waiting") or {}, container["name"]
    reason = waiting.get("reason", "")
    if reason == "CrashLoopBackOff":
        ended, times = at(container, "lastState.terminated") or {}, container.get("restartCount", 0)
        why = f"{ended.get('reason', 'Error')}, exit code {ended.get('exitCode', '?')}"
        text = f"container {name} was restarted {times} times"
        yield Cause(pod, f"{reason} ({why})", text, times < LOOP, name)
    elif reason in (*AT_ONCE, *IMAGE, *CONFIG):
        yield Cause(pod, reason, waiting.get("message", ""), reason not in AT_ONCE)


def of_creation(events: list[Object], owner: Object, names: str = "") -> Iterator[Cause]:
    """Yield why pods cannot be created for an object, told by whatever creates them for it.

    Parameters
    ----------
    events : list of objects
        All events of the namespace.
    owner : object
        A Job or a deployment; events from before it are about an earlier one of its name.
    names : str
        Regular expression of the names of what it owns; its own name if left out.
    """
    since, names = owner["metadata"]["creationTimestamp"], names or owner["metadata"]["name"]
    itself = f"{owner.get('kind')} {owner['metadata']['name']}"
    latest: dict[str, Object] = {}
    for event in sorted(events, key=_when):  # of one second, the last of the list
        subject = event.get("involvedObject") or {}
        if subject.get("kind") != "Pod" and re.fullmatch(names, subject.get("name", "")):
            latest[f"{subject.get('kind')} {subject['name']}"] = event
    for name, event in latest.items():
        if event.get("reason") in NO_PODS and _when(event)[:19] >= since[:19]:
            subject = "" if name == itself else name
            yield Cause(subject, event["reason"], event.get("message", ""))


def of_job(job: Object, pods: list[Object], events: list[Object]) -> list[Cause]:
    """Return why no pod of a Job starts; those that wait while others run are no failure."""
    if any(phase(pod) == "Running" for pod in pods):
        return []
    pending = [pod for pod in pods if phase(pod) == "Pending"]
    volumes = at(job, "spec.template.spec.volumes") or []
    claims = {at(volume, "persistentVolumeClaim.claimName") for volume in volumes}
    unbound = [
        Cause(f"PVC {event['involvedObject']['name']}", event["reason"], event["message"])
        for event in events
        if event.get("reason") in CLAIM_EVENTS and at(event, "involvedObject.name") in claims
    ]
    uncreated = [] if pending else of_creation(events, job)
    return [*of_pods(pending, events), *unbound, *uncreated]


@dataclass
class Grace:
    """Tells apart what passes and what stays: remembers since when each cause is there."""

    grace_s: float
    since: dict[tuple[str, str], float] = field(default_factory=dict)

    def lasting(self, causes: Sequence[Cause], now_s: float) -> Cause | None:
        """Return the first cause that does not pass by itself, or was there for the grace time."""
        # The kubelet alternates between the two reasons of a failed pull.
        keys = [(c.subject, "image" if c.reason in IMAGE else c.reason) for c in causes]
        self.since = {key: self.since.get(key, now_s) for key in keys}
        for cause, key in zip(causes, keys, strict=True):
            grace_s = min(self.grace_s, NO_PODS_S) if cause.reason in NO_PODS else self.grace_s
            if not cause.passing or now_s - self.since[key] >= grace_s:
                return cause
        return None


class Stuck(DependencyError):
    """Something cannot start, or has failed: waiting does not help."""


class Waiting(NamedTuple):
    """What is still waited for, what may keep it from coming, and the message of a late end."""

    note: str
    table: Table | None = None
    causes: Sequence[Cause] = ()
    late: str = ""  # the note if left out


def wait_until(
    kube: Kube,
    probe: Callable[[], Waiting | T],
    limit_s: float = math.inf,
    *,
    title: str = "",
    subject: str = "",
) -> T:
    """Return what a probe returns that has nothing left to wait for.

    Parameters
    ----------
    kube : Kube
        Its limits are how often to look, and how long a cause may be there.
    probe : callable
        Returns what is still waited for as `Waiting`; raises for what never comes.
    limit_s : float
        Seconds until waiting is given up.
    title, subject : str
        What is shown before each thing waited for, nothing without one; what a cause is about.

    Raises
    ------
    Stuck
        With the cause, if one lasts.
    DependencyError
        If the time is over, or another client has taken the run over.
    """
    deadline, pause_s = time.monotonic() + limit_s, min(1.0, kube.limits.poll_s)
    grace = Grace(kube.limits.grace_s)
    try:
        with Display(title) if title else nullcontext() as display:
            while isinstance(result := probe(), Waiting):
                if cause := grace.lasting(result.causes, time.monotonic()):
                    raise Stuck(f"{subject}{_with_log(kube, cause)}")
                if time.monotonic() > deadline:
                    late = result.late or result.note
                    raise DependencyError("; ".join(map(str, (late, *result.causes[:1]))))
                if display:
                    display.show(result.note, result.table)
                time.sleep(pause_s)
                pause_s = min(kube.limits.poll_s, 1.2 * pause_s)
        return result
    except KvabError as error:
        raise kube.explain(error) from None


def _with_log(kube: Kube, cause: Cause) -> str:
    if not cause.container:
        return str(cause)
    log = kube.log(cause.subject, cause.container, previous=True, lines=50)
    return f"{cause}; its log (whole in diagnostics/) ended with: {last_lines(log)}"


def newest(events: Sequence[Object], names: set[str]) -> Object | None:
    """Return the newest event about one of the objects, None if there is none."""
    about = [event for event in events if at(event, "involvedObject.name") in names]
    return max(reversed(about), key=_when, default=None)  # of one second, the last


def _when(event: Object) -> str:
    last = at(event, "series.lastObservedTime") or event.get("lastTimestamp")
    return str(last or event.get("eventTime") or "")


def phase(pod: Object | None) -> str:
    """Return the phase of a pod."""
    return str(at(pod, "status.phase") or "Unknown")


def restarts(pods: list[Object]) -> dict[str, int]:
    """Return how often the containers of each pod were restarted, by pod name."""
    return {
        pod["metadata"]["name"]: sum(
            container.get("restartCount", 0)
            for container in at(pod, "status.containerStatuses") or []
        )
        for pod in pods
    }


def changed_pods(before: dict[str, int], now: dict[str, int]) -> str:
    """Return what happened to the serving pods since a replay began, empty if nothing did."""
    changes = {
        "restarted": [name for name in before if now.get(name, 0) > before[name]],
        "gone": sorted(set(before) - set(now)),
        "new": sorted(set(now) - set(before)),
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in changes.items() if names)


COMPONENT_LABEL = "nvidia.com/dynamo-component"
DEPLOYMENT_LABEL = "nvidia.com/dynamo-graph-deployment-name"
# What belongs to an object of a kind: the label that names it, and the kinds of its children.
CHILDREN = {"Job": ("job-name", "Pod"), DEPLOYMENT: (DEPLOYMENT_LABEL, COMPONENT, "Pod")}


def selector(deployment: str) -> str:
    """Return the label selector of a deployment's pods and components."""
    return f"{DEPLOYMENT_LABEL}={deployment}"


def owned(deployment: str, components: Iterable[str]) -> str:
    """Return a regular expression of the names that the operator and Grove give to its parts."""
    parts = "|".join(re.escape(name.lower().replace(".", "-")) for name in components)
    return rf"{re.escape(deployment)}(-\d+)?(-({parts})(-.*)?)?"


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and stays."""
    return holds(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def component_of(pod: Object) -> str:
    """Return the component that a pod belongs to."""
    return (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, "")


def of_objects(replicas: dict[str, int], deployment: Object, pods: list[Object]) -> Iterator[str]:
    """Yield what the deployment's status and its pods lack to be ready.

    The operator has reported success with the pods of an older generation, and failure while all
    of them served: neither status nor pods count alone.
    """
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    if metadata.get("deletionTimestamp"):
        yield "the deployment that was created, which is being deleted"
    generation, ready = metadata.get("generation"), condition(deployment, "Ready")
    seen = (status.get("observedGeneration"), ready.get("observedGeneration"))
    if not {*seen} <= {None, generation}:
        yield f"the operator has seen generation {generation}"
    if (state := status.get("state", "initializing")) != "successful":
        yield f"state successful, now {state}"
    if ready.get("status") != "True":
        why = f"{ready.get('reason', 'unknown')}: {ready.get('message', '')}".rstrip(": ")
        yield f"condition Ready, now {why}"
    services = status.get("services") or status.get("components") or {}
    for name, wanted in replicas.items():
        reported = services.get(name, {})
        up = reported.get("readyReplicas", reported.get("availableReplicas"))
        updated = reported.get("updatedReplicas")
        if not {up, updated} <= {None, wanted}:
            yield f"{name}: {wanted} replicas updated and ready, now {updated}, {up}"
        count = sum(is_ready(pod) for pod in pods if component_of(pod) == name)
        if count != wanted:
            yield f"{name}: {wanted} ready pods, now {count}"


def component_table(replicas: dict[str, int], pods: list[Object], events: list[Object]) -> Table:
    """Return components, how many of their pods are ready, what the others do, and the news."""
    table = Table("component", "ready", "pods", "latest event", expand=True)
    for name, wanted in replicas.items():
        own = {pod["metadata"]["name"]: _state(pod) for pod in pods if component_of(pod) == name}
        states = Counter(own.values())
        listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        news = ""
        if event := newest(events, {*own}):
            subject = event["involvedObject"]["name"]
            text = " ".join(event.get("message", "").split())
            news = f"{event.get('reason', '')} {subject}: {text}"
        table.add_row(name, f"{states['Ready']}/{wanted}", listed or "none", Text(news[:160]))
    return table


def _state(pod: Object) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    cause = next(of_pods([pod]), None)
    return "Ready" if is_ready(pod) else cause.reason if cause else phase(pod)


def diagnostics(kube: Kube, names: dict[str, list[str]]) -> dict[str, bytes]:
    """Return statuses, events and logs of objects named by kind, by file name; no secret is read.

    What cannot be had is left out, with the reason.
    """
    kept: dict[str, bytes] = {}
    kube = kube.with_short_limits()  # the API server may be the reason

    def keep(name: str, look: Callable[[], T]) -> T | None:
        try:
            value = look()
        except KvabError as error:
            kept[name] = mask(json.dumps({"error": str(error)}, indent=1)).encode()
            return None
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, indent=1)
            kept[name] = mask(text).encode()
        return value

    keep("events.json", partial(kube.list, "Event"))
    named = [(kind, name) for kind, listed in names.items() for name in listed]
    for number, (kind, name) in enumerate(named):
        keep(f"{kind.lower()}-{name}.json", partial(kube.get, kind, name))
        label, *children = CHILDREN.get(kind, ("",))
        pods: list[Object] = []
        for child in children:  # of which pods are the last
            listing = partial(kube.list, child, f"{label}={name}")
            pods = keep(f"{child.lower()}s-{number}.json", listing) or []
        for pod in pods:
            for container in pod["spec"]["containers"]:
                file = f"logs/{pod['metadata']['name']}.{container['name']}"
                log = partial(kube.log, pod["metadata"]["name"], container["name"])
                keep(f"{file}.log", log)
                keep(f"{file}.previous.log", partial(log, previous=True))
    return kept
