"""The manifests as a cluster gets them: recipes, a cluster profile and a run put together.

Input: recipe manifests, a profile and what the run sends. Output: plain manifests, each marked
with the run that it belongs to. Nothing here talks to a cluster.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from kvab.clusters.kubernetes.marks import DIGEST, STUDY_LABEL
from kvab.declarations import digest, read_yaml
from kvab.errors import InputError
from kvab.study import Kubernetes, Study
from kvab.study.recipes.benchmark import check_scripts, read_scripts
from kvab.study.recipes.forms import pod_templates
from kvab.study.recipes.manifests import FRONTEND, Configuration, at

Manifest = dict[str, Any]
PLACEHOLDERS = (
    "my-context",
    "my-rwx-class",
    "your-storage-class-name",
    "replace-with-your-rwx-class",
)
RESET, RESET_UNTIL = "--router-reset-states", (1, 4)  # the runtime that no longer knows it
VERSIONED = re.compile(r":v?\d+\.\d+\.\d+[\w.+-]*$")
SLACK_S = 1800  # installation of AIPerf, and time to write its files


@dataclass(frozen=True)
class Sending:
    """The workload of a run as the benchmark finds it; ``staged`` says that we bring it there."""

    sha256: str
    rows: int
    span_s: float
    staged: bool


def check_profile(profile: Kubernetes) -> None:
    """Refuse a profile that still has an example's values.

    Raises
    ------
    InputError
        Naming the key.
    """
    for key in ("storage_class", "context"):
        value = getattr(profile, key)
        if value in PLACEHOLDERS:
            raise InputError(
                f"recipes/clusters/{profile.name}.yaml: {key}: expected a name of your cluster, "
                f"got the placeholder {value}; fill it in"
            )


def deployment(configuration: Configuration, profile: Kubernetes) -> Manifest:
    """Return ``deploy.yaml`` with the profile's image, secrets, nodes and network devices.

    Raises
    ------
    InputError
        If an image's tag is not a version and the profile does not say the runtime's.
    """
    manifest = copy.deepcopy(configuration.deploy)
    for name, part in configuration.components().items():
        service = manifest["spec"]["services"][name]
        pod = service["extraPodSpec"]
        image = pod["mainContainer"]["image"] = profile.image or part.container.get("image", "")
        if profile.runtime_version:
            service["runtimeVersionOverride"] = profile.runtime_version
        elif not VERSIONED.search(image):
            raise InputError(
                f"recipes/clusters/{profile.name}.yaml: image: expected a tag that is a version, "
                f"got {image}; add runtime_version, the version of the runtime in it"
            )
        if part.program == FRONTEND and _runtime(service, image) >= RESET_UNTIL:
            for key in ("command", "args"):
                words = pod["mainContainer"].get(key, [])
                pod["mainContainer"][key] = [w.replace(RESET, "") for w in words if w != RESET]
        if profile.image_pull_secret:
            pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
        if profile.tolerations:
            pod["tolerations"] = [*(pod.get("tolerations") or []), *profile.tolerations]
        if part.program != FRONTEND and profile.node_selector:
            pod["nodeSelector"] = (pod.get("nodeSelector") or {}) | profile.node_selector
        if "envFromSecret" in service:
            service["envFromSecret"] = profile.hf_token_secret
        for path in ("resources.requests", "resources.limits"):
            _rename_devices(at(service, path) or {}, profile.rdma_resource)
    return manifest


def _runtime(service: dict[str, Any], image: str) -> tuple[int, ...]:
    """Return major and minor version of the runtime that serves."""
    text = service.get("runtimeVersionOverride") or image.rpartition(":")[2]
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _rename_devices(amounts: dict[str, Any], resource: str | None) -> None:
    custom = amounts.pop("custom", None) or {}
    kept = {name: n for name, n in custom.items() if not name.startswith("rdma/")}
    devices = [n for name, n in custom.items() if name.startswith("rdma/")]
    if devices and resource:
        kept[resource] = devices[0]
    if kept:
        amounts["custom"] = kept


def benchmark(
    configuration: Configuration, profile: Kubernetes, sending: Sending, run_id: str
) -> Manifest:
    """Return the Job of ``perf.yaml`` for one run.

    The Job's deadline follows from the workload: readiness, its span, the last request's timeout
    and some slack.

    Raises
    ------
    InputError
        If that is more than the profile allows for a replay.
    """
    job = copy.deepcopy(configuration.job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry for entry in container["env"]}
    environment["RUN_ID"].pop("valueFrom", None)
    environment["RUN_ID"]["value"] = run_id
    args = container["args"]
    if sending.staged:
        environment["TRACE_SHA256"]["value"] = sending.sha256
        args[args.index("--input-file") + 1] = staged_path(sending.sha256)
    timeout_s = float(args[args.index("--request-timeout-seconds") + 1])
    ready_s = float(environment["READY_S"]["value"])
    deadline_s = round(ready_s + sending.span_s + timeout_s + SLACK_S)
    if deadline_s > profile.limits.replay_s:
        raise InputError(
            f"recipes/clusters/{profile.name}.yaml: limits.replay_s: expected at least "
            f"{deadline_s} for this workload, got {profile.limits.replay_s:g}; raise it"
        )
    job["spec"]["activeDeadlineSeconds"] = deadline_s
    if profile.tolerations:
        job["spec"]["template"]["spec"]["tolerations"] = list(profile.tolerations)
    return job


def scripts(study: Study, configuration: Configuration, profile: Kubernetes) -> Manifest:
    """Return the ConfigMap of the benchmark's scripts, which all runs of a study share.

    Raises
    ------
    InputError
        If the configuration's Job does not mount and run them.
    """
    made = read_scripts(study.folder)
    check_scripts(configuration, made)
    made["metadata"] |= {
        "namespace": profile.namespace,
        "labels": {**made["metadata"]["labels"], STUDY_LABEL: study.name},
        "annotations": {DIGEST: digest(made["data"])},
    }
    return made


def staged_path(sha256: str) -> str:
    """Return where a workload that is not the published file lies on the volume."""
    return f"/perf-cache/traces/{sha256[:16]}.jsonl"


def artifact_folder(job: Manifest, run_id: str) -> str:
    """Return the folder of a run's artifacts on the volume, as the Job names it."""
    args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return args[args.index("--artifact-dir") + 1].replace("$(RUN_ID)", run_id)


def storage(study: Study, profile: Kubernetes) -> list[Manifest]:
    """Return the volume claims of the study with the profile's storage class."""
    claims = read_yaml(study.folder / "model-cache" / "cache.yaml")
    for claim in claims:
        claim["spec"]["storageClassName"] = profile.storage_class
        claim["spec"]["accessModes"] = [profile.access_mode]
        claim["metadata"]["namespace"] = profile.namespace
    return claims


def download(study: Study, profile: Kubernetes) -> Manifest:
    """Return the Job that fetches the model's pinned revision.

    Raises
    ------
    InputError
        If it would fetch another model or revision than the study declares.
    """
    path = study.folder / "model-cache" / "model-download.yaml"
    (job,) = read_yaml(path)
    job["metadata"]["namespace"] = profile.namespace
    job["metadata"].setdefault("labels", {})[STUDY_LABEL] = study.name
    container = job["spec"]["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    got = values.get("MODEL_NAME"), values.get("MODEL_REVISION")
    if got != (study.model.name, study.model.revision):
        raise InputError(
            f"{path}: expected {study.model.name} at {study.model.revision} as in study.yaml, "
            f"got {got[0]} at {got[1]}; fix the one that is wrong"
        )
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            source["secretRef"]["name"] = profile.hf_token_secret
    if profile.tolerations:
        job["spec"]["template"]["spec"]["tolerations"] = list(profile.tolerations)
    return job


def files_pod(job: Manifest, name: str) -> Manifest:
    """Return a small pod that mounts the results' volume: workloads go in, artifacts come out."""
    pod = job["spec"]["template"]["spec"]
    volume = next(part for part in pod["volumes"] if at(part, "name") == "perf-cache")
    container = {
        "name": "files",
        "image": pod["containers"][0]["image"],
        "command": ["sleep", "3600"],
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        "volumeMounts": [{"name": "perf-cache", "mountPath": "/perf-cache"}],
    }
    spec = {"restartPolicy": "Never", "activeDeadlineSeconds": 3600, "containers": [container]}
    spec |= {"volumes": [volume], "terminationGracePeriodSeconds": 0}
    spec |= {key: pod[key] for key in ("tolerations", "imagePullSecrets") if key in pod}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def content_digest(manifests: list[Manifest], sending: Sending) -> str:
    """Return the digest by which a later start knows a deployment as its own."""
    return digest([*manifests, sending.sha256, sending.rows])[:32]


def needs(manifest: Manifest) -> dict[str, int]:
    """Return the devices that all workers of a deployment ask for, by resource name."""
    total: dict[str, int] = {}
    for service in manifest["spec"]["services"].values():
        limits = at(service, "resources.limits") or {}
        asked = {"nvidia.com/gpu": limits.get("gpu"), **(limits.get("custom") or {})}
        for name, count in asked.items():
            total[name] = total.get(name, 0) + int(count or 0) * service.get("replicas", 1)
    return {name: count for name, count in total.items() if count}


def pods(manifest: Manifest) -> list[tuple[Manifest, int]]:
    """Return the pods that a manifest leads to, and how many of each; none for most kinds.

    Quotas, limit ranges, pod security and policies speak about pods: an API server takes a
    deployment that can never have one.
    """
    name = manifest["metadata"]["name"]
    if manifest["kind"] == "Job":
        return [(_pod(name, manifest["spec"]["template"]), 1)]
    if manifest["kind"] != "DynamoGraphDeployment":
        return []
    return [
        (_pod(f"{name}-{key.lower()}", template), count)
        for key, (template, count) in pod_templates(manifest).items()
    ]


def _pod(name: str, template: Manifest) -> Manifest:
    metadata = {**(template.get("metadata") or {}), "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def all_in_one(listed: list[tuple[Manifest, int]]) -> Manifest:
    """Return one pod that asks for what many pods together ask for, as a quota counts it."""
    first = listed[0][0]["spec"]
    parts = [part for pod, count in listed for part in pod["spec"]["containers"] * count]
    containers = [
        {"name": f"c{number}"}
        | {key: part[key] for key in ("image", "resources", "securityContext") if key in part}
        for number, part in enumerate(parts)
    ]
    spec = {"securityContext": first.get("securityContext") or {}, "containers": containers}
    return _pod(f"{listed[0][0]['metadata']['name']}-and-others", {"spec": spec})


def replicas(manifest: Manifest) -> dict[str, int]:
    """Return the wanted pods of each component of a deployment."""
    services = manifest["spec"]["services"]
    return {name: service.get("replicas", 1) for name, service in services.items()}


def component(configuration: Configuration) -> str:
    """Return the name of the frontend's component."""
    parts = configuration.components().items()
    return next(name for name, part in parts if part.program == FRONTEND)


def service_name(configuration: Configuration) -> str:
    """Return the name of the frontend's Service, as the operator makes it."""
    key = component(configuration).lower().replace(".", "-")
    return f"{configuration.deployment}-{key}"
