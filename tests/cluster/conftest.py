"""An emulated cluster on a real socket, and a checkout with a profile that names it."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("kubernetes", reason="the Kubernetes client (extra `cluster`) is missing")
pytest.importorskip("aiohttp", reason="aiohttp is missing")

from emulated import Emulated
from real import Real


@pytest.fixture
def emulated(tmp_path, checkout, monkeypatch):
    """The cluster with operator 1.5, and KUBECONFIG pointing at it."""
    made = Emulated(tmp_path, checkout)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    yield made
    made.stop()


@pytest.fixture
def cluster(request, tmp_path, checkout, monkeypatch):
    """The cluster of KVAB_TEST_KUBECONFIG with a stand-in operator, else the emulated one."""
    kubeconfig = os.environ.get("KVAB_TEST_KUBECONFIG")
    if not kubeconfig:
        return request.getfixturevalue("emulated")
    monkeypatch.setenv("KUBECONFIG", kubeconfig)
    made = Real(tmp_path, checkout, Path(kubeconfig))
    request.addfinalizer(made.stop)
    return made
