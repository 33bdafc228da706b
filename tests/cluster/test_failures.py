"""Every way a deployment or a replay is known to fail: what a person reads, and nothing left."""

import copy

import pytest
from apiserver import Fault
from clients import hold
from controllers import NAMESPACE, condition, pending

from kvab.errors import DependencyError, KvabError
from kvab.runs import folder as runs


def attempt(emulated, trace, configuration="disagg-kv-router"):
    """Make a run that is expected to fail; return its message and its folder."""
    replay = emulated.replay(trace, configuration)
    with pytest.raises(KvabError) as raised:
        replay.prepare()
        replay.deploy()
        replay.replay()
        replay.collect()
    return raised.value, replay.job.path


def change_node(controllers, **devices):
    for node in controllers.store.find("nodes"):
        changed = copy.deepcopy(node)
        changed["status"]["allocatable"] |= devices
        controllers.store.update("nodes", changed)


def take_gpus(controllers):
    for number in (1, 2):
        container = {"name": "x", "image": "x", "resources": {"limits": {"nvidia.com/gpu": "5"}}}
        controllers.store.create("pods", "another", {
            "metadata": {"name": f"other-{number}", "labels": {}},
            "spec": {"nodeName": f"gpu-{number}", "containers": [container]},
        })  # fmt: skip


def waiting(reason, message=""):
    def status(pod):
        state = {"waiting": {"reason": reason, "message": message}}
        container = {"name": "main", "restartCount": 0, "state": state}
        return pending(True, container=container)

    return status


def crashing(reason, code):
    def status(pod):
        ended = {"terminated": {"exitCode": code, "reason": reason}}
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
        container = {"name": "main", "restartCount": 3, "state": state, "lastState": ended}
        return {**pending(True, container=container), "phase": "Running"}

    return status


def gone(plural, name):
    return lambda controllers: controllers.store.delete(plural, NAMESPACE, name)


def volume_event(controllers):
    controllers.script.pods["vllmprefillworker-3"] = lambda pod: pending(True)
    controllers.server.event(
        "disagg-router-6p-2d-vllmprefillworker-3",
        "FailedAttachVolume",
        'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s)',
        NAMESPACE,
    )


def failed(reason, message):
    def status(held, usual):
        return {"state": "failed", "conditions": [condition("False", reason, message)]}

    return status


DEPLOYS = {
    "a volume claim is missing": (
        {"on_deploy": gone("persistentvolumeclaims", "compilation-cache")},
        'disagg-router-6p-2d: failed_to_reconcile_the_resources: legacy top-level PVC '
        '"compilation-cache" does not exist and create is not enabled; run prepare first',
    ),
    "a volume is not bound": (
        {"pods": {"prefill": pending(False, "Unschedulable", "0/2 nodes are available: pod has "
                                     "unbound immediate PersistentVolumeClaims.")}},
        "Unschedulable: 0/2 nodes are available: pod has unbound immediate "
        "PersistentVolumeClaims.; run prepare first, or check the storage class",
    ),
    "a volume is bound to another node": (
        {"on_deploy": volume_event},
        "vllmprefillworker-3: FailedAttachVolume: Multi-Attach error for volume \"pvc-1\" Volume "
        "is already used by pod(s); choose a storage class that offers ReadWriteMany",
    ),
    "the secret is missing": (
        {"on_deploy": gone("secrets", "hf-token-secret")},
        'CreateContainerConfigError: secret "hf-token-secret" not found; create it with',
    ),
    "the GPUs are taken": (
        {"on_deploy": take_gpus},
        "Unschedulable: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu.; free the GPUs",
    ),
    "the network devices are gone": (
        {"on_deploy": lambda controllers: change_node(controllers, **{"rdma/ib": "0"})},
        "Unschedulable: 0/2 nodes are available: 2 Insufficient rdma/ib.; set rdma_resource",
    ),
    "the scheduler holds the group back": (
        {"pods": {"worker": pending(False, "SchedulingGated", "Scheduling is blocked")}},
        "SchedulingGated: Scheduling is blocked; the scheduler holds the group back",
    ),
    "the image is not there": (
        {"images": ("slim-bookworm",)},
        "ImagePullBackOff: Back-off pulling image \"nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1\": "
        "not found; check image and image_pull_secret of the profile",
    ),
    "the image's name is wrong": (
        {"pods": {"worker": waiting("InvalidImageName", "couldn't parse image name")}},
        "InvalidImageName: couldn't parse image name; check image",
    ),
    "a worker crashes": (
        {"pods": {"prefillworker-0": crashing("Error", 1)}},
        "CrashLoopBackOff (Error, exit code 1): container main was restarted 3 times; its log "
        "(whole in diagnostics/) ended with: loading | error: unrecognized arguments: --no-such-",
    ),
    "a worker is killed for memory": (
        {"pods": {"prefillworker-0": crashing("OOMKilled", 137)}},
        "CrashLoopBackOff (OOMKilled, exit code 137)",
    ),
    "the validation failed": (
        {"status": failed("ValidationFailed", "spec.services is empty")},
        "disagg-router-6p-2d: ValidationFailed: spec.services is empty",
    ),
    "the reconciliation keeps failing": (
        {"status": failed("failed_to_reconcile_the_resources", "cannot create Service")},
        "disagg-router-6p-2d: failed_to_reconcile_the_resources: cannot create Service",
    ),
    "the deployment is deleted by someone": (
        {"on_deploy": lambda c: c.store.delete("dynamographdeployments", NAMESPACE,
                                               "disagg-router-6p-2d")},
        "the deployment was deleted or replaced by someone else",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPLOYS)
def test_a_deployment_that_cannot_come_up_says_why_and_is_removed(emulated, small_trace, name):
    changes, expected = DEPLOYS[name]
    for field, value in changes.items():
        setattr(emulated.script, field, value)
    log = "loading\nerror: unrecognized arguments: --no-such-flag\n"
    emulated.node.previous["disagg-router-6p-2d-vllmprefillworker-0"] = log
    error, path = attempt(emulated, small_trace)
    assert expected in str(error)
    assert error.exit_code == 3
    others = [pod["metadata"]["name"] for pod in emulated.store.find("pods", "another")]
    assert [n for n in emulated.left() if n.removeprefix("pods/") not in others] == []
    run = runs.read_run(path)
    assert (run.manifest.status, run.manifest.counts.received) == ("failed", 0)
    assert expected in run.manifest.reason
    assert "diagnostics/events.json" in run.manifest.files


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": ["another"]}, "still waits for Qwen/Qwen3-32B is listed, now another"),
        ({"health": [{"component": "backend", "endpoint": "generate", "instance_id": 1}]},
         "still waits for 6 prefill workers registered, now 0"),
        ({"completion": None}, "still waits for a streamed completion, now 404"),
        ({"completion": 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'},
         "still waits for a streamed completion, now 200"),
    ],
)  # fmt: skip
def test_pods_that_are_ready_but_do_not_serve_are_not_ready(
    emulated, small_trace, changes, expected
):
    emulated.profile(limits={"deploy_s": 1.5})
    for field, value in changes.items():
        setattr(emulated.node, field, value)
    error, _ = attempt(emulated, small_trace)
    assert expected in str(error)
    assert emulated.left() == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda held, usual: {**usual, "observedGeneration": 0}, "seen generation 1"),
        (lambda held, usual: {**usual, "state": "pending"}, "state successful, now pending"),
        (lambda held, usual: {**usual, "conditions": [condition("False", "updating", "drift")]},
         "condition Ready, now updating: drift"),
    ],
)  # fmt: skip
def test_a_status_that_does_not_agree_is_not_believed(emulated, small_trace, change, expected):
    emulated.profile(limits={"deploy_s": 1.5})
    emulated.script.status = change
    error, _ = attempt(emulated, small_trace)
    assert f"still waits for {'the operator has ' if 'seen' in expected else ''}{expected}" in str(
        error
    )


def test_success_reported_before_the_pods_are_ready_is_not_believed(emulated, small_trace):
    def early(held, usual):
        ready = condition("True", "all_resources_are_ready", "")
        components = {
            key: {**value, "readyReplicas": value["replicas"]}
            for key, value in usual.get("components", {}).items()
        }
        return {**usual, "state": "successful", "conditions": [ready], "components": components}

    emulated.profile(limits={"deploy_s": 1.5, "grace_s": 60})
    emulated.script.status = early
    emulated.script.pods["prefillworker-5"] = pending(True)
    error, _ = attempt(emulated, small_trace)
    assert "VllmPrefillWorker: 6 ready pods, now 5" in str(error)


def test_failed_that_passes_is_waited_out(emulated, small_trace):
    seen = []

    def transient(held, usual):
        seen.append(1)
        if len(seen) < 4:
            return failed("failed_to_reconcile_the_resources", "conflict")(held, usual)
        return usual

    emulated.script.status = transient
    assert runs.read_run(emulated.run(small_trace)).manifest.status == "complete"


def test_a_denied_admission_is_told_as_it_was_said(emulated, small_trace):
    said = 'admission webhook "vdynamographdeployment.kb.io" denied the request: no'
    emulated.controllers.admitted.append((403, said))
    error, path = attempt(emulated, small_trace)
    assert f"rejected: {said}" in str(error)
    assert emulated.left() == []
    assert not path.exists()


# --- the replay ------------------------------------------------------------------------------


def during_replay(emulated, act):
    """Call a function once when the benchmark runs."""
    done = []

    def status(pod):
        benchmark = [p for p in emulated.store.find("pods")
                     if "-benchmark-" in p["metadata"]["name"]
                     and p.get("status", {}).get("phase") == "Running"]  # fmt: skip
        if benchmark and not done:
            done.append(1)
            return act(pod)
        return None

    emulated.node.environment["PACE_S"] = "0.1"
    emulated.script.pods["prefillworker-2"] = status


def test_a_worker_restarted_during_the_replay_fails_the_arm(emulated, small_trace):
    def restart(pod):
        status = copy.deepcopy(pod["status"])
        status["containerStatuses"][0]["restartCount"] = 1
        return status

    during_replay(emulated, restart)
    error, path = attempt(emulated, small_trace)
    assert "serving pods did not stay up during the replay (restarted: " in str(error)
    assert "disagg-router-6p-2d-vllmprefillworker-2" in str(error)
    assert emulated.left() == []
    assert runs.read_manifest(path).status == "failed"


def test_a_benchmark_that_fails_tells_its_exit_code_and_its_last_words(emulated, small_trace):
    emulated.node.environment["AIPERF_EXIT"] = "7"
    error, path = attempt(emulated, small_trace)
    assert "Job disagg-router-6p-2d-benchmark: BackoffLimitExceeded, exit code 7" in str(error)
    assert "ERROR: no request succeeded" in str(error)
    logs = [name for name in runs.read_manifest(path).files if "benchmark" in name]
    assert any(name.endswith(".log") for name in logs)
    assert emulated.left() == []


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("deadline", "DeadlineExceeded, exit code unknown: Job was active longer than deadline"),
        ("pod removed", "BackoffLimitExceeded"),
        ("job removed", "was deleted while it ran"),
    ],
)
def test_of_a_benchmark_whose_pod_is_gone_the_last_lines_seen_are_told(
    emulated, small_trace, end, said
):
    logged = []

    def strike(method, path):
        held = emulated.store.get("jobs", NAMESPACE, "disagg-router-6p-2d-benchmark")
        pods = [
            pod for pod in emulated.store.find("pods") if "benchmark" in pod["metadata"]["name"]
        ]
        if path.endswith("/log") and pods and pods[0]["metadata"]["name"] in path:
            logged.append("Profiling" in emulated.node.log(pods[0], previous=False))
        if held and pods and any(logged) and not path.endswith("/log"):
            if end == "deadline":
                spec = {**held["spec"], "activeDeadlineSeconds": 0}
                emulated.store.change("jobs", held, spec=spec)
            elif end == "pod removed":
                emulated.store.delete("pods", NAMESPACE, pods[0]["metadata"]["name"])
            else:
                emulated.store.delete("jobs", NAMESPACE, held["metadata"]["name"])
        return False

    fault = type("Strike", (), {"cut": None, "hits": staticmethod(strike)})
    emulated.server.faults.append(fault)
    emulated.node.environment["PACE_S"] = "1"
    error, _ = attempt(emulated, small_trace)
    assert said in str(error)
    assert "Profiling: 0/40" in str(error).partition("its log end")[2]
    assert emulated.left() == []


def test_a_benchmark_image_that_cannot_be_pulled_is_told(emulated, small_trace):
    emulated.script.pods["benchmark"] = waiting("ErrImagePull", "toomanyrequests")
    error, _ = attempt(emulated, small_trace)
    assert "Job disagg-router-6p-2d-benchmark: " in str(error)
    assert "ErrImagePull: toomanyrequests; check image" in str(error)
    assert emulated.left() == []


def test_a_router_that_saw_no_caches_fails_the_arm(emulated, small_trace):
    emulated.node.hits = 0
    error, _ = attempt(emulated, small_trace)
    assert "router: no KV events were applied during the replay" in str(error)


def test_a_round_robin_arm_needs_no_router_evidence(emulated, small_trace):
    emulated.node.hits = 0
    path = emulated.run(small_trace, "agg-round-robin")
    assert runs.read_run(path).manifest.status == "complete"


# --- the API server ---------------------------------------------------------------------------


CONVERSION = (
    "conversion webhook for nvidia.com/v1alpha1, Kind=DynamoGraphDeployment failed: Post "
    '"https://dynamo-operator-webhook:443/convert": connection refused'
)


@pytest.mark.parametrize(
    "faults",
    [
        [
            Fault("GET", "dynamographdeployments", 500, CONVERSION, times=4),
            Fault("GET", "/pods", 429, "too many requests", times=2),
            Fault("GET", "/jobs/", 503, "apiserver is shutting down", times=3),
            Fault("GET", "/(pods|jobs|events)", 0, times=4),
        ],
        [
            Fault("POST", "dynamographdeployments$", 500, "failed calling webhook", times=2),
            Fault("POST", "/jobs$", 504, "timeout", times=1),
            Fault("DELETE", "dynamographdeployments", 500, CONVERSION, times=2),
        ],
    ],
    ids=["reading", "changing"],
)
def test_a_run_survives_an_api_server_that_stumbles(emulated, small_trace, faults):
    emulated.server.faults.extend(faults)
    path = emulated.run(small_trace)
    assert [fault for fault in faults if fault.times] == []
    assert runs.read_run(path).manifest.status == "complete"
    assert emulated.left() == []


def test_an_api_server_that_stays_away_is_told(emulated, small_trace):
    emulated.profile(limits={"retry_s": 1})
    emulated.server.faults.append(Fault("GET", "/version", 503, "no leader", times=99))
    error, _ = attempt(emulated, small_trace)
    assert "the API server did not answer in time: no leader" in str(error)
    assert isinstance(error, DependencyError)


@pytest.mark.parametrize("status", [405, 410, 413])
def test_what_no_repetition_mends_is_not_repeated_and_not_called_slow(
    emulated, small_trace, status
):
    fault = Fault("GET", "/version", status, "no such luck", times=99)
    emulated.server.faults.append(fault)
    error, _ = attempt(emulated, small_trace)
    assert f"rejected with status {status}: no such luck" in str(error)
    assert fault.times >= 97
    assert error.exit_code == 3


def test_a_page_of_a_proxy_is_no_answer_of_the_api_server(emulated, small_trace):
    replay = emulated.replay(small_trace)

    class Answer:
        data = b"<html>please log in</html>"

    replay.cluster.kube.api.call_api = lambda *_, **__: (Answer, 200, {})
    with pytest.raises(DependencyError, match=r"got '<html>please log in</html>'; is there a prox"):
        replay.cluster.kube.get("Pod", "x")


def test_an_api_server_lost_during_the_replay_leaves_it_to_be_found(emulated, small_trace):
    emulated.profile(limits={"retry_s": 0.5})
    held = hold(emulated)
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()
    lost = Fault("GET", "/jobs/disagg", 503, "no leader", times=10**6)
    away = Fault("DELETE", ".", 503, "no leader", times=10**6)
    replay.cluster.kube.create = _then(replay.cluster.kube.create, "Job", [lost, away], emulated)
    with pytest.raises(DependencyError, match=r"no leader.*; then, tearing down: .*no leader"):
        replay.replay()
    assert runs.read_manifest(replay.job.path).status == "failed"
    emulated.server.faults.clear()
    held.unlink()
    path = emulated.run(small_trace)
    assert runs.read_manifest(path).status == "complete"
    started = [p for m, p in emulated.server.seen if m == "POST" and "/jobs?field" in p
               and "dryRun" not in p]  # fmt: skip
    assert len(started) == 2  # the download and the benchmark, which went on without us
    assert emulated.left() == []


def _then(create, kind, faults, emulated):
    def created(manifest, **options):
        made = create(manifest, **options)
        if manifest["kind"] == kind:
            emulated.server.faults.extend(faults)
        return made

    return created
