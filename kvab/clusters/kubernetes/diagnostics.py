"""What a run keeps of its cluster: where it ran, and on a failure everything that tells why.

Input: a cluster. Output: provenance as plain values, and files by name. No secret is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from kvab.clusters.kubernetes import health
from kvab.clusters.kubernetes.api import COMPONENT, DEPLOYMENT, Kube, Object, Pod
from kvab.clusters.kubernetes.preflight import ORIGIN
from kvab.console import mask
from kvab.errors import KvabError
from kvab.study.manifests import at

T = TypeVar("T")
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,name,uuid", "--format=csv,noheader")


def provenance(kube: Kube, expected: health.Expected) -> tuple[dict[str, str], Object]:
    """Return versions and image digests, and node and GPUs of every pod."""
    deployment = kube.get(DEPLOYMENT, expected.deployment) or {"metadata": {}}
    annotations = deployment["metadata"].get("annotations") or {}
    versions = {"operator": annotations.get(ORIGIN, "unknown")}
    labels = {node["metadata"]["name"]: at(node, "metadata.labels") for node in kube.list("Node")}
    pods: Object = {}
    for pod in kube.list("Pod", expected.selector):
        component, name = health.component_of(pod), pod["metadata"]["name"]
        for status in at(pod, "status.containerStatuses") or []:
            if status.get("imageID"):
                versions[f"image {component}"] = status["imageID"]
        node = pod["spec"].get("nodeName", "")
        pods[name] = {"component": component, "node": node}
        if component != expected.frontend:
            product = (labels.get(node) or {}).get("nvidia.com/gpu.product")
            pods[name] |= {"gpu_product": product, "gpus": _gpus(kube, pod)}
    return versions, {"pods": pods}


def _gpus(kube: Kube, pod: Object) -> list[str]:
    with suppress(KvabError):
        name, container = pod["metadata"]["name"], health.main_container(pod)
        out = Pod(kube.with_short_limits(), name, container).run(*GPU_QUERY, timeout_s=30)
        return out.decode("utf-8", "replace").splitlines()
    return []


def files(kube: Kube, selectors: list[str], names: list[tuple[str, str]]) -> dict[str, bytes]:
    """Return statuses, events and logs by file name; what cannot be had is left out.

    Parameters
    ----------
    kube : Kube
        The cluster.
    selectors : list of str
        Label selectors of the pods of interest, that of the deployment first.
    names : list of (kind, name)
        Other objects of interest.
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

    for kind, name in names:
        keep(f"{kind.lower()}-{name}.json", partial(kube.get, kind, name))
    keep("events.json", partial(kube.list, "Event"))
    if selectors[0].startswith(health.DEPLOYMENT_LABEL):
        keep(f"{COMPONENT.lower()}s-0.json", partial(kube.list, COMPONENT, selectors[0]))
    for number, selector in enumerate(selectors):
        for pod in keep(f"pods-{number}.json", partial(kube.list, "Pod", selector)) or []:
            for container in pod["spec"]["containers"]:
                log = partial(kube.log, pod["metadata"]["name"], container["name"])
                file = f"logs/{pod['metadata']['name']}.{container['name']}"
                keep(f"{file}.log", log)
                keep(f"{file}.previous.log", partial(log, previous=True))
    return kept
