"""What the rules of a cluster reject: whoever makes the pods says so, and every rule its remedy."""

import pytest
import yaml
from apiserver import Fault
from controllers import NAMESPACE
from policies import RESTRICTED
from test_failures import attempt
from test_preflight import dry_runs

from kvab.clusters.kubernetes import api, health
from kvab.errors import DependencyError, InputError
from kvab.runs import folder as runs

NAME = "disagg-router-6p-2d"
ENFORCE = "pod-security.kubernetes.io/enforce"
POLICY = "ValidatingAdmissionPolicy 'no-gpus' with binding 'all' denied request: ask first"
WEBHOOK = 'admission webhook "validate.kyverno.svc-fail" denied the request: require-limits'


def label(emulated):
    held = emulated.store.get("namespaces", "", NAMESPACE)
    labels = {ENFORCE: "restricted"}
    emulated.store.update(
        "namespaces", {**held, "metadata": {**held["metadata"], "labels": labels}}
    )


def put(plural, name, **spec):
    manifest = {"metadata": {"name": name}, "spec": spec}
    return lambda emulated: emulated.store.create(plural, NAMESPACE, manifest)


def deny(status, said):
    def hook(plural, manifest):
        worker = plural == "pods" and "worker" in manifest["metadata"]["name"]
        return (
            (status, f'pods "{manifest["metadata"]["name"]}" is forbidden: {said}')
            if worker
            else None
        )

    return lambda emulated: emulated.server.admission.append(hook)


RULES = {
    "quota": (
        put("resourcequotas", "gpus", hard={"requests.nvidia.com/gpu": "8"}),
        "is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu={}, used: ",
        "limited: requests.nvidia.com/gpu=8; free what it counts, or ask for a larger quota: "
        "`kubectl describe quota`",
    ),
    "quota without limits": (
        put("resourcequotas", "all", hard={"limits.memory": "2Ti"}),
        "is forbidden: failed quota: all: must specify limits.memory for: main",
        "; give these resources in the recipe, or have a LimitRange set defaults",
    ),
    "limit range": (
        put("limitranges", "cpus", limits=[{"type": "Container", "max": {"cpu": "4"}}]),
        "is forbidden: maximum cpu usage per Container is 4",
        "; change the resources in the recipe, or have the LimitRange changed",
    ),
    "pod security": (
        label,
        'is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
        '(container "main" must set securityContext.allowPrivilegeEscalation=false), unrestricted',
        "; have the namespace labelled pod-security.kubernetes.io/enforce=baseline, or give the "
        "recipe the securityContext that it asks for",
    ),
    "policy": (deny(422, POLICY), POLICY, "; change the recipe as it says, or ask the cluster's"),
    "webhook": (deny(403, WEBHOOK), WEBHOOK, "; change the recipe as it says, or ask whoever runs"),
}


@pytest.mark.parametrize("rule", RULES)
def test_pods_that_cannot_be_created_say_why_within_half_a_minute(emulated, small_trace, rule):
    apply, said, fix = RULES[rule]
    emulated.script.on_deploy = lambda _: apply(emulated)  # later than what is found beforehand
    error, path = attempt(emulated, small_trace)
    assert f"ReplicaSet {NAME}-" in str(error)
    assert f'FailedCreate: Error creating: pods "{NAME}-' in str(error)
    assert said.format(2) in str(error)
    assert fix in str(error)
    assert emulated.left() == []
    assert "FailedCreate" in (path / "diagnostics/events.json").read_text()


@pytest.mark.parametrize("job", ["model-download", f"{NAME}-benchmark"])
def test_jobs_whose_pods_cannot_be_created_say_why(emulated, small_trace, job):
    def hook(plural, manifest):
        if plural == "pods" and manifest["metadata"].get("labels", {}).get("job-name") == job:
            return 403, f'pods "{manifest["metadata"]["name"]}" is forbidden: {WEBHOOK}'

    emulated.server.admission.append(hook)
    error, _ = attempt(emulated, small_trace)
    assert str(error).startswith(f"Job {job}: FailedCreate: Error creating: pods ")
    assert f"{WEBHOOK}; change the recipe as it says, or ask whoever" in str(error)
    assert emulated.left() == []


def test_the_wait_for_pods_ends_before_the_grace_time_of_other_causes():
    cause = health.Cause("ReplicaSet x", "FailedCreate", "exceeded quota")
    grace = health.Grace(60)
    assert grace.lasting([cause], 100) is None
    assert grace.lasting([cause], 119) is None
    assert grace.lasting([cause], 120) == cause


@pytest.mark.parametrize("rule", RULES)
def test_doctor_finds_it_beforehand(emulated, rule):
    apply, said, fix = RULES[rule]
    emulated.server.do(apply, emulated)
    (found,) = [each for each in dry_runs(emulated) if "disagg-kv-router" in each.what]
    assert not found.ok
    assert said.format(16) in found.what
    assert fix in found.what


def test_pods_that_obey_the_strictest_pod_security_are_admitted(emulated):
    context = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert all(satisfied(context, {}) for _, _, satisfied in RESTRICTED)
    for path in emulated.checkout.glob("recipes/qwen3-32b/**/*.yaml"):
        listed = list(yaml.safe_load_all(path.read_text()))
        for manifest in listed:
            spec = manifest.get("spec") or {}
            for service in (spec.get("services") or {}).values():
                service["extraPodSpec"]["mainContainer"]["securityContext"] = context
            for container in spec["template"]["spec"]["containers"] if "template" in spec else []:
                container["securityContext"] = context
        path.write_text(yaml.safe_dump_all(listed))
    emulated.server.do(label, emulated)
    found = dry_runs(emulated)
    admitted = [each.what.rpartition(", ")[2] for each in found if each.ok]
    assert admitted == ["1 pod admitted", *["10 pods admitted"] * 4]


def test_a_quota_that_has_just_enough_does_not_stop_a_run_that_is_resumed(emulated, small_trace):
    hard = {"requests.nvidia.com/gpu": "16", "pods": "12"}
    emulated.server.do(put("resourcequotas", "gpus", hard=hard), emulated)
    first = emulated.replay(small_trace)
    first.prepare()
    first.deploy()
    first.lock.leave()  # its process is gone
    assert runs.read_manifest(emulated.run(small_trace)).status == "complete"


def test_pods_that_have_just_gone_may_still_be_counted(emulated, small_trace):
    once = Fault("POST", "/pods$", 403, 'pods "x" is forbidden: exceeded quota: gpus, requested: '
                 "requests.nvidia.com/gpu=16, used: requests.nvidia.com/gpu=2, limited: "
                 "requests.nvidia.com/gpu=16")  # fmt: skip
    emulated.server.faults.append(once)
    emulated.replay(small_trace).prepare()
    assert once.times == 0


def test_a_webhook_that_is_down_is_given_up_on_once(emulated):
    said = (
        'Internal error occurred: failed calling webhook "vdynamographdeployment.kb.io": failed to '
        'call webhook: Post "https://dynamo-operator-webhook.dynamo.svc:443/validate?timeout=10s": '
        "dial tcp 10.96.0.7:443: connect: connection refused"
    )
    emulated.profile(limits={"retry_s": 1})
    fault = Fault("POST", "dynamographdeployments$", 500, said, times=99)
    emulated.server.faults.append(fault)
    storage, first = dry_runs(emulated)
    assert fault.times >= 85  # the patience with one configuration, not with each of the four
    assert storage.ok
    assert "rejected: Internal error occurred: failed" in first.what
    assert "check the webhook's pods; those of nvidia.com and kb.io are Dynamo's" in first.what
    assert first.what.endswith("; no other dry run was tried")


# --- what the API says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "kind", "expected"),
    [
        (403, 'pods is forbidden: User "a" cannot list resource "pods" in API group "" in the '
         'namespace "b"', DependencyError, "; have recipes/rbac.yaml applied"),
        (401, "Unauthorized", DependencyError, "not allowed: Unauthorized; log in again"),
        (403, 'pods "x" is forbidden: no PriorityClass with name high was found', DependencyError,
         "; no permission is missing: ask the cluster's administrators for the rule"),
        (403, 'pods "x" is forbidden: status unknown for quota: q, resources: pods',
         DependencyError, "; free what it counts, or ask"),
        (403, 'persistentvolumeclaims "model-cache" is forbidden: maximum storage usage per '
         "PersistentVolumeClaim is 50Gi, but request is 100Gi", DependencyError,
         "; change the resources in the recipe"),
        (403, 'pods "x" is forbidden: [maximum cpu usage per Container is 4, but limit is 8, '
         "memory max limit to request ratio per Container is 2, but provided ratio is 4.000000]",
         DependencyError, "; change the resources in the recipe"),
        (403, 'jobs.batch "x" is forbidden: unable to create new content in namespace a because it '
         "is being terminated", DependencyError, "; wait until it is gone"),
        (403, f'admission webhook "w" denied the request: {POLICY} violates PodSecurity',
         InputError, "; change the recipe as it says, or ask whoever"),
        (422, f'pods "x" is forbidden: {POLICY}', InputError,
         "; change the recipe as it says, or ask the cluster"),
        (500, "Internal error occurred: etcdserver: no leader", DependencyError,
         "the API server failed with status 500: Internal error occurred: etcdserver: no leader"),
        (503, "no leader", DependencyError, "the API server did not answer in time: no leader"),
    ],
)  # fmt: skip
def test_every_answer_has_its_own_words_and_remedy(status, said, kind, expected):
    from kubernetes.client.rest import ApiException

    error = ApiException(status, "reason")
    error.body = f'{{"message": {yaml.dump(said, default_style=chr(34), width=9999).strip()}}}'
    with pytest.raises(kind) as raised, api.explaining("Pod x"):
        raise error
    assert expected in str(raised.value)
    assert ("rbac.yaml" in str(raised.value)) == (" cannot list " in said)


def event(kind, name, reason="FailedCreate", at="2026-01-01T00:10:00Z", **more):
    about = {"kind": kind, "name": name}
    return {"involvedObject": about, "reason": reason, "lastTimestamp": at, "message": "m", **more}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([event("ReplicaSet", "agg-frontend-7d4b9c")], ["ReplicaSet agg-frontend-7d4b9c"]),
        ([event("StatefulSet", "agg-vllmdecodeworker-0")], ["StatefulSet agg-vllmdecodeworker-0"]),
        ([event("PodClique", "agg-0-frontend", "PodCreateFailed")], ["PodClique agg-0-frontend"]),
        ([event("ReplicaSet", "agg-frontend-a"), event("ReplicaSet", "agg-frontend-a", "Scaled",
                                                       at="2026-01-01T00:11:00Z")], []),
        ([event("ReplicaSet", "agg-frontend-a", at=None, eventTime="2026-01-01T00:05:00.123456Z",
                series={"lastObservedTime": "2026-01-01T00:12:00.000000Z"}),
          event("ReplicaSet", "agg-frontend-a", "Scaled")], ["ReplicaSet agg-frontend-a"]),
        ([event("LeaderWorkerSet", "agg-frontend-0", "Created", at="2026-01-01T00:11:00Z"),
          event("StatefulSet", "agg-frontend-0")], ["StatefulSet agg-frontend-0"]),
        ([event("ReplicaSet", "agg-frontend-a", at="2025-12-31T23:59:59Z")], []),
        ([event("ReplicaSet", "agg-canary-frontend-a"), event("Pod", "agg-frontend-a-b"),
          event("Job", "agg-benchmark")], []),
    ],
)  # fmt: skip
def test_only_what_the_deployment_owns_and_only_its_newest_event_counts(events, found):
    owner = {"metadata": {"name": "agg", "creationTimestamp": "2026-01-01T00:00:00Z"}}
    replicas = {"Frontend": 1, "VllmDecodeWorker": 8}
    names = health.owned("agg", replicas)
    assert [c.subject for c in health.of_creation(events, owner, names)] == found
