"""An emulated cluster on a real socket, and a checkout with a profile that names it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("kubernetes", reason="the Kubernetes client (extra `cluster`) is missing")
pytest.importorskip("aiohttp", reason="aiohttp is missing")

from emulated import Emulated


@pytest.fixture
def emulated(tmp_path, checkout, monkeypatch):
    """The cluster with operator 1.5, and KUBECONFIG pointing at it."""
    made = Emulated(tmp_path, checkout)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    yield made
    made.stop()
