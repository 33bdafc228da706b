"""When a deployment serves: every sign ANDed, because each of them alone has been seen to lie.

Input: a deployment and its pods, as plain objects, and what the frontend answers. Output: checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Object = dict[str, Any]
COMPONENT = "nvidia.com/dynamo-component"
DEPLOYMENT = "nvidia.com/dynamo-graph-deployment-name"
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
        return f"{DEPLOYMENT}={self.deployment}"

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
    return (pod["metadata"].get("labels") or {}).get(COMPONENT, "")


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
