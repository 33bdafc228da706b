"""`make test-kubernetes` as a user calls it: on the emulated API server, without its operator."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_suite_for_any_cluster_passes_by_its_kubeconfig_alone(emulated):
    emulated.script.operator_up = False
    command = ["make", "test-kubernetes", f"KUBECONFIG={emulated.kubeconfig}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "5 passed" in done.stdout
    made = {held["metadata"]["namespace"] for held in emulated.store.find("secrets")}
    assert sum(name.startswith("kvab-test-") for name in made) == 5


def test_no_kubeconfig_is_one_line():
    done = subprocess.run(["make", "-s", "test-kubernetes", "KUBECONFIG=none"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("KUBECONFIG: expected the file of a cluster to throw away, got")
