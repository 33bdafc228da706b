"""The live cluster with its real processes: what it measures, how it fails, what it leaves."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from kvab.clusters import open_cluster
from kvab.clusters.stack import Programs
from kvab.errors import DependencyError
from kvab.runs import folder as runs
from kvab.runs.replay import plan_job
from kvab.study import load_study
from kvab.trace.finding import find_trace
from kvab.trace.reading import read_trace

ROOT = Path(__file__).parents[2]
WAIT_S = 240

for package in ("aiperf", "aisimulate", "dynamo.mocker", "tokenizers"):
    pytest.importorskip(package, reason=f"{package} (extra `live`) is not installed")


@pytest.fixture
def place(monkeypatch):
    """A folder of its own for state, lock and runs; short, as the names of sockets must be."""
    folder = Path(tempfile.mkdtemp(prefix="kvt-", dir="/tmp"))
    for name in ("tmp", "cache", "runs"):
        (folder / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setenv("KVAB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    shutil.rmtree(folder)


def started(planned):
    return open_cluster(planned.cluster).start(planned)


def job(trace, place, configuration="disagg-kv-router", rows=None):
    return plan_job(load_study(), "live-cpu", configuration, 1, rows, trace, place / "runs")


def left_of(place):
    """Programs that work in the folder, and files of theirs that are still there."""
    found = [str(path) for path in (place / "tmp").glob("kvab-live-*")]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd().startswith(str(place)):
                found.append(" ".join(process.cmdline()))
    return found


def wait_for(condition, wait_s=WAIT_S):
    deadline = time.monotonic() + wait_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)
    return found


def gone(place, wait_s=30):
    wait_for(lambda: not left_of(place), wait_s)
    assert left_of(place) == []


@contextlib.contextmanager
def kvab_run(place, trace, configuration="disagg-kv-router", *more):
    """`kvab run` as a process in a session of its own, killed at the end if it still runs."""
    command = [sys.executable, "-m", "kvab", "run", "--cluster", "live-cpu"]
    command += ["--configuration", configuration, "--trace", str(trace)]
    command += ["--runs", str(place / "runs"), *map(str, more)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answering(place):
    """Whether the first records of the replay are written."""
    records = (place / "tmp").glob("kvab-live-*/artifacts/profile_export.jsonl")
    return any(path.stat().st_size for path in records)


def program(place, name):
    """The program of that name among those that work in the folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.cwd().startswith(str(place)) and name in " ".join(process.cmdline()):
                return process
    return None


def the_run(place, configuration="disagg-kv-router"):
    return place / "runs" / "qwen3-32b" / "live-cpu" / configuration / "r1"


def test_programs_stop_with_the_one_that_started_them(place):
    code = (
        "import time; from kvab.clusters.stack import Programs; programs = Programs()\n"
        "programs.start('one', ['bash', '-c', 'sleep 1000 & trap : TERM; wait; sleep 1000'], {})\n"
        "print('up', flush=True); time.sleep(1000)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout.readline() == b"up\n"
    wait_for(lambda: len(left_of(place)) >= 3, 10)
    parent.kill()
    parent.communicate()
    gone(place)


def test_a_second_run_is_refused_and_names_the_first(place, small_trace):
    trace = read_trace(small_trace)
    first, second = (started(job(trace, place)) for _ in range(2))
    first.prepare()
    try:
        with pytest.raises(DependencyError, match=f"process {os.getpid()}, disagg-kv-router"):
            second.prepare()
    finally:
        first.teardown(keep_answers=True)
    second.prepare()
    second.teardown(keep_answers=True)


def test_state_lies_where_names_of_sockets_fit(place, monkeypatch):
    deep = place / "a-temporary-folder-of-a-batch-system"
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    programs = Programs()
    try:
        assert programs.folder.parent == Path("/tmp")
    finally:
        programs.close()
    assert not programs.folder.exists()


def test_doctor_says_who_holds_the_machine(place, small_trace):
    planned = job(read_trace(small_trace), place)
    running, looking = started(planned), open_cluster(planned.cluster)
    assert looking.check(planned.study)[0].ok
    running.prepare()
    ok, said = looking.check(planned.study)[0]
    assert not ok and f"process {os.getpid()}, disagg-kv-router" in said
    running.teardown(keep_answers=False)
    unknown = planned.study.model.model_copy(update={"name": "a/model-that-nobody-knows"})
    assert not looking.check(planned.study.model_copy(update={"model": unknown}))[1].ok


def test_a_missing_extra_is_a_dependency(place, small_trace, monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "aiperf":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(DependencyError, match="aiperf is not installed; run `make env`"):
        job(read_trace(small_trace), place).depends_on()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("configuration", "repeat"), [("agg-round-robin", 1), ("disagg-kv-router", 2)]
)
def test_every_row_is_served_with_the_tokens_of_the_trace(place, configuration, repeat):
    trace = find_trace(load_study().trace)
    more = ("--rows", 60, "--repeat", repeat)
    with kvab_run(place, trace.path, configuration, *more) as process:
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    run = runs.read_run(the_run(place, configuration).with_name(f"r{repeat}"))
    assert run.requests["error"].isna().all()
    assert (run.requests["input_tokens"] == trace.input_tokens[:60]).all()
    assert (run.requests["output_tokens"] == trace.output_tokens[:60]).all()
    topology = job(trace, place, configuration).topology
    workers = {role: group.replicas for role, group in topology.groups.items()}
    assert run.manifest.host["workers_served"] == workers
    assert {"ai-dynamo", "aiperf", "aisimulate"} <= set(run.manifest.versions)
    gone(place)


@pytest.mark.slow
def test_a_busy_port_is_a_dependency(place, small_trace, monkeypatch):
    planned = job(read_trace(small_trace), place)
    run = started(planned)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr("kvab.clusters.stack.free_port", lambda: taken.getsockname()[1])
        with pytest.raises(DependencyError, match="frontend ended with"):
            run.deploy()
    run.teardown(keep_answers=True)
    gone(place)


@pytest.mark.slow
def test_workers_that_die_before_they_serve_say_why(place, small_trace, checkout):
    path = checkout / "recipes" / "clusters" / "live-cpu.yaml"
    path.write_text(path.read_text().replace("h200_sxm", "h200_no_such"))
    with kvab_run(place, small_trace) as process:
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "ended with 1" in said and "h200_no_such" in said
    assert runs.read_manifest(the_run(place)).status == "failed"
    gone(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said_of_it"), [("dynamo.mocker", "ended with -9"), ("aiperf", "AIPerf ended with")]
)
def test_a_program_killed_in_the_replay_leaves_a_failed_run(place, small_trace, name, said_of_it):
    with kvab_run(place, small_trace) as process:
        wait_for(lambda: answering(place))
        program(place, name).kill()
        _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert said_of_it in said
    run = runs.read_run(the_run(place))
    assert run.manifest.status == "failed" and said_of_it in run.manifest.reason
    assert 0 < run.manifest.counts.received < 40
    kept = set(run.manifest.files)
    assert {"diagnostics/frontend.log", "diagnostics/prefill.log", "diagnostics/aiperf.log"} <= kept
    assert "diagnostics/artifacts/profile_export.jsonl.gz" in kept
    assert runs.state(run.path, run.manifest.depends_on)[0] == "failed"
    gone(place)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [lambda place: program(place, "dynamo.mocker"), answering])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(place, small_trace, stage, signum):
    with kvab_run(place, small_trace) as process:
        wait_for(lambda: stage(place))
        os.killpg(process.pid, signum)
        process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGKILL)
    gone(place)


@pytest.mark.slow
def test_the_prompts_of_another_run_are_never_used(place, small_trace):
    """AIPerf keeps prompts by the tokenizer's name; a run must not touch the user's."""
    home = place / "home"
    home.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        with kvab_run(place, small_trace, "disagg-kv-router", "--rows", 5) as process:
            _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    written = [path for path in home.rglob("*") if path.is_file() and "aiperf" in str(path)]
    assert written == []
    summary = json.loads((the_run(place) / "artifacts/profile_export_aiperf.json").read_text())
    assert summary["aiperf_version"] == "0.13.0"
