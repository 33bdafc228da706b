"""What tests share: the checkout, the trace where there is one, small traces, a made-up run."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
os.environ.setdefault("KVAB_ROOT", str(ROOT))


def needed(program):
    """Return a program's path; skip where it is missing, fail where CI should have it."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is missing; install it to run this test"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def chromium():
    return needed("chromium")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what a study reads: recipes and notebooks, free to be changed."""
    for name in ("recipes", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    monkeypatch.setenv("KVAB_ROOT", str(tmp_path / "checkout"))
    return tmp_path / "checkout"
