"""What a cluster lacks for a study, and how to fix it; creates nothing.

Input: a cluster and the manifests that a run would apply. Output: findings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from kvab.clusters.base import Finding, look
from kvab.clusters.kubernetes import objects
from kvab.clusters.kubernetes.api import DEFINITION, DEPLOYMENT, Kube, OverQuota, WebhookDown
from kvab.clusters.kubernetes.objects import Assembly
from kvab.console import counted
from kvab.declarations import read_yaml
from kvab.errors import DependencyError, KvabError
from kvab.study import Kubernetes, Study, root
from kvab.study.manifests import Object, at, read_configuration

ORIGIN = "nvidia.com/dynamo-operator-origin-version"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class Need(NamedTuple):
    """What a run does with a kind of object."""

    group: str
    resource: str
    verb: str
    cluster_wide: bool

    def review(self, profile: Kubernetes) -> dict[str, str]:
        """Return the attributes of an access review."""
        resource, _, sub = self.resource.partition("/")
        named = {"secrets": profile.hf_token_secret, "customresourcedefinitions": DEFINITION}
        named |= {"namespaces": profile.namespace, "storageclasses": profile.storage_class}
        review = {
            "group": self.group,
            "resource": resource,
            "subresource": sub,
            "verb": self.verb,
            "namespace": "" if self.cluster_wide else profile.namespace,
            "name": named.get(resource, ""),
        }
        return {key: text for key, text in review.items() if text}


def all_needs() -> list[Need]:
    """Return what the role in recipes/rbac.yaml grants, which is what a run needs."""
    return [
        Need(group, resource, verb, role["kind"] == "ClusterRole")
        for role in read_yaml(root() / "recipes" / "rbac.yaml")
        for rule in role.get("rules", [])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def server_version(kube: Kube) -> str:
    """Return the API server's version."""
    return kube.call("GET", "/version", "API server")["gitVersion"]


def versions(kube: Kube) -> dict[str, str]:
    """Return the versions that a run records: the server's, and the definition's."""
    names = [
        version["name"] + (" (stored)" if version.get("storage") else "")
        for version in kube.versions
        if version.get("served")
    ]
    return {"kubernetes": server_version(kube), "dynamographdeployments": ", ".join(names)}


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield what a cluster lacks for the configurations of a study; nothing is created."""
    kube = Kube(profile).with_short_limits()  # whoever asks waits for the answer
    trace = study.trace
    runs = [
        Assembly(profile, study, read_configuration(study.configuration_folder(name), name),
                 f"{study.name}/{name}/doctor", trace.sha256, trace.rows)
        for name in study.configurations
    ]  # fmt: skip
    return findings(kube, runs)


def findings(kube: Kube, runs: list[Assembly]) -> Iterator[Finding]:
    """Yield what a cluster has or lacks, in the order in which a run needs it."""
    profile = runs[0].profile
    first = basics(kube, profile, all_needs())
    yield from first
    if not first[0].ok:
        return
    _, allowed, namespace, _ = first
    yield look("DynamoGraphDeployment", lambda: _definition(kube, runs))
    if namespace.ok:
        yield look("secret", lambda: _exists(kube, "Secret", profile.hf_token_secret,
                   f"create it with `kubectl -n {profile.namespace} create secret generic "
                   f"{profile.hf_token_secret} --from-literal=HF_TOKEN=...`"))  # fmt: skip
    yield from _devices(kube, runs)
    for run in runs:
        if objects.RESET in str(run.recipe.deploy) and objects.RESET not in str(run.deployment):
            what = f"{objects.RESET} is left out, the image's runtime no longer has it"
            yield Finding(True, f"{run.recipe.name}: {what}")
    if namespace.ok and allowed.ok:
        yield from dry_runs(kube, {"storage and model": runs[0].shared} | {
            run.recipe.name: run.manifests("preflight") for run in runs})  # fmt: skip


def dry_runs(kube: Kube, named: dict[str, list[Object]]) -> Iterator[Finding]:
    """Yield what the API server would take; a webhook that cannot be called ends it."""
    for name, manifests in named.items():
        try:
            yield Finding(True, f"dry run, {name}: {_dry_run(kube, manifests)}")
        except WebhookDown as error:
            yield Finding(False, f"dry run, {name}: {error}; no other dry run was tried")
            return
        except KvabError as error:
            yield Finding(False, f"dry run, {name}: {error}")


def basics(kube: Kube, profile: Kubernetes, needs: list[Need]) -> list[Finding]:
    """Return what was found of API server, permissions, namespace and storage class.

    Where the server does not answer, that alone.
    """
    reached = look("API server", lambda: server_version(kube))
    if not reached.ok:
        return [reached]
    return [
        reached,
        look("permissions", lambda: _permissions(kube, profile, needs)),
        look("namespace", lambda: _exists(kube, "Namespace", profile.namespace,
             f"create it with `kubectl create namespace {profile.namespace}`")),
        look("storage class", lambda: _exists(kube, "StorageClass", profile.storage_class,
             "name one of `kubectl get storageclass` in the profile")),
    ]  # fmt: skip


def _permissions(kube: Kube, profile: Kubernetes, needs: list[Need]) -> str:
    refused = []
    for need in needs:
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": need.review(profile)}}  # fmt: skip
        if not kube.call("POST", REVIEWS, "access review", body)["status"]["allowed"]:
            refused.append(f"{need.verb} {need.resource}")
    if refused:
        raise DependencyError(f"not allowed: {', '.join(refused)}; have recipes/rbac.yaml applied")
    return f"all {len(needs)} that a run needs"


def _definition(kube: Kube, runs: list[Assembly]) -> str:
    served = [version["name"] for version in kube.versions if version.get("served")]
    if not served:
        raise DependencyError(f"{DEFINITION} is not defined; install Dynamo's operator")
    applied = [kube.form(run.deployment)["apiVersion"] for run in runs]
    wanted = {version.rpartition("/")[2] for version in applied}
    if missing := sorted(wanted - set(served)):
        raise DependencyError(
            f"the recipes are {', '.join(missing)}, the cluster serves {', '.join(served)}; "
            "install an operator that serves it"
        )
    return f"serves {', '.join(served)}; applied as {', '.join(sorted(wanted))}"


def _exists(kube: Kube, kind: str, name: str, fix: str) -> str:
    if kube.get(kind, name) is None:
        raise DependencyError(f"{name} is not there; {fix}")
    return name


def _devices(kube: Kube, runs: list[Assembly]) -> Iterator[Finding]:
    """Yield whether the nodes that the profile selects have the devices of each configuration."""
    profile, gpus = runs[0].profile, runs[0].study.gpus
    products: Counter[str] = Counter()
    have: Counter[str] = Counter()
    try:
        nodes = kube.list("Node")
    except KvabError as error:
        yield Finding(False, f"nodes: {error}")
        return
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        if at(node, "spec.unschedulable") or not profile.node_selector.items() <= labels.items():
            continue
        amounts = at(node, "status.allocatable") or {}
        have.update({name: int(n) for name, n in amounts.items() if n.isdigit() and "/" in name})
        product = labels.get("nvidia.com/gpu.product", "unlabelled")
        products[product] += int(amounts.get("nvidia.com/gpu", 0))
    listed = ", ".join(f"{n} {name}" for name, n in sorted(products.items()) if n) or "none"
    for run in runs:
        for name, wanted in objects.needs(run.deployment).items():
            what = f"{run.recipe.name}: needs {wanted} {name}, allocatable {have[name]}"
            if have[name] < wanted:
                fix = "set rdma_resource of the profile to the nodes' name for it, or leave it out"
                if name == "nvidia.com/gpu":
                    fix = "check node_selector, or choose a larger cluster"
                what += f" on the nodes that the profile selects ({listed}); {fix}"
            yield Finding(have[name] >= wanted, what)
    if have["nvidia.com/gpu"] and not any(gpus.product in product for product in products):
        yield Finding(False, f"GPUs: the study is about {gpus.product}, the nodes have {listed}; "
                      "select others, or change gpus in study.yaml on purpose")  # fmt: skip


def _dry_run(kube: Kube, manifests: list[Object]) -> str:
    """Return what was found of manifests that the API server would take; the others raise.

    Their pods are tried too, unless some are there already: a quota would count them twice.
    """
    made = [kube.create(manifest, dry_run=True) for manifest in manifests]
    what = f"{len(manifests)} manifests valid under strict validation"
    if manifests[0]["kind"] == DEPLOYMENT:
        origin = objects.annotation(made[0], ORIGIN)
        what += f", operator {origin or 'does not tell its version'}"
    pods = [pod for manifest in manifests for pod in objects.pods(manifest)]
    if not any(_under_way(kube, manifest) for manifest in manifests):
        try:
            _admit(kube, pods)
        except OverQuota:
            time.sleep(kube.limits.poll_s)  # pods that have just gone may still be counted
            _admit(kube, pods)
        what += f", {counted(sum(count for _, count in pods), 'pod')} admitted"
    return what


def _under_way(kube: Kube, manifest: Object) -> bool:
    """Whether a Job is there, or any deployment of the study."""
    if manifest["kind"] == "Job":
        return kube.get("Job", manifest["metadata"]["name"]) is not None
    labels = manifest["metadata"].get("labels") or {}
    study = f"{objects.STUDY_LABEL}={labels.get(objects.STUDY_LABEL)}"
    return manifest["kind"] == DEPLOYMENT and bool(kube.list(DEPLOYMENT, study))


def _admit(kube: Kube, pods: list[tuple[Object, int]]) -> None:
    """Try each pod, then whether quotas have room for all of them at once; the failures raise."""
    for pod, _ in pods:
        kube.create(pod, dry_run=True)
    try:
        kube.create(objects.all_in_one(pods), dry_run=True)
    except OverQuota:
        raise
    except KvabError:
        return  # a rule about the size of one pod: the real ones have passed it
