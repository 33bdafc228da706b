"""A lost laptop, a second start, another run on the same GPUs: what is found again, and kept."""

import copy
import json
import os
import signal

import numpy as np
import pytest
from clients import Client, hold, kvab_run, wait_for, wait_for_records
from controllers import NAMESPACE, pending

from kvab.errors import DependencyError
from kvab.runs import campaign
from kvab.runs import folder as runs


def benchmark(emulated):
    name = "disagg-router-6p-2d-benchmark"
    return emulated.store.get("jobs", NAMESPACE, name)


def test_a_killed_replay_is_attached_to_and_finished(emulated, small_trace):
    emulated.profile(limits={"lease_s": 3600})  # whose holder is known to be dead is not waited for
    held = hold(emulated)
    first = Client(emulated, small_trace)
    wait_for_records(emulated)
    first.send(signal.SIGKILL)
    first.ended()
    deployed = emulated.store.get("dynamographdeployments", NAMESPACE, "disagg-router-6p-2d")
    started = benchmark(emulated)
    assert deployed is not None
    assert not started.get("status", {}).get("conditions")  # it goes on without us

    before = len(emulated.server.seen)
    held.unlink()
    run = runs.read_run(emulated.run(small_trace))
    later = [path for _, path in emulated.server.seen[before:]]
    assert not any("/proxy/v1/chat/completions" in path for path in later)  # not disturbed
    assert run.manifest.status == "complete"
    applied = json.loads((run.path / "manifests/applied/job.json").read_text())
    run_id = applied["metadata"]["annotations"]["kvab-run-id"]
    assert started["metadata"]["annotations"]["kvab-run-id"] == run_id
    created = [path for method, path in emulated.server.seen if method == "POST"
               and path.endswith("/jobs?fieldValidation=Strict&fieldManager=kvab")]  # fmt: skip
    assert len(created) == 2  # the download and the one benchmark: nothing was started twice
    assert emulated.left() == []
    assert not list(run.path.parent.glob(".r1.state.json"))


def test_a_start_lost_while_deploying_goes_on_with_the_same_deployment(emulated, small_trace):
    lost = emulated.replay(small_trace)
    lost.prepare()
    lost.deploy()
    uid = lost.cluster.uid
    lost.lock.leave()  # as the end of its process does
    again = emulated.replay(small_trace)
    again.prepare()
    again.deploy()
    assert again.cluster.uid == uid
    again.replay()
    assert runs.read_run(again.collect()).manifest.status == "complete"
    again.teardown()
    assert emulated.left() == []


def test_tries_in_one_second_have_artifacts_of_their_own(emulated, small_trace):
    cluster = emulated.replay(small_trace).cluster
    assert len({cluster.new_id() for _ in range(20)}) == 20


def test_a_deployment_of_older_manifests_is_replaced(emulated, small_trace):
    lost = emulated.replay(small_trace)
    lost.prepare()
    lost.deploy()
    uid = lost.cluster.uid
    lost.lock.leave()  # as the end of its process does
    path = emulated.checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.yaml"
    path.write_text(path.read_text().replace('"0.90"', '"0.85"'))
    again = emulated.replay(small_trace)
    again.prepare()
    again.deploy()
    assert again.cluster.uid != uid
    again.teardown()


def test_a_finished_arm_is_not_run_again_and_what_it_left_is_removed(emulated, small_trace):
    lost = emulated.replay(small_trace)
    lost.prepare()
    lost.deploy()
    lost.replay()
    path = lost.collect()  # and the laptop is lost before the teardown
    before = (path / "run.json").read_bytes()
    again = emulated.replay(small_trace)
    assert "nothing is repeated" in again.prepare()
    again.deploy()
    again.replay()
    assert (again.collect() / "run.json").read_bytes() == before
    again.teardown()
    assert emulated.left() == []


def test_a_complete_run_needs_no_cluster(emulated, small_trace):
    emulated.run(small_trace)
    emulated.server.seen.clear()
    again = emulated.replay(small_trace)
    again.prepare()
    again.teardown()
    assert emulated.server.seen == []


def test_another_deployment_of_the_study_is_refused_while_it_holds_the_gpus(emulated, small_trace):
    first = emulated.replay(small_trace, "agg-kv-router")
    first.prepare()
    first.deploy()
    second = emulated.replay(small_trace, "disagg-kv-router")
    second.prepare()
    with pytest.raises(DependencyError) as raised:
        second.deploy()
    assert "deployment agg-router-8xtp2 of qwen3-32b/agg-kv-router/r1 holds the GPUs" in str(
        raised.value
    )
    assert f"kubectl -n {NAMESPACE} delete dgd agg-router-8xtp2" in str(raised.value)
    assert emulated.store.get("dynamographdeployments", NAMESPACE, "agg-router-8xtp2")
    assert not second.job.path.exists()
    first.teardown()
    assert emulated.left() == []


@pytest.mark.parametrize("older", [True, False])
def test_of_two_that_start_at_once_the_younger_gives_way(emulated, small_trace, older):
    def another(plural, manifest):
        if plural == "dynamographdeployments" and manifest["metadata"]["name"] == (
            "disagg-router-6p-2d"
        ):
            made = copy.deepcopy(manifest)
            made["metadata"] |= {"name": "agg-8xtp2", "finalizers": []}
            made["metadata"]["annotations"] |= {"kvab-run": "qwen3-32b/agg-round-robin/r1"}
            for component in made["spec"]["components"]:
                component["replicas"] = 0
            made = emulated.store.create("dynamographdeployments", NAMESPACE, made)
            made["metadata"]["creationTimestamp"] = "1999" if older else "2999"
            emulated.store.update("dynamographdeployments", made)

    replay = emulated.replay(small_trace)
    replay.prepare()
    emulated.server.admission.append(another)
    if older:
        with pytest.raises(DependencyError, match=r"agg-8xtp2 of qwen3-32b/agg-round-robin/r1 hol"):
            replay.deploy()
    else:
        replay.deploy()
        emulated.delete("dynamographdeployments", "agg-8xtp2")
        replay.teardown()
    left = {held["metadata"]["name"] for held in emulated.store.find("dynamographdeployments")}
    assert left == ({"agg-8xtp2"} if older else set())


@pytest.mark.parametrize("when", ["before deploy", "before replay"])
def test_a_job_of_somebody_else_with_our_name_is_refused_and_left_alone(
    emulated, small_trace, when
):
    name = "disagg-router-6p-2d-benchmark"
    ended = {"conditions": [{"type": "Complete", "status": "True"}]}
    job = {"kind": "Job", "metadata": {"name": name}, "spec": {}, "status": ended}

    def put():
        emulated.server.do(emulated.store.create, "jobs", NAMESPACE, job)

    replay = emulated.replay(small_trace)
    replay.prepare()
    if when == "before deploy":
        put()
    with pytest.raises(DependencyError, match=f"Job {name}: expected none or one made for this"):
        replay.deploy()
        put()
        replay.replay()
    assert emulated.left() == [f"jobs/{name}"]


def test_a_repeat_is_deployed_anew_and_sends_its_own_order(emulated, small_trace):
    folders = [emulated.run(small_trace, repeat=repeat) for repeat in (1, 2)]
    read = [runs.read_run(folder) for folder in folders]
    ids, orders = [], []
    for run in read:
        applied = json.loads((run.path / "manifests/applied/job.json").read_text())
        args = applied["spec"]["template"]["spec"]["containers"][0]["args"]
        ids.append(applied["metadata"]["annotations"]["kvab-run-id"])
        orders.append(args[args.index("--input-file") + 1])
    assert len(set(ids)) == len(set(orders)) == 2
    made = [path for method, path in emulated.server.seen
            if method == "POST" and path.endswith(
                "/dynamographdeployments?fieldValidation=Strict&fieldManager=kvab")]  # fmt: skip
    assert len(made) == 2
    # The stand-in gives the n-th sent request a TTFT of 100 + n ms.
    order = emulated.replay(small_trace, repeat=2).job.order()
    sent = read[1].requests.set_index("row").loc[order, "ttft_ms"]
    assert (sent.to_numpy() == 100 + np.arange(40)).all()


def test_kept_up_on_request_and_removed_by_the_next_start(emulated, small_trace):
    replay = emulated.replay(small_trace, keep=True)
    replay.prepare()
    replay.deploy()
    replay.replay()
    replay.collect()
    assert "is kept up" in replay.teardown()
    assert emulated.store.get("dynamographdeployments", NAMESPACE, "disagg-router-6p-2d")
    emulated.replay(small_trace).teardown()
    assert emulated.left() == []


def test_replays_in_turn_go_on_after_one_that_failed(emulated, small_trace, capsys):
    def crash(pod):
        return pending(False, "Unschedulable", "no node") if "agg-8xtp2" in pod["metadata"][
            "name"] else None  # fmt: skip

    emulated.script.pods["worker"] = crash
    jobs = [
        emulated.replay(small_trace, name, repeat).job
        for name, repeat in (("disagg-kv-router", 2), ("agg-round-robin", 1), ("agg-kv-router", 1))
    ]
    with pytest.raises(DependencyError, match=r"1 of 3 replays failed; first: agg-round-robin r1"):
        campaign.replay_all(jobs)
    states = [runs.read_manifest(job.path).status for job in jobs]
    assert states == ["complete", "failed", "complete"]
    made = [line for line in capsys.readouterr().err.splitlines() if line.endswith(":")]
    assert made == ["agg-round-robin r1:", "agg-kv-router r1:", "disagg-kv-router r2:"]
    assert emulated.left() == []


def test_the_command_ends_with_the_exit_code_and_one_line(emulated, small_trace):
    emulated.script.images = ("slim-bookworm",)
    process = kvab_run(emulated, small_trace)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 3
    last = error.strip().splitlines()[-1]
    assert last.startswith("kvab: disagg-router-6p-2d-")
    assert "ImagePullBackOff" in last
    assert "Traceback" not in error
    assert emulated.left() == []


def test_ctrl_c_stops_what_the_command_started(emulated, small_trace):
    emulated.node.environment["PACE_S"] = "1"
    process = kvab_run(emulated, small_trace)
    wait_for(lambda: benchmark(emulated), "benchmark")
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    wait_for(lambda: emulated.left() == [], "end of what was started", 20)
