"""The campaign's modules, and what they need."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
pytest.importorskip("kubernetes", reason="the Kubernetes client (extra `cluster`) is missing")
pytest.importorskip("aiohttp", reason="aiohttp is missing")
