"""Commands in pods: what is tried again and for how long, what is final, and what is said."""

import pytest
from apiserver import Fault
from controllers import NAMESPACE

from kvab.clusters.kubernetes import api
from kvab.clusters.kubernetes.api import Kube, Pod
from kvab.clusters.kubernetes.workloads import helper_pod
from kvab.errors import DependencyError
from kvab.study import load_cluster

EXEC = "/pods/p/exec$"


@pytest.fixture
def pod(emulated):
    container = {"name": "main", "image": "python:3.12-slim-bookworm"}
    manifest = {"metadata": {"name": "p", "labels": {}}, "spec": {"containers": [container]}}
    emulated.server.do(emulated.store.create, "pods", NAMESPACE, manifest)
    return Pod(Kube(load_cluster("emulated")), manifest)


def tries(emulated):
    return sum("/pods/p/exec" in path for _, path in emulated.server.seen)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "exec in pod p: not allowed: Unauthorized; log in again"),
        (403, 'exec in pod p: rejected: pods "p" is forbidden: User "me" cannot create'),
        (404, 'exec in pod p: not found: pods "p" not found'),
    ],
)
def test_a_refused_handshake_is_final_and_told_without_its_headers(emulated, pod, status, said):
    words = {401: "Unauthorized", 404: 'pods "p" not found'}
    forbidden = 'pods "p" is forbidden: User "me" cannot create resource "pods/exec"'
    emulated.server.faults.append(Fault("GET", EXEC, status, words.get(status, forbidden), 9))
    with pytest.raises(DependencyError) as raised:
        pod.run("true")
    assert said in str(raised.value)
    assert "Handshake" not in str(raised.value)
    assert "Content-Type" not in str(raised.value)
    assert tries(emulated) == 1


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_a_handshake_that_may_succeed_later_is_tried_again(emulated, pod, status):
    emulated.server.faults.append(Fault("GET", EXEC, status, "apiserver is shutting down", 2))
    assert pod.run("echo", "here") == b"here\n"
    assert tries(emulated) == 3


def test_a_stream_that_never_opens_is_given_up_in_time(emulated, pod):
    pod.kube.limits = pod.kube.limits.model_copy(update={"retry_s": 0.5})
    emulated.server.faults.append(Fault("GET", EXEC, 500, "container not found", 99))
    with pytest.raises(DependencyError) as raised:
        pod.run("true")
    assert "exec in pod p: the API server failed with status 500: container not" in str(
        raised.value
    )
    assert tries(emulated) > 1


def test_ctrl_c_while_a_stream_opens_is_no_failed_handshake(pod, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("kubernetes.stream.ws_client.create_websocket", stop)
    with pytest.raises(KeyboardInterrupt):
        pod.run("true")


def test_a_command_that_fails_is_no_lost_connection(emulated, pod):
    with pytest.raises(api.Failed, match="exit code 1"):
        pod.run("false")
    assert tries(emulated) == 1


# --- pods through which files go ---------------------------------------------------------------


def test_artifacts_that_may_not_be_read_now_are_collected_later(emulated, small_trace):
    replay = emulated.finished(small_trace)
    refused = Fault("GET", "-files/exec$", 403, "pods is forbidden", 9)
    emulated.server.faults.append(refused)
    with pytest.raises(DependencyError, match=r"not allowed: .*run the same command again to coll"):
        replay.collect()
    assert emulated.left() == []
    refused.times = 0
    emulated.run(small_trace)
    assert emulated.left() == []


def test_a_helper_pod_that_ended_an_hour_after_a_crash_is_replaced(emulated, small_trace):
    emulated.profile(limits={"grace_s": 60, "prepare_s": 60})
    replay = emulated.finished(small_trace)
    run = replay.cluster.run
    old = run.files_pod(replay.cluster.run_id) | {"status": {"phase": "Failed"}}
    old = emulated.server.do(emulated.store.create, "pods", NAMESPACE, old)
    with helper_pod(replay.cluster.kube, run.files_pod(replay.cluster.run_id)) as pod:
        held = emulated.store.get("pods", NAMESPACE, pod.name)
        assert held["metadata"]["uid"] != old["metadata"]["uid"]
    replay.teardown()


def test_a_helper_pod_that_ends_while_it_starts_is_not_waited_for(emulated, small_trace):
    emulated.profile(limits={"grace_s": 60, "prepare_s": 60})
    replay = emulated.finished(small_trace)
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "low on ephemeral-storage"}
    emulated.script.pods["-files"] = evicted
    said = r"ended \(Failed\) before it could be used: .*Evicted: low on ephemeral-storage"
    with pytest.raises(DependencyError, match=said):
        replay.collect()
