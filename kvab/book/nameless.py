"""A run's manifest without the names of machines, as it may be shown to anybody.

Input: ``run.json`` as it was written where the run was made. Output: the same with pods and nodes
numbered, and no context, namespace or selector of a cluster.
"""

from __future__ import annotations

from typing import Any

from kvab.runs import RunManifest

KEPT = ("kind", "name", "description", "hardware", "backend", "image", "rdma_resource")


def nameless(manifest: RunManifest) -> RunManifest:
    """Return a manifest without names of nodes, pods, contexts and servers."""
    less: dict[str, Any] = {
        "cluster": {key: value for key, value in manifest.cluster.items() if key in KEPT},
        "host": _numbered(manifest.host),
        "depends_on": {key: each for key, each in manifest.depends_on.items() if key != "nodes"},
    }
    if manifest.kind == "kubernetes" and manifest.reason:  # it may quote pods, nodes and servers
        less["reason"] = "failed; the reason is kept where it ran"
    return manifest.model_copy(update=less)


def _numbered(host: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of the hosts with nodes and pods numbered instead of named."""
    pods = host.get("pods", {})
    nodes = {node: f"node-{n}" for n, node in enumerate(sorted({p["node"] for p in pods.values()}))}
    names = {pod: f"pod-{n}" for n, pod in enumerate(sorted({*pods, *host.get("restarts", {})}))}
    numbered = {
        "pods": {names[pod]: {**told, "node": nodes[told["node"]]} for pod, told in pods.items()},
        "restarts": {names[pod]: count for pod, count in host.get("restarts", {}).items()},
    }
    return host | {key: value for key, value in numbered.items() if key in host}
