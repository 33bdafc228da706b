"""What must hold on every cluster: the emulated one, or any given to `make test-kubernetes`."""

import subprocess
import sys

import pytest

from kvab.errors import KvabError
from kvab.runs import folder as runs


def test_a_run_is_deployed_replayed_collected_and_torn_down(cluster, small_trace):
    path = cluster.run(small_trace)
    run = runs.read_run(path)
    assert run.manifest.status == "complete"
    assert run.manifest.counts.received == 40
    assert run.requests["error"].isna().all()
    assert len(run.manifest.host["pods"]) == 9
    assert cluster.left() == []


def test_a_later_start_goes_on_with_what_an_earlier_one_deployed(cluster, small_trace):
    first = cluster.replay(small_trace)
    first.prepare()
    first.deploy()
    first.lock.leave()  # as the end of its process does
    path = cluster.run(small_trace)
    assert runs.read_run(path).manifest.host["pods"] == first.cluster.host["pods"]
    assert cluster.left() == []


def test_doctor_finds_that_a_run_can_be_made(cluster):
    command = [sys.executable, "-m", "kvab", "doctor", "--cluster", "emulated"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if "dry run" in line]
    assert len(lines) == 5
    assert all(line.startswith("ok") for line in lines), done.stdout + done.stderr


def failed(cluster, trace):
    """Return the error of a run that does not come up; nothing of it may be left."""
    replay = cluster.replay(trace)
    try:
        with pytest.raises(KvabError) as raised:
            replay.prepare()
            replay.deploy()
    finally:
        replay.teardown()
    assert cluster.left() == []
    return str(raised.value)


def test_an_image_that_is_nowhere_is_the_cause(cluster, small_trace):
    cluster.profile(image="registry.invalid/runtime:9.9.9")
    error = failed(cluster, small_trace)
    assert "registry.invalid/runtime:9.9.9" in error
    assert "Pull" in error


def test_a_quota_that_admits_no_pod_is_the_cause(cluster, small_trace):
    cluster.quota(pods="0")
    assert "quota" in failed(cluster, small_trace)
