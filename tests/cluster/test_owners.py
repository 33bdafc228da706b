"""Two clients, one run: who has it, who is rejected, and who takes it over."""

import signal

import pytest
from clients import Client, hold, wait_for, wait_for_records
from controllers import NAMESPACE

from kvab.clusters.kubernetes import lease, objects
from kvab.errors import DependencyError
from kvab.runs import folder as runs

NAME, JOB = "disagg-router-6p-2d", "disagg-router-6p-2d-benchmark"
LEASE = "kvab.qwen3-32b.disagg-kv-router.r1"
ELSEWHERE = "anna@laptop-3/4711.99/another-boot.1"


def uid(emulated, plural, name):
    held = emulated.store.get(plural, NAMESPACE, name)
    return held and held["metadata"]["uid"]


def replaying(emulated, trace):
    """Start anna's run; return it with what holds its benchmark after the first record."""
    held = hold(emulated)
    first = Client(emulated, trace, user="anna")
    wait_for_records(emulated)
    return first, held


def complete(emulated, user, rows):
    path = emulated.folder / f"runs-{user}/qwen3-32b/emulated/disagg-kv-router/r1"
    manifest = runs.read_run(path).manifest
    assert (manifest.status, manifest.trace.rows) == ("complete", rows)


@pytest.mark.parametrize("rows", [40, 20], ids=["same rows", "other rows"])
def test_the_second_of_two_clients_is_rejected_and_the_first_goes_on(emulated, small_trace, rows):
    first, held = replaying(emulated, small_trace)
    before = uid(emulated, "dynamographdeployments", NAME), uid(emulated, "jobs", JOB)
    code, last = Client(emulated, small_trace, user="ben", rows=rows).ended()
    assert code == 3
    host = objects.owner()[objects.HOST]
    assert f"qwen3-32b/disagg-kv-router/r1: anna@{host} (process " in last
    assert "has this run since 20" in last
    then = "ends it, as its rows or manifests are not the same" if rows != 40 else "goes on with it"
    assert f"take it over with --take-over, which {then}" in last
    assert before == (uid(emulated, "dynamographdeployments", NAME), uid(emulated, "jobs", JOB))
    held.unlink()
    assert first.ended()[0] == 0
    complete(emulated, "anna", 40)
    assert emulated.left() == []


@pytest.mark.parametrize("rows", [40, 20], ids=["same rows", "other rows"])
def test_a_client_that_lost_its_run_stops_and_removes_nothing(emulated, small_trace, rows):
    first, held = replaying(emulated, small_trace)
    before = uid(emulated, "dynamographdeployments", NAME), uid(emulated, "jobs", JOB)
    second = Client(emulated, small_trace, user="ben", rows=rows, take_over=True)
    code, last = first.ended()
    assert code == 3
    host = objects.owner()[objects.HOST]
    assert f"taken over by ben@{host} (process " in last
    assert "this client stops and removes nothing" in last
    if rows == 40:
        now = uid(emulated, "dynamographdeployments", NAME), uid(emulated, "jobs", JOB)
        assert before == now
    held.unlink()
    assert second.ended()[0] == 0
    complete(emulated, "ben", rows)
    assert emulated.left() == []


def elsewhere(emulated, trace, monkeypatch, **given):
    """Deploy the run from this process, as if it were one of another machine and user."""
    with monkeypatch.context() as patch:
        patch.setattr(lease, "identity", lambda: ELSEWHERE)
        patch.setattr(objects, "owner", lambda: {objects.USER: "anna", objects.HOST: "laptop-3"})
        other = emulated.replay(trace, **given)
        other.prepare()
        other.deploy()
    other.lock.leave()
    other.cluster.lease._ended.set()  # it shows no sign of life any more
    return other


def test_a_living_client_of_another_machine_is_known_by_its_renewals(
    emulated, small_trace, monkeypatch
):
    other = elsewhere(emulated, small_trace, monkeypatch)
    looks = []

    def renew(method, path):
        looks.append(path)
        if method == "GET" and path.endswith(f"/leases/{LEASE}") and len(looks) > 1:
            held = emulated.store.get("leases", NAMESPACE, LEASE)
            spec = {**held["spec"], "renewTime": "1999-01-01T00:00:00.000000Z"}  # clocks differ
            emulated.store.change("leases", held, spec=spec)
        return False

    watch = type("Renewing", (), {"cut": None, "hits": staticmethod(renew)})
    emulated.server.faults.append(watch)
    second = emulated.replay(small_trace)
    with pytest.raises(lease.Held, match=r"anna@laptop-3 \(process 4711\) has this run since 20"):
        second.prepare()
    assert uid(emulated, "dynamographdeployments", NAME) == other.cluster.uid
    assert not second.job.path.exists()


def test_a_client_of_another_machine_that_is_silent_is_resumed(emulated, small_trace, monkeypatch):
    emulated.profile(limits={"lease_s": 1})
    other = elsewhere(emulated, small_trace, monkeypatch)
    second = emulated.replay(small_trace)
    second.prepare()
    second.deploy()
    assert second.cluster.uid == other.cluster.uid
    held = emulated.store.get("leases", NAMESPACE, LEASE)["spec"]
    assert (held["holderIdentity"], held["leaseTransitions"]) == (lease.identity(), 1)
    second.teardown()
    assert emulated.left() == []


def test_what_a_silent_client_left_of_other_rows_is_replaced_on_request_alone(
    emulated, small_trace, monkeypatch
):
    emulated.profile(limits={"lease_s": 1})
    other = elsewhere(emulated, small_trace, monkeypatch)
    second = emulated.replay(small_trace, rows=20)
    with pytest.raises(DependencyError, match=r"made by anna@laptop-3 of other rows or manifests"):
        second.prepare()
    assert uid(emulated, "dynamographdeployments", NAME) == other.cluster.uid
    third = emulated.replay(small_trace, rows=20, take_over=True)
    third.prepare()
    third.deploy()
    assert third.cluster.uid != other.cluster.uid
    third.teardown()
    assert emulated.left() == []


def test_ctrl_c_while_a_client_waits_for_a_sign_of_life_touches_nothing(
    emulated, small_trace, monkeypatch
):
    emulated.profile(limits={"lease_s": 3600})
    elsewhere(emulated, small_trace, monkeypatch)
    before = emulated.left()
    second = Client(emulated, small_trace, user="ben")
    asked = f"/leases/{LEASE}"
    wait_for(lambda: sum(path.endswith(asked) for _, path in emulated.server.seen) > 4, "wait")
    second.send(signal.SIGINT)
    assert second.ended()[0] == 130
    assert emulated.left() == before


def test_a_client_whose_lease_is_gone_stops_before_its_next_change(emulated, small_trace):
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()
    emulated.delete("leases", LEASE)
    with pytest.raises(lease.Held, match="ended by another client; this client stops and removes"):
        replay.replay()
    assert uid(emulated, "dynamographdeployments", NAME)
    assert runs.read_manifest(replay.job.path).status == "failed"


def test_a_repeat_that_is_rejected_leaves_the_job_of_the_other_repeat(emulated, small_trace):
    first, held = replaying(emulated, small_trace)
    job = uid(emulated, "jobs", JOB)
    second = emulated.replay(small_trace, repeat=2)
    second.prepare()
    with pytest.raises(DependencyError, match=r"disagg-kv-router/r1 holds the GPUs .*\(made by "):
        second.deploy()
    assert uid(emulated, "jobs", JOB) == job
    held.unlink()
    assert first.ended()[0] == 0
    assert emulated.left() == []


def test_objects_say_who_made_them_in_labels_that_the_api_server_takes(
    emulated, small_trace, monkeypatch
):
    monkeypatch.setattr("getpass.getuser", lambda: "Ünal Müller@corp" + "x" * 80)
    monkeypatch.setattr("socket.gethostname", lambda: "-laptop_3.local-")
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()
    labels = emulated.store.get("dynamographdeployments", NAMESPACE, NAME)["metadata"]["labels"]
    assert labels["kvab-user"] == ("nal-M-ller-corp" + "x" * 80)[:62]
    assert labels["kvab-host"] == "laptop_3.local"
    replay.teardown()
