"""A whole run on the emulated cluster: what it leaves, and what it takes away."""

import shutil
import subprocess

import pytest
from controllers import NAMESPACE

from kvab import runs


def test_a_run_is_deployed_replayed_collected_and_torn_down(emulated, small_trace):
    path = emulated.run(small_trace)
    run = runs.read_run(path)
    assert run.manifest.status == "complete"
    assert run.manifest.counts.received == 40
    assert run.requests["error"].isna().all()
    assert emulated.left() == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_sees_the_run_come_and_go(emulated, small_trace):
    emulated.server.open = True  # kubectl brings its token over TLS alone

    def everything():
        command = ["kubectl", "--kubeconfig", emulated.kubeconfig, "-n", NAMESPACE]
        command += ["--cache-dir", emulated.folder / "kubectl", "get", "all", "-o", "name"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
        print(told.stdout)
        return set(told.stdout.split())

    assert everything() == set()
    replay = emulated.replay(small_trace)
    replay.prepare()
    prepared = everything()
    assert any(name.startswith("job.batch/model-download") for name in prepared)
    replay.deploy()
    there = everything() - prepared
    assert "dynamographdeployment.nvidia.com/disagg-router-6p-2d" in there
    assert sum(name.startswith("pod/disagg-router-6p-2d-") for name in there) == 9
    replay.replay()
    replay.collect()
    replay.teardown()
    assert everything() == prepared
