"""One start of a run at a time; a start that died keeps nobody out and leaves nothing."""

import os
import subprocess
import sys

import pytest

from kvab.errors import DependencyError, InputError
from kvab.runs.folder import RunLock

HOLD = """
import pathlib, sys, time
from kvab.runs.folder import RunLock
lock = RunLock(pathlib.Path(sys.argv[1]))
lock.take()
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "r1")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_second_start_is_refused_and_names_the_first(tmp_path, holder):
    with pytest.raises(DependencyError, match=rf"is going on \(process {holder.pid}\)"):
        RunLock(tmp_path / "r1").take()


def test_a_start_that_died_keeps_nobody_out(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = RunLock(tmp_path / "r1")
    lock.take()
    assert f"process {os.getpid()}" in (tmp_path / ".r1.lock").read_text()
    lock.leave()
    assert names(tmp_path) == []


def test_what_a_start_left_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".r1-abc" / "artifacts").mkdir(parents=True)
    (tmp_path / "..r1.state.json-abc").touch()
    kept = [".r10-abc", ".r1.collecting", ".r1.state.json", "r1.set-aside-1"]
    for name in kept:
        (tmp_path / name).mkdir()
    lock = RunLock(tmp_path / "r1")
    lock.take()
    lock.leave()
    assert names(tmp_path) == sorted(kept)


def test_the_lock_of_a_run_that_was_complete_is_forgotten(tmp_path):
    (tmp_path / ".r1.lock").touch()
    RunLock(tmp_path / "r1").forget()
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write here"):
        RunLock(tmp_path / "file" / "r1").take()
