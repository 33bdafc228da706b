"""What a run keeps of its cluster: where it ran, and on a failure everything that tells why.

Input: a cluster. Output: provenance as plain values, and files by name. No secret is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from kvab.clusters.kubernetes import health
from kvab.clusters.kubernetes.api import Kube, Pod
from kvab.clusters.kubernetes.preflight import ORIGIN
from kvab.console import mask
from kvab.errors import KvabError

Object = dict[str, Any]
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,name,uuid", "--format=csv,noheader")


def provenance(kube: Kube, expected: health.Expected) -> tuple[dict[str, str], dict[str, Any]]:
    """Return versions and image digests, and node and GPUs of every pod."""
    deployment = kube.get("DynamoGraphDeployment", expected.deployment) or {"metadata": {}}
    annotations = deployment["metadata"].get("annotations") or {}
    versions = {"operator": annotations.get(ORIGIN, "unknown")}
    nodes = {node["metadata"]["name"]: node for node in kube.list("Node")}
    pods: dict[str, Any] = {}
    for pod in kube.list("Pod", expected.selector):
        component, name = health.component_of(pod), pod["metadata"]["name"]
        for status in pod["status"].get("containerStatuses", []):
            if status.get("imageID"):
                versions[f"image {component}"] = status["imageID"]
        node = pod["spec"].get("nodeName", "")
        labels = (nodes.get(node, {}).get("metadata") or {}).get("labels") or {}
        product = labels.get("nvidia.com/gpu.product")
        pods[name] = {"component": component, "node": node}
        if component != expected.frontend:
            pods[name] |= {"gpu_product": product, "gpus": _gpus(kube, pod)}
    return versions, {"pods": pods}


def _gpus(kube: Kube, pod: Object) -> list[str]:
    with suppress(KvabError):
        container = health.main_container(pod)
        out = Pod(kube, pod["metadata"]["name"], container).run(*GPU_QUERY, timeout_s=30)
        return out.decode("utf-8", "replace").splitlines()
    return []


def files(kube: Kube, selectors: list[str], names: list[tuple[str, str]]) -> dict[str, bytes]:
    """Return statuses, events and logs by file name; what cannot be had is left out.

    Parameters
    ----------
    kube : Kube
        The cluster.
    selectors : list of str
        Label selectors of the pods of interest.
    names : list of (kind, name)
        Other objects of interest.
    """
    kept: dict[str, bytes] = {}
    kube = kube.with_short_limits()  # the API server may be the reason

    def keep(name: str, look: Callable[[], Any]) -> Any:
        try:
            value = look()
        except KvabError as error:
            value = {"error": str(error)}
        text = value if isinstance(value, str) else json.dumps(value, indent=1)
        if value not in (None, ""):
            kept[name] = mask(text).encode()
        return value if isinstance(value, list) else []

    for kind, name in names:
        keep(f"{kind.lower()}-{name}.json", partial(kube.get, kind, name))
    keep("events.json", lambda: kube.list("Event"))
    for number, selector in enumerate(selectors):
        for kind in ("Pod", "DynamoComponentDeployment")[: 2 if number == 0 else 1]:
            listed = keep(f"{kind.lower()}s-{number}.json", partial(kube.list, kind, selector))
            for pod in listed if kind == "Pod" else []:
                for container in pod["spec"]["containers"]:
                    _logs(kube, pod["metadata"]["name"], container["name"], keep)
    return kept


def _logs(kube: Kube, pod: str, container: str, keep: Callable[..., Any]) -> None:
    for previous in (False, True):
        end = ".previous" if previous else ""
        keep(
            f"logs/{pod}.{container}{end}.log",
            lambda: kube.log(pod, container, previous=previous),  # noqa: B023  called at once
        )
