"""What a fresh machine meets: which Python `make env` takes, and where kvab is found from."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKER = ROOT / ".ci" / "venv"
OLD = """\
#!/bin/sh
echo "$0 $*" >>"$LOG"
case "$*" in
  --version) echo Python 3.9.18;;
  "-m venv build/uv")
    mkdir -p build/uv/bin && ln -s "$0" build/uv/bin/python && ln -s "$0" build/uv/bin/uv;;
  -m*) ;;
  venv*) exec $UV_IS;;
  *) exit 1;;
esac
"""


@pytest.fixture
def machine(tmp_path):
    """A machine whose PATH has a shell, and the Pythons that are put there; returns how to ask."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "cat", "env", "ln", "mkdir", "rm"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}" if tool != "env" else "/usr/bin/env")

    def ask(old=(), **environment):
        for name in old:
            path = tmp_path / "bin" / name
            path.write_text(OLD)
            path.chmod(0o755)
        told = {"PATH": str(tmp_path / "bin"), "LOG": str(tmp_path / "log"), **environment}
        return subprocess.run(
            [MAKER, ".venv", "9.9.9"], cwd=tmp_path, env=told, capture_output=True, text=True
        )

    return ask


@pytest.mark.parametrize(
    ("old", "environment", "said"),
    [
        ((), {}, "got none on PATH"),
        ((), {"PYTHON": "python3.12"}, "got PYTHON=python3.12, which does not start"),
        (("python3.9",), {"PYTHON": "python3.9"}, "PYTHON=python3.9, which is Python 3.9.18"),
        (("python3",), {"UV_IS": "false"}, "got Python 3.9.18, and uv can neither find nor"),
    ],
)
def test_a_python_that_does_not_fit_is_rejected_in_one_line(machine, old, environment, said):
    process = machine(old, **environment)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("expected Python 3.11, 3.12 or 3.13, got ") and said in line


def test_where_no_python_fits_uv_provides_one(machine, tmp_path):
    process = machine(["python3"], UV_IS="mkdir -p .venv/bin")
    assert process.returncode == 0, process.stderr
    asked = (tmp_path / "log").read_text()
    assert "pip install --quiet --disable-pip-version-check uv==9.9.9" in asked
    assert "build/uv/bin/uv venv --quiet --seed --python 3.12 .venv" in asked
    assert (tmp_path / ".venv").is_dir()


def test_an_environment_of_another_python_is_not_taken_for_the_one_asked_for(machine, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(tmp_path / "bin" / "python3.9")
    (tmp_path / "bin" / "python3.12").symlink_to(sys.executable)
    process = machine(["python3.9"], PYTHON="python3.12")
    assert process.returncode == 2
    assert "run make clean first" in process.stderr
    assert machine(["python3.9"]).returncode == 0  # what is there serves


def test_make_asks_for_it_each_time():
    told = {**os.environ, "PYTHON": "/absent/python3.12"}
    process = subprocess.run(["make", "env"], cwd=ROOT, env=told, capture_output=True, text=True)
    assert process.returncode == 2
    assert "/absent/python3.12, which does not start" in process.stderr


@pytest.fixture
def parent(tmp_path):
    """The folder that a checkout called kvab lies in."""
    (tmp_path / "kvab").symlink_to(ROOT)
    return tmp_path


def started(folder, *words):
    told = {key: value for key, value in os.environ.items() if key != "KVAB_ROOT"}
    return subprocess.run(words, cwd=folder, env=told, capture_output=True, text=True)


def test_the_folder_that_holds_the_checkout_does_not_shadow_the_package(parent):
    process = started(parent, sys.executable, "-m", "kvab", "--version")
    assert (process.returncode, process.stdout) == (0, f"kvab {version('kvab')}\n"), process.stderr
    process = started(parent, sys.executable, "-m", "kvab", "check")
    assert process.returncode == 0, process.stderr


def test_a_notebook_is_executed_from_the_folder_that_holds_the_checkout(parent):
    papermill = Path(sys.executable).with_name("papermill")
    source = "kvab/notebooks/02_setup.ipynb"
    process = started(parent, papermill, source, "out.ipynb", "--kernel", "python3")
    assert process.returncode == 0, process.stderr[-2000:]
    assert (parent / "out.ipynb").is_file()
