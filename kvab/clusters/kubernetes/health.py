"""Why pods do not come up, and whether a deployment serves: read from statuses and events.

Input: a deployment or a Job, its pods and events, as plain objects. Output: causes, each with its
fix, and signs of readiness. The operator's own status says no more than "not ready" for most of
them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from kvab.clusters.kubernetes.api import Object, rejection
from kvab.study.manifests import at

IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable")
AT_ONCE = ("InvalidImageName", "ValidationFailed")
CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
LOOP = 3  # restarts that no start-up order explains
VOLUME_EVENTS = ("FailedAttachVolume", "FailedMount")
CLAIM_EVENTS = ("ProvisioningFailed", "FailedBinding")
# What ReplicaSets, StatefulSets and Jobs say, and Grove's PodCliques.
NO_PODS = ("FailedCreate", "PodCreateFailed", "PodCreationFailed")
NO_PODS_S = 20.0  # a cause of it that lasts so long is told, so that it is within half a minute
FIXES = (
    (("PersistentVolumeClaim", "PVC", "persistentvolumeclaim"), "run prepare first, or check the "
     "storage class of the profile with `kubectl describe pvc`"),
    (("nvidia.com/gpu",), "free the GPUs, or check node_selector and tolerations of the profile"),
    (("rdma/", "hca", "vpc.amazonaws.com/efa"), "set rdma_resource of the profile to what "
     "`kubectl describe node` lists, or leave it out"),
    (("taint", "affinity", "selector"), "check node_selector and tolerations of the profile"),
    (("Multi-Attach",), "choose a storage class that offers ReadWriteMany"),
    (("secret",), "create it with `kubectl create secret generic`, or name it in the profile"),
)  # fmt: skip


class Cause(NamedTuple):
    """Why a deployment cannot come up; one that may pass counts after the grace time."""

    subject: str  # empty for the object itself that is watched
    reason: str
    message: str
    passing: bool = True
    pod: str = ""
    container: str = ""

    def __str__(self) -> str:
        """Say what is wrong and how to fix it, in one line."""
        subject = f"{self.subject}: " if self.subject else ""
        return f"{subject}{self.reason}: {' '.join(self.message.split())}{self.fix}"

    @property
    def fix(self) -> str:
        """What to do about it."""
        if self.reason in IMAGE or self.reason == "InvalidImageName":
            return "; check image and image_pull_secret of the profile"
        if self.reason == "SchedulingGated":
            return "; the scheduler holds the group back until it fits: free GPUs"
        if rule := rejection(self.message):
            return f"; {rule.fix}"
        fits = (fix for words, fix in FIXES if any(word in self.message for word in words))
        return f"; {fix}" if (fix := next(fits, "")) else ""


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


def of_pod(pod: Object) -> Iterator[Cause]:
    """Yield why a pod does not start or stay up."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield Cause(name, scheduled.get("reason", ""), scheduled.get("message", ""), True, name)
    if status.get("phase") == "Failed":
        yield Cause(name, status.get("reason", "Failed"), status.get("message", ""), True, name)
    for container in (
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ):
        waiting = at(container, "state.waiting") or {}
        reason, where = waiting.get("reason", ""), (name, container["name"])
        if reason == "CrashLoopBackOff":
            ended = at(container, "lastState.terminated") or {}
            why = f"{ended.get('reason', 'Error')}, exit code {ended.get('exitCode', '?')}"
            times = container.get("restartCount", 0)
            text = f"container {container['name']} was restarted {times} times"
            yield Cause(name, f"{reason} ({why})", text, times < LOOP, *where)
        elif reason in (*AT_ONCE, *IMAGE, *CONFIG):
            yield Cause(name, reason, waiting.get("message", ""), reason not in AT_ONCE, *where)


def of_pods(pods: list[Object], events: list[Object]) -> Iterator[Cause]:
    """Yield why pods do not start or stay up, from their statuses, then from their events.

    Of the events about volumes only a pod's newest counts: an older failure was overcome.
    """
    for pod in pods:
        yield from of_pod(pod)
    for pod in pods:
        name = pod["metadata"]["name"]
        event = newest(events, {name}) or {}
        if phase(pod) == "Pending" and event.get("reason") in VOLUME_EVENTS:
            yield Cause(name, event["reason"], event.get("message", ""), True, name)


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
    phases = [phase(pod) for pod in pods]
    if "Running" in phases:
        return []
    pending = [pod for pod in pods if phase(pod) == "Pending"]
    causes = [*of_pods(pending, events)]
    volumes = at(job, "spec.template.spec.volumes") or []
    claims = {at(volume, "persistentVolumeClaim.claimName") for volume in volumes}
    causes += [
        Cause(f"PVC {event['involvedObject']['name']}", event["reason"], event["message"])
        for event in events
        if event.get("reason") in CLAIM_EVENTS and at(event, "involvedObject.name") in claims
    ]
    return causes if pending else [*causes, *of_creation(events, job)]


class Grace:
    """Tells apart what passes and what stays: remembers since when each cause is there."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.since: dict[tuple[str, str], float] = {}

    def lasting(self, causes: list[Cause], now_s: float) -> Cause | None:
        """Return the first cause that does not pass by itself, or was there for the grace time."""
        # The kubelet alternates between the two reasons of a failed pull.
        keys = [(c.subject, "image" if c.reason in IMAGE else c.reason) for c in causes]
        self.since = {key: self.since.get(key, now_s) for key in keys}
        for cause, key in zip(causes, keys, strict=True):
            grace_s = min(self.grace_s, NO_PODS_S) if cause.reason in NO_PODS else self.grace_s
            if not cause.passing or now_s - self.since[key] >= grace_s:
                return cause
        return None


def newest(events: list[Object], names: set[str]) -> Object | None:
    """Return the newest event about one of the objects, None if there is none."""
    about = [event for event in events if at(event, "involvedObject.name") in names]
    return max(reversed(about), key=_when, default=None)  # of one second, the last


def _when(event: Object) -> str:
    last = at(event, "series.lastObservedTime") or event.get("lastTimestamp")
    return str(last or event.get("eventTime") or "")


def phase(pod: Object) -> str:
    """Return the phase of a pod."""
    return str(at(pod, "status.phase") or "Unknown")


def main_container(pod: Object) -> str:
    """Return the name of the container that does the work: the operator calls it main."""
    names: list[str] = [container["name"] for container in pod["spec"]["containers"]]
    return "main" if "main" in names else names[0]


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


def last_lines(log: str, lines: int) -> str:
    """Return the last lines of a log that say something, on one line."""
    texts = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(texts[-lines:])


COMPONENT_LABEL = "nvidia.com/dynamo-component"
DEPLOYMENT_LABEL = "nvidia.com/dynamo-graph-deployment-name"
Proxy = Callable[..., tuple[int, str]]


@dataclass(frozen=True)
class Expected:
    """What must be there: pods of each component, and the model that is served."""

    deployment: str
    uid: str
    replicas: dict[str, int]
    frontend: str
    service: str
    model: str
    prefill: int
    others: int

    @property
    def selector(self) -> str:
        """Label selector of the deployment's pods and components."""
        return f"{DEPLOYMENT_LABEL}={self.deployment}"

    @property
    def owned(self) -> str:
        """Regular expression of the names that the operator and Grove give to what they make."""
        parts = "|".join(re.escape(name.lower().replace(".", "-")) for name in self.replicas)
        return rf"{re.escape(self.deployment)}(-\d+)?(-({parts})(-.*)?)?"


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and stays."""
    return holds(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def component_of(pod: Object) -> str:
    """Return the component that a pod belongs to."""
    return (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, "")


def of_objects(expected: Expected, deployment: Object, pods: list[Object]) -> Iterator[str]:
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
    for name, wanted in expected.replicas.items():
        reported = services.get(name, {})
        up = reported.get("readyReplicas", reported.get("availableReplicas"))
        updated = reported.get("updatedReplicas")
        if not {up, updated} <= {None, wanted}:
            yield f"{name}: {wanted} replicas updated and ready, now {updated}, {up}"
        count = sum(is_ready(pod) for pod in pods if component_of(pod) == name)
        if count != wanted:
            yield f"{name}: {wanted} ready pods, now {count}"


def of_frontend(expected: Expected, proxy: Proxy) -> Iterator[str]:
    """Yield what the frontend lacks: the model, or workers of each role."""
    status, text = proxy(expected.service, "v1/models")
    try:
        models = [entry["id"] for entry in json.loads(text)["data"]] if status == 200 else []
    except (ValueError, LookupError, TypeError):
        models = []
    if expected.model not in models:
        yield f"{expected.model} is listed, now {', '.join(models) or status or text}"
    status, text = proxy(expected.service, "health")
    prefill, others = instances(text) if status == 200 else (0, 0)
    if expected.prefill not in (0, prefill):
        yield f"{expected.prefill} prefill workers registered, now {prefill}"
    if expected.others != others:
        yield f"{expected.others} workers registered, now {others}"


def instances(health: str) -> tuple[int, int]:
    """Return how many prefill and how many other workers a frontend's /health lists."""
    try:
        listed = json.loads(health).get("instances") or []
    except (ValueError, AttributeError):
        return 0, 0
    workers = {
        (entry.get("component"), entry.get("instance_id"))
        for entry in listed
        if entry.get("endpoint") == "generate" and "router" not in str(entry.get("component"))
    }
    prefill = sum(component == "prefill" for component, _ in workers)
    return prefill, len(workers) - prefill


def of_completion(expected: Expected, proxy: Proxy) -> Iterator[str]:
    """Yield what came of a request, unless it brought streamed tokens and an end.

    A model is listed seconds before a request to it succeeds: only an answer counts.
    """
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": expected.model, "messages": messages, "max_tokens": 8, "stream": True}
    status, text = proxy(expected.service, "v1/chat/completions", body)
    lines = [line.removeprefix("data:").strip() for line in text.splitlines()]
    try:
        chunks = [json.loads(line) for line in lines if line.startswith("{")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", [])]
        words = [delta.get("content") or delta.get("reasoning_content") for delta in deltas]
    except (ValueError, LookupError, AttributeError):
        words = []
    if status != 200 or "[DONE]" not in lines or not any(words):
        yield f"a streamed completion, now {status} {text[:120]}"


def component_table(expected: Expected, pods: list[Object], events: list[Object]) -> Table:
    """Return components, how many of their pods are ready, what the others do, and the news."""
    table = Table("component", "ready", "pods", "latest event", expand=True)
    for name, wanted in expected.replicas.items():
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
    if is_ready(pod):
        return "Ready"
    cause = next(of_pod(pod), None)
    return cause.reason if cause else phase(pod)
