"""What one run applies to a cluster, and the labels by which a later start knows it as its own.

Input: recipe manifests, a cluster profile and what the run sends. Output: plain manifests with
labels and annotations, and names. Nothing here talks to a cluster.
"""

from __future__ import annotations

import copy
import getpass
import hashlib
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvab.clusters.base import Job
from kvab.clusters.kubernetes.api import DEPLOYMENT
from kvab.declarations import digest, read_yaml
from kvab.errors import DependencyError, InputError
from kvab.study import Kubernetes, Study
from kvab.study.manifests import FRONTEND, Configuration, Object, at, pod_templates, read_scripts
from kvab.trace.reading import row_lines

STUDY_LABEL, USER, HOST = "kvab-study", "kvab-user", "kvab-host"
RUN, RUN_ID, DIGEST, BEFORE = "kvab-run", "kvab-run-id", "kvab-digest", "kvab-before"


def marked(
    manifest: Object, namespace: str, study: str, run: str, run_id: str = "", digest: str = ""
) -> Object:
    """Return a manifest with the labels and annotations by which a later start knows its run."""
    made = copy.deepcopy(manifest)
    metadata = made["metadata"]
    metadata["namespace"] = namespace
    metadata.setdefault("labels", {}).update({STUDY_LABEL: study, **owner()})
    known = {RUN: run, RUN_ID: run_id, DIGEST: digest}
    metadata.setdefault("annotations", {}).update(known)
    return made


def annotation(thing: Object, key: str) -> str | None:
    """Return an annotation of an object, None where it has none."""
    text: str | None = (thing["metadata"].get("annotations") or {}).get(key)
    return text


def of_study(thing: Object, study: str) -> bool:
    """Whether an object was made for a study."""
    return bool(at(thing, f"metadata.labels.{STUDY_LABEL}") == study)


def owner() -> dict[str, str]:
    """Return the labels that say who made an object: user and host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        user = str(os.getuid())
    names = {USER: user, HOST: socket.gethostname()}
    safe = {key: re.sub(r"[^A-Za-z0-9._-]+", "-", name) for key, name in names.items()}
    return {key: name[:63].strip("._-") or "unknown" for key, name in safe.items()}


def owner_of(thing: Object) -> str:
    """Return user and host that made an object, empty where it does not say."""
    labels = thing["metadata"].get("labels") or {}
    return f"{labels[USER]}@{labels[HOST]}" if {USER, HOST} <= labels.keys() else ""


def check_own(thing: Object, study: str) -> None:
    """Refuse an object that has the name of one of ours but was made by somebody else.

    Raises
    ------
    DependencyError
        Naming it, and the command that deletes it.
    """
    if not of_study(thing, study):
        kind, metadata = thing["kind"], thing["metadata"]
        raise DependencyError(
            f"{kind} {metadata['name']}: expected none or one made for this study (label "
            f"{STUDY_LABEL}={study}), found another's; when it is not needed, `kubectl -n "
            f"{metadata['namespace']} delete {kind.lower()} {metadata['name']}`"
        )


RESET, RESET_UNTIL = "--router-reset-states", (1, 4)  # the runtime that no longer knows it
VERSIONED = re.compile(r":v?\d+\.\d+\.\d+[\w.+-]*$")
SLACK_S = 1800  # installation of AIPerf, and time to write its files


def tolerate(pod: Object, profile: Kubernetes) -> None:
    """Let a pod on the nodes whose taints the profile tolerates."""
    if profile.tolerations:
        pod["tolerations"] = [*(pod.get("tolerations") or []), *profile.tolerations]


def _runtime(service: Object, image: str) -> tuple[int, ...]:
    """Return major and minor version of the runtime that serves."""
    text = service.get("runtimeVersionOverride") or image.rpartition(":")[2]
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _rename_devices(amounts: Object, resource: str | None) -> None:
    """Give network devices the name that the cluster has for them, or leave them out."""
    custom = amounts.pop("custom", None) or {}
    renamed = {resource if name.startswith("rdma/") else name: n for name, n in custom.items()}
    renamed.pop(None, None)
    if renamed:
        amounts["custom"] = renamed


def staged_path(sha256: str) -> str:
    """Return where a workload that is not the published file lies on the volume."""
    return f"/perf-cache/traces/{sha256[:16]}.jsonl"


def storage(study: Study, profile: Kubernetes) -> list[Object]:
    """Return the volume claims of the study with the profile's storage class."""
    claims = read_yaml(study.folder / "model-cache" / "cache.yaml")
    for claim in claims:
        claim["spec"]["storageClassName"] = profile.storage_class
        claim["spec"]["accessModes"] = [profile.access_mode]
    return claims


def download(study: Study, profile: Kubernetes) -> Object:
    """Return the Job that fetches the model's pinned revision.

    Raises
    ------
    InputError
        If it would fetch another model or revision than the study declares.
    """
    path = study.folder / "model-cache" / "model-download.yaml"
    (job,) = read_yaml(path)
    job["metadata"].setdefault("labels", {})[STUDY_LABEL] = study.base
    if (got := model_of(job)) != (study.model.name, study.model.revision):
        raise InputError(
            f"{path}: expected {study.model.name} at {study.model.revision} as in study.yaml, "
            f"got {got[0]} at {got[1]}; fix the one that is wrong"
        )
    for source in job["spec"]["template"]["spec"]["containers"][0].get("envFrom", []):
        if "secretRef" in source:
            source["secretRef"]["name"] = profile.hf_token_secret
    tolerate(job["spec"]["template"]["spec"], profile)
    return job


def model_of(job: Object) -> tuple[str | None, str | None]:
    """Return name and revision of the model that a Job downloads."""
    container = job["spec"]["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    return values.get("MODEL_NAME"), values.get("MODEL_REVISION")


def files_pod(job: Object, name: str) -> Object:
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
    spec = {key: pod[key] for key in ("tolerations", "imagePullSecrets") if key in pod}
    spec |= {"restartPolicy": "Never", "activeDeadlineSeconds": 3600, "containers": [container]}
    spec |= {"volumes": [volume], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def needs(manifest: Object) -> Counter[str]:
    """Return the devices that all workers of a deployment ask for, by resource name."""
    total: Counter[str] = Counter()
    for service in manifest["spec"]["services"].values():
        limits = at(service, "resources.limits") or {}
        asked = {"nvidia.com/gpu": limits.get("gpu") or 0, **(limits.get("custom") or {})}
        count = service.get("replicas", 1)
        total.update({name: count * int(n or 0) for name, n in asked.items()})
    return +total


def pods(manifest: Object) -> list[tuple[Object, int]]:
    """Return the pods that a manifest leads to, and how many of each; none for most kinds.

    Quotas, limit ranges, pod security and policies speak about pods: an API server takes a
    deployment that can never have one.
    """
    name = manifest["metadata"]["name"]
    if manifest["kind"] == "Job":
        return [(_pod(name, manifest["spec"]["template"]), 1)]
    if manifest["kind"] != DEPLOYMENT:
        return []
    templates = pod_templates(manifest).items()
    return [(_pod(f"{name}-{key.lower()}", pod), count) for key, (pod, count) in templates]


def _pod(name: str, template: Object) -> Object:
    metadata = {**(template.get("metadata") or {}), "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def all_in_one(listed: list[tuple[Object, int]]) -> Object:
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


@dataclass(frozen=True)
class Assembly:
    """One run as a cluster gets it; its annotations name it: study, configuration and repeat.

    ``sha256``, ``rows`` and ``span_s`` are those of the workload as the benchmark finds it, and
    ``content`` is what we bring there first.
    """

    profile: Kubernetes
    study: Study
    recipe: Configuration
    name: str
    sha256: str
    rows: int
    span_s: float = 0.0
    content: bytes = b""

    @classmethod
    def of(cls, profile: Kubernetes, job: Job) -> Assembly:
        """Return the run of a job, with its workload unless the benchmark fetches it itself."""
        trace, order, study, path = job.trace, job.order(), job.study, job.path
        content, sha256, span_s = b"", trace.sha256, float(trace.arrival_ms[order].max()) / 1000
        whole = np.array_equal(order, np.arange(len(trace)))
        if not whole or sha256 != study.on().trace.sha256:
            content = "".join(f"{line}\n" for line in row_lines(trace, order)).encode()
            sha256 = hashlib.sha256(content).hexdigest()
        name = f"{study.name}/{path.parent.name}/{path.name}"
        return cls(profile, study, job.recipe, name, sha256, len(order), span_s, content)

    @cached_property
    def deployment(self) -> Object:
        """``deploy.yaml`` with the profile's image, secrets, nodes and network devices.

        Raises
        ------
        InputError
            If an image's tag is not a version and the profile does not say the runtime's.
        """
        manifest, profile = copy.deepcopy(self.recipe.deploy), self.profile
        for name, part in self.recipe.components().items():
            service = manifest["spec"]["services"][name]
            pod = service["extraPodSpec"]
            image = pod["mainContainer"]["image"] = profile.image or part.container.get("image", "")
            if profile.runtime_version:
                service["runtimeVersionOverride"] = profile.runtime_version
            elif not VERSIONED.search(image):
                raise InputError(
                    f"recipes/clusters/{profile.name}.yaml: image: expected a tag that is a "
                    f"version, got {image}; add runtime_version, the version of the runtime in it"
                )
            if part.program == FRONTEND and _runtime(service, image) >= RESET_UNTIL:
                for key in ("command", "args"):
                    words = pod["mainContainer"].get(key, [])
                    pod["mainContainer"][key] = [w.replace(RESET, "") for w in words if w != RESET]
            if profile.image_pull_secret:
                pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
            tolerate(pod, profile)
            if part.program != FRONTEND and profile.node_selector:
                pod["nodeSelector"] = (pod.get("nodeSelector") or {}) | profile.node_selector
            if "envFromSecret" in service:
                service["envFromSecret"] = profile.hf_token_secret
            for path in ("resources.requests", "resources.limits"):
                _rename_devices(at(service, path) or {}, profile.rdma_resource)
        return manifest

    @cached_property
    def scripts(self) -> Object:
        """The ConfigMap of the benchmark's scripts, which all runs of a study share.

        Raises
        ------
        InputError
            If the configuration's Job does not mount and run them.
        """
        made = read_scripts(self.study.folder)
        self.recipe.benchmark.check_scripts(made)
        labels = {**made["metadata"]["labels"], STUDY_LABEL: self.study.base}
        made["metadata"] |= {"labels": labels, "annotations": {DIGEST: digest(made["data"])}}
        return made

    def job(self, run_id: str = "") -> Object:
        """Return the Job of ``perf.yaml`` for one try of the run.

        The Job's deadline follows from the workload: readiness, its span, the last request's
        timeout and some slack.

        Raises
        ------
        InputError
            If that is more than the profile allows for a replay.
        """
        job, profile = copy.deepcopy(self.recipe.benchmark.job), self.profile
        container = job["spec"]["template"]["spec"]["containers"][0]
        environment = {entry["name"]: entry for entry in container["env"]}
        environment["RUN_ID"].pop("valueFrom", None)
        environment["RUN_ID"]["value"] = run_id
        if self.content:
            environment["TRACE_SHA256"]["value"] = self.sha256
            args = container["args"]
            args[args.index("--input-file") + 1] = staged_path(self.sha256)
        timeout_s = float(self.recipe.benchmark.option("--request-timeout-seconds"))
        ready_s = float(environment["READY_S"]["value"])
        deadline_s = round(ready_s + self.span_s + timeout_s + SLACK_S)
        if deadline_s > profile.limits.replay_s:
            raise InputError(
                f"recipes/clusters/{profile.name}.yaml: limits.replay_s: expected at least "
                f"{deadline_s} for this workload, got {profile.limits.replay_s:g}; raise it"
            )
        job["spec"]["activeDeadlineSeconds"] = deadline_s
        tolerate(job["spec"]["template"]["spec"], profile)
        return job

    @cached_property
    def shared(self) -> list[Object]:
        """The volume claims and the model's download, which all runs of a study share."""
        return [*storage(self.study, self.profile), download(self.study, self.profile)]

    @cached_property
    def digest(self) -> str:
        """What a later start knows the run's objects by: all that is applied and sent."""
        applied = [self.deployment, self.scripts, self.job()]
        return digest([*applied, self.sha256, self.rows])[:32]

    def mark(self, manifest: Object, run_id: str = "") -> Object:
        """Return a manifest labelled as the run's own, or that of one try of it."""
        namespace = self.profile.namespace
        return marked(manifest, namespace, self.study.base, self.name, run_id, self.digest)

    def manifests(self, run_id: str = "") -> list[Object]:
        """Return deployment and Job, labelled as the run's own, with the scripts between them."""
        job = self.job(run_id)
        return [self.mark(self.deployment, run_id), self.scripts, self.mark(job, run_id)]

    def folder(self, run_id: str) -> str:
        """Return the folder of a try's artifacts on the volume."""
        return self.recipe.benchmark.option("--artifact-dir").replace("$(RUN_ID)", run_id)

    @property
    def job_name(self) -> str:
        """Name of the benchmark's Job."""
        return self.recipe.benchmark.declared.name

    @property
    def parts(self) -> dict[str, str]:
        """Names of what is removed with the run, by kind."""
        deployment = self.recipe.deployment
        return {"Job": self.job_name, "Pod": f"{deployment}-files", DEPLOYMENT: deployment}

    @property
    def replicas(self) -> dict[str, int]:
        """The wanted pods of each component."""
        return {name: part.replicas for name, part in self.recipe.declared.services.items()}

    @property
    def frontend(self) -> str:
        """Name of the component that is asked."""
        services = self.recipe.declared.services.items()
        return next(name for name, part in services if part.kind == "frontend")

    @property
    def service(self) -> str:
        """Name of the frontend's Service."""
        return f"{self.recipe.deployment}-{self.frontend.lower().replace('.', '-')}"

    def files_pod(self, run_id: str = "") -> Object:
        """Return the pod through which files go in and out."""
        return self.mark(files_pod(self.job(), self.parts["Pod"]), run_id)

    def owns(self, thing: Object) -> bool:
        """Whether an object belongs to this run, made of the same manifests."""
        return (annotation(thing, RUN), annotation(thing, DIGEST)) == (self.name, self.digest)
