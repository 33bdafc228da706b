"""Why pods do not come up: causes read from statuses and events.

Input: a deployment, its pods and events, as plain objects. Output: causes, each with its fix. The
operator's own status says no more than "not ready" for most of them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from kvab.clusters.kubernetes.api import rejection

Object = dict[str, Any]
IMAGE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable")
AT_ONCE = ("InvalidImageName", "ValidationFailed")
CONFIG = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
LOOP = 3  # restarts that no start-up order explains
VOLUME_EVENTS = ("FailedAttachVolume", "FailedMount")
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
        for words, what in FIXES:
            if any(word in self.message for word in words):
                return f"; {what}"
        return ""


def of_deployment(deployment: Object) -> Iterator[Cause]:
    """Yield why the operator cannot reconcile a deployment.

    ``failed`` passes by itself when what was missing appears; a failed validation does not.
    """
    status = deployment.get("status") or {}
    ready: Object = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
    if status.get("state") == "failed":
        reason = ready.get("reason", "failed")
        name = deployment["metadata"]["name"]
        yield Cause(name, reason, ready.get("message", ""), reason not in AT_ONCE)


def of_pod(pod: Object) -> Iterator[Cause]:
    """Yield why a pod does not start or stay up."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Cause(name, condition.get("reason", ""), condition.get("message", ""), True, name)
    if status.get("phase") == "Failed":
        yield Cause(name, status.get("reason", "Failed"), status.get("message", ""), True, name)
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        where = (name, container["name"])
        if reason == "CrashLoopBackOff":
            ended = (container.get("lastState") or {}).get("terminated") or {}
            why = f"{ended.get('reason', 'Error')}, exit code {ended.get('exitCode', '?')}"
            times = container.get("restartCount", 0)
            text = f"container {container['name']} was restarted {times} times"
            yield Cause(name, f"{reason} ({why})", text, times < LOOP, *where)
        elif reason in AT_ONCE or reason in IMAGE or reason in CONFIG:
            yield Cause(name, reason, said, reason not in AT_ONCE, *where)


def of_events(events: list[Object], pods: list[Object]) -> Iterator[Cause]:
    """Yield why volumes do not reach pods that still wait for them.

    Only an object's newest event counts: an older failure was overcome.
    """
    for pod in pods:
        name = pod["metadata"]["name"]
        event = _newest(events, {name})
        pending = (pod.get("status") or {}).get("phase") == "Pending"
        if event and pending and event.get("reason") in VOLUME_EVENTS:
            yield Cause(name, event["reason"], event.get("message", ""), True, name)


def of_pods(pods: list[Object], events: list[Object]) -> Iterator[Cause]:
    """Yield why pods do not start or stay up, from their statuses, then from their events."""
    for pod in pods:
        yield from of_pod(pod)
    yield from of_events(events, pods)


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
    about: dict[str, list[Object]] = {}
    for event in events:
        subject = event.get("involvedObject") or {}
        if subject.get("kind") != "Pod" and re.fullmatch(names, subject.get("name", "")):
            about.setdefault(f"{subject.get('kind')} {subject['name']}", []).append(event)
    for name, own in about.items():
        newest = max(reversed(own), key=_when)  # of one second, the last of the list
        if newest.get("reason") in NO_PODS and _when(newest)[:19] >= since[:19]:
            subject = "" if name == itself else name
            yield Cause(subject, newest["reason"], newest.get("message", ""))


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


def latest_event(events: list[Object], names: set[str]) -> str:
    """Return the newest event about one of the objects, empty if there is none."""
    newest = _newest(events, names)
    if newest is None:
        return ""
    name = newest["involvedObject"]["name"]
    return f"{newest.get('reason', '')} {name}: {' '.join(newest.get('message', '').split())}"


def main_container(pod: Object) -> str:
    """Return the name of the container that does the work: the operator calls it main."""
    names = [container["name"] for container in pod["spec"]["containers"]]
    return "main" if "main" in names else names[0]


def _newest(events: list[Object], names: set[str]) -> Object | None:
    about = [e for e in events if (e.get("involvedObject") or {}).get("name") in names]
    return max(reversed(about), key=_when, default=None)


def _when(event: Object) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or ""
    )


def restarts(pods: list[Object]) -> dict[str, int]:
    """Return how often the containers of each pod were restarted, by pod name."""
    return {
        pod["metadata"]["name"]: sum(
            container.get("restartCount", 0)
            for container in (pod.get("status") or {}).get("containerStatuses", [])
        )
        for pod in pods
    }


def changed_pods(before: dict[str, int], now: dict[str, int]) -> str:
    """Return what happened to the serving pods since a replay began, empty if nothing did."""
    restarted = [name for name in before if now.get(name, 0) > before[name]]
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    told = (("restarted", restarted), ("gone", gone), ("new", new))
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told if names)


def condition(job: Object | None, kind: str) -> Object | None:
    """Return the condition of a Job if it holds."""
    listed = ((job or {}).get("status") or {}).get("conditions") or []
    return next((c for c in listed if c["type"] == kind and c["status"] == "True"), None)


def last_lines(log: str, lines: int) -> str:
    """Return the last lines of a log that say something, on one line."""
    said = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(said[-lines:])


COMPONENT_LABEL = "nvidia.com/dynamo-component"
DEPLOYMENT_LABEL = "nvidia.com/dynamo-graph-deployment-name"
PROXY = Callable[..., tuple[int, str]]


class Check(NamedTuple):
    """One sign of readiness."""

    ok: bool
    what: str


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
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def component_of(pod: Object) -> str:
    """Return the component that a pod belongs to."""
    return (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL, "")


def ready_pods(expected: Expected, pods: list[Object]) -> dict[str, int]:
    """Return the number of ready pods of each component."""
    return {
        name: sum(is_ready(pod) for pod in pods if component_of(pod) == name)
        for name in expected.replicas
    }


def of_objects(expected: Expected, deployment: Object, pods: list[Object]) -> Iterator[Check]:
    """Yield what the deployment's status and its pods say.

    The operator has reported success with the pods of an older generation, and failure while all
    of them served: neither status nor pods count alone.
    """
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    own = metadata["uid"] == expected.uid and not metadata.get("deletionTimestamp")
    yield Check(own, "it is the deployment that was created")
    generation = metadata.get("generation")
    ready: Object = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
    seen = [status.get("observedGeneration"), ready.get("observedGeneration")]
    current = all(number in (None, generation) for number in seen)
    yield Check(current, f"the operator has seen generation {generation}")
    state = status.get("state", "initializing")
    yield Check(state == "successful", f"state successful, now {state}")
    why = f", now {ready.get('reason', 'unknown')}: {ready.get('message', '')}"
    fine = ready.get("status") == "True"
    yield Check(fine, "condition Ready" + ("" if fine else why.rstrip(": ")))
    counts = ready_pods(expected, pods)
    services = status.get("services") or status.get("components") or {}
    for name, wanted in expected.replicas.items():
        told = services.get(name, {})
        up = told.get("readyReplicas", told.get("availableReplicas"))
        updated = told.get("updatedReplicas")
        agreed = up in (None, wanted) and updated in (None, wanted)
        yield Check(agreed, f"{name}: {wanted} replicas updated and ready, now {updated}, {up}")
        yield Check(counts[name] == wanted, f"{name}: {wanted} ready pods, now {counts[name]}")


def of_frontend(expected: Expected, proxy: PROXY) -> Iterator[Check]:
    """Yield what the frontend knows: the model, and how many workers of each role."""
    status, text = proxy(expected.service, "v1/models")
    try:
        models = [entry["id"] for entry in json.loads(text)["data"]] if status == 200 else []
    except (ValueError, LookupError, TypeError):
        models = []
    listed = expected.model in models
    yield Check(listed, f"{expected.model} is listed, now {', '.join(models) or status or text}")
    status, text = proxy(expected.service, "health")
    prefill, others = instances(text) if status == 200 else (0, 0)
    if expected.prefill:
        what = f"{expected.prefill} prefill workers registered, now {prefill}"
        yield Check(prefill == expected.prefill, what)
    yield Check(others == expected.others, f"{expected.others} workers registered, now {others}")


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


def complete(expected: Expected, proxy: PROXY) -> Check:
    """Return whether one streamed completion brings tokens and an end.

    A model is listed seconds before a request to it succeeds: only an answer counts.
    """
    body = {
        "model": expected.model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    status, text = proxy(expected.service, "v1/chat/completions", body)
    lines = [line.removeprefix("data:").strip() for line in text.splitlines()]
    try:
        chunks = [json.loads(line) for line in lines if line.startswith("{")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", [])]
        words = [delta.get("content") or delta.get("reasoning_content") for delta in deltas]
    except (ValueError, LookupError, AttributeError):
        words = []
    good = status == 200 and "[DONE]" in lines and any(words)
    return Check(good, "a streamed completion" + ("" if good else f", now {status} {text[:120]}"))


def component_table(
    expected: Expected, pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> Table:
    """Return components, how many of their pods are ready, what the others do, and the news."""
    table = Table("component", "ready", "pods", "latest event", expand=True)
    ready = ready_pods(expected, pods)
    for name, wanted in expected.replicas.items():
        own = [pod for pod in pods if component_of(pod) == name]
        states = Counter(_state(pod) for pod in own)
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        news = latest_event(events, {pod["metadata"]["name"] for pod in own})
        table.add_row(name, f"{ready[name]}/{wanted}", told or "none", Text(news[:160]))
    return table


def _state(pod: dict[str, Any]) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if is_ready(pod):
        return "Ready"
    first = next(of_pod(pod), None)
    return first.reason if first else (pod.get("status") or {}).get("phase", "Unknown")
