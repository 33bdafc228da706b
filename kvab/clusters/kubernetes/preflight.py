"""What a cluster lacks for a study, and how to fix it; creates nothing.

Input: a cluster and the manifests that a run would apply. Output: findings.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvab.clusters.base import Finding, look
from kvab.clusters.kubernetes import objects
from kvab.clusters.kubernetes.api import DEFINITION, Kube, OverQuota, WebhookDown
from kvab.clusters.kubernetes.objects import STUDY_LABEL, Assembly
from kvab.errors import DependencyError, KvabError
from kvab.study import Gpus, Kubernetes, Study
from kvab.study.manifests import Configuration, read_configuration

Manifest = dict[str, Any]
# What each configuration applies, its deployment first.
Arms = list[tuple[Configuration, list[Manifest]]]
ORIGIN = "nvidia.com/dynamo-operator-origin-version"
RBAC = "have recipes/rbac.yaml applied"


class Need(NamedTuple):
    """What a run does with a kind of object; the role in recipes/rbac.yaml grants no more."""

    group: str
    resource: str
    verbs: str
    cluster_wide: bool = False

    def reviews(self, profile: Kubernetes) -> Iterator[dict[str, str]]:
        """Yield the attributes of an access review for each verb."""
        resource, _, sub = self.resource.partition("/")
        for verb in self.verbs.split():
            review = {"group": self.group, "resource": resource, "verb": verb}
            if sub:
                review["subresource"] = sub
            if not self.cluster_wide:
                review["namespace"] = profile.namespace
            named = {"secrets": profile.hf_token_secret, "customresourcedefinitions": DEFINITION}
            named |= {"namespaces": profile.namespace, "storageclasses": profile.storage_class}
            if resource in named:
                review["name"] = named[resource]
            yield review


NEEDS = (
    Need("nvidia.com", "dynamographdeployments", "get list create delete"),
    Need("nvidia.com", "dynamocomponentdeployments", "list"),
    Need("batch", "jobs", "get create delete"),
    Need("coordination.k8s.io", "leases", "get create update delete"),
    Need("", "pods", "get list create delete"),
    Need("", "pods/log", "get"),
    Need("", "pods/exec", "get create"),
    Need("", "services/proxy", "get create"),
    Need("", "events", "list"),
    Need("", "configmaps", "get create delete"),
    Need("", "persistentvolumeclaims", "get create"),
    Need("", "secrets", "get"),
    Need("", "namespaces", "get", True),
    Need("", "nodes", "list", True),
    Need("storage.k8s.io", "storageclasses", "get", True),
    Need("apiextensions.k8s.io", "customresourcedefinitions", "get", True),
)


def server_version(kube: Kube) -> str:
    """Return the API server's version."""
    return kube.call("GET", "/version", what="API server")["gitVersion"]


def versions(kube: Kube) -> dict[str, str]:
    """Return the versions that a run records: the server's, and the definition's."""
    definition = kube.get("CustomResourceDefinition", DEFINITION) or {"spec": {"versions": []}}
    served = [each for each in definition["spec"]["versions"] if each.get("served")]
    names = ", ".join(v["name"] + (" (stored)" if v.get("storage") else "") for v in served)
    return {"kubernetes": server_version(kube), "dynamographdeployments": names or "none"}


def run_findings(kube: Kube, run: Assembly) -> Iterator[Finding]:
    """Yield what the cluster lacks for a run."""
    arms = [(run.recipe, run.manifests("preflight"))]
    return _findings(kube, run.profile, run.job.study, arms)


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield what a cluster lacks for the configurations of a study; nothing is created."""
    objects.check_profile(profile)
    arms = []
    for name in study.configurations:
        recipe = read_configuration(study.configuration_folder(name), name)
        sending = objects.Sending(study.trace.sha256, study.trace.rows, 0.0, False)
        mark = objects.Mark(study.name, f"{study.name}/{name}/doctor", "doctor", "")
        job = objects.benchmark(recipe, profile, sending, "doctor")
        plain = [mark.put(m, profile.namespace) for m in (objects.deployment(recipe, profile), job)]
        arms.append((recipe, [*plain, objects.scripts(study, recipe, profile)]))
    # Whoever asks waits for the answer: no long retries.
    return _findings(Kube(profile).with_short_limits(), profile, study, arms)


def _findings(kube: Kube, profile: Kubernetes, study: Study, arms: Arms) -> Iterator[Finding]:
    """Yield what a cluster has or lacks, in the order in which a run needs it."""
    shared = [*objects.storage(study, profile), objects.download(study, profile)]
    found = basics(kube, profile)
    yield from found
    if not found[0].ok:
        return
    _, allowed, namespace, _ = found
    yield look("DynamoGraphDeployment", lambda: _definition(kube, arms))
    if namespace.ok:
        yield look("secret", lambda: _exists(kube, "Secret", profile.hf_token_secret,
                   f"create it with `kubectl -n {profile.namespace} create secret generic "
                   f"{profile.hf_token_secret} --from-literal=HF_TOKEN=...`"))  # fmt: skip
    yield from _devices(kube, profile, study.gpus, arms)
    for configuration, manifests in arms:
        if objects.RESET in str(configuration.deploy) and objects.RESET not in str(manifests[0]):
            what = f"{objects.RESET} is left out, the image's runtime no longer has it"
            yield Finding(True, f"{configuration.name}: {what}")
    if namespace.ok and allowed.ok:
        named = [("storage and model", shared)]
        named += [(configuration.name, manifests) for configuration, manifests in arms]
        yield from _dry_runs(kube, named)


def _dry_runs(kube: Kube, named: list[tuple[str, list[Manifest]]]) -> Iterator[Finding]:
    """Yield what the API server would take; a webhook that cannot be called ends it."""
    for name, manifests in named:
        try:
            yield Finding(True, f"dry run, {name}: {dry_run(kube, manifests)}")
        except WebhookDown as error:
            yield Finding(False, f"dry run, {name}: {error}; no other dry run was tried")
            return
        except KvabError as error:
            yield Finding(False, f"dry run, {name}: {error}")


def basics(kube: Kube, profile: Kubernetes, needs: tuple[Need, ...] = NEEDS) -> list[Finding]:
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


def _permissions(kube: Kube, profile: Kubernetes, needs: tuple[Need, ...]) -> str:
    path, refused = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", []
    count = 0
    for need in needs:
        for attributes in need.reviews(profile):
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            answer = kube.call("POST", path, None, body, what="access review")
            count += 1
            if not answer["status"]["allowed"]:
                refused.append(f"{attributes['verb']} {need.resource}")
    if refused:
        raise DependencyError(f"not allowed: {', '.join(refused)}; {RBAC}")
    return f"all {count} that a run needs"


def _definition(kube: Kube, arms: Arms) -> str:
    definition = kube.get("CustomResourceDefinition", DEFINITION)
    if definition is None:
        raise DependencyError(f"{DEFINITION} is not defined; install Dynamo's operator")
    served = [v["name"] for v in definition["spec"]["versions"] if v.get("served")]
    wanted = {kube.form(each[0])["apiVersion"].rpartition("/")[2] for _, each in arms}
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


def _devices(kube: Kube, profile: Kubernetes, gpus: Gpus, arms: Arms) -> Iterator[Finding]:
    try:
        nodes = [node for node in kube.list("Node") if _schedulable(node, profile)]
    except KvabError as error:
        yield Finding(False, f"nodes: {error}")
        return
    products: dict[str, int] = {}
    have: dict[str, int] = {}
    for node in nodes:
        product = (node["metadata"].get("labels") or {}).get("nvidia.com/gpu.product", "unlabelled")
        for name, text in node["status"].get("allocatable", {}).items():
            if text.isdigit() and "/" in name:
                have[name] = have.get(name, 0) + int(text)
                if name == "nvidia.com/gpu":
                    products[product] = products.get(product, 0) + int(text)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(products.items())) or "none"
    for configuration, manifests in arms:
        for name, wanted in objects.needs(manifests[0]).items():
            what = f"{configuration.name}: needs {wanted} {name}"
            if have.get(name, 0) >= wanted:
                yield Finding(True, f"{what}, allocatable {have[name]}")
            elif name == "nvidia.com/gpu":
                yield Finding(
                    False,
                    f"{what} on nodes that the profile selects, allocatable: {listed}; check "
                    "node_selector, or choose a larger cluster",
                )
            else:
                yield Finding(
                    False,
                    f"{what}, allocatable {have.get(name, 0)}; set rdma_resource of the profile to "
                    "the nodes' name for it, or leave it out",
                )
    if products and not any(gpus.product in product for product in products):
        yield Finding(False, f"GPUs: the study is about {gpus.product}, the nodes have {listed}; "
                      "select others, or change gpus in study.yaml on purpose")  # fmt: skip


def _schedulable(node: Manifest, profile: Kubernetes) -> bool:
    labels = node["metadata"].get("labels") or {}
    spec = node.get("spec") or {}
    return profile.node_selector.items() <= labels.items() and not spec.get("unschedulable")


def dry_run(kube: Kube, manifests: list[Manifest]) -> str:
    """Return what was found of manifests that the API server would take; the others raise.

    Their pods are tried too, unless some are there already: a quota would count them twice.
    """
    for manifest in manifests:
        made = kube.create(manifest, dry_run=True)
        if manifest["kind"] == "DynamoGraphDeployment":
            origin = (made["metadata"].get("annotations") or {}).get(ORIGIN)
    what = f"{len(manifests)} manifests valid under strict validation"
    if manifests and manifests[0]["kind"] == "DynamoGraphDeployment":
        what += f", operator {origin or 'does not tell its version'}"
    pods = [each for manifest in manifests for each in objects.pods(manifest)]
    if not any(objects.pods(manifest) and _under_way(kube, manifest) for manifest in manifests):
        try:
            _admit(kube, pods)
        except OverQuota:
            time.sleep(kube.limits.poll_s)  # pods that have just gone may still be counted
            _admit(kube, pods)
        total = sum(count for _, count in pods)
        what += f", {total} pod{'s' if total > 1 else ''} admitted"
    return what


def _under_way(kube: Kube, manifest: Manifest) -> bool:
    """Whether a Job is there, or any deployment of the study."""
    if manifest["kind"] == "Job":
        return kube.get("Job", manifest["metadata"]["name"]) is not None
    study = manifest["metadata"]["labels"][STUDY_LABEL]
    return bool(kube.list(manifest["kind"], f"{STUDY_LABEL}={study}"))


def _admit(kube: Kube, pods: list[tuple[Manifest, int]]) -> None:
    """Try each pod, then whether quotas have room for all of them at once; the failures raise."""
    for pod, _ in pods:
        kube.create(pod, dry_run=True)
    try:
        kube.create(objects.all_in_one(pods), dry_run=True)
    except OverQuota:
        raise
    except KvabError:
        return  # a rule about the size of one pod: the real ones have passed it
