"""The fault campaign: a share of it finds nothing wrong, and its counting can find everything."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import kills
import others
import psutil
import pytest
from client import MARK
from counting import WRONG, Tally, Witness
from places import ROWS, Place

from kvab.runs import folder as runs

HERE = Path(__file__).parent
SHARE_KILLS, SHARE_RESETS, EVERY = 24, 30, 4


@pytest.fixture(scope="module")
def made():
    """An undisturbed simulated run, made in this process."""
    from kvab.runs.replay import start

    place = Place()
    replay = start("", place.cluster, place.configuration, trace=str(place.trace),
                   runs=place.on / "runs")  # fmt: skip
    for step in ("prepare", "deploy", "replay", "collect", "teardown"):
        getattr(replay, step)()
    yield runs.read_run(place.path)
    place.close()


@pytest.fixture
def witness(made):
    """A witness that has seen a complete run, and nothing wrong."""
    place = Place()
    shutil.copytree(made.path, place.path)
    watching = Witness(place, {ROWS: made})
    watching.look()
    watching.settle()
    assert watching.tally.wrong() == {}
    yield watching
    place.close()


def alter(path):
    (path / "requests.parquet").write_bytes(b"something else")


def differ(path):
    """Put another whole run into the place: its sums are right, its answers are not."""
    run = runs.read_run(path)
    changed = run.requests.assign(ttft_ms=run.requests["ttft_ms"] + 1)
    files = {"requests.parquet": runs.requests_bytes(changed)}
    shutil.rmtree(path)
    runs.write_run(path, run.manifest.model_dump(by_alias=True, exclude={"files"}), files)


@pytest.mark.parametrize(
    ("harm", "counted"),
    [
        (shutil.rmtree, {"lost": 1}),
        (lambda path: shutil.copytree(path, f"{path}.set-aside-1"), {"duplicated": 1}),
        (alter, {"altered": 1}),
        (differ, {"altered": 1, "lost": 1}),
        (lambda path: (path / "run.json").unlink(), {"altered": 1, "lost": 1}),
        (lambda path: path.with_name(".r1-half").mkdir(), {"leftovers": 1}),
    ],
    ids=["lost", "twice", "altered", "different", "torn", "left over"],
)
def test_what_is_wrong_with_runs_is_counted_once(witness, harm, counted):
    harm(witness.place.path)
    for _ in range(2):
        witness.look()
        witness.settle()
    assert witness.tally.wrong() == counted


def test_a_process_that_stays_is_counted(witness, monkeypatch):
    monkeypatch.setattr(witness.place, "settled", lambda: Place.settled(witness.place, 0.2))
    told = {**os.environ, MARK: str(witness.place.folder)}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=told)
    try:
        while "sleep" not in " ".join(psutil.Process(process.pid).cmdline()):
            time.sleep(0.01)
        witness.settle()
    finally:
        process.kill()
        process.wait()
    assert witness.tally.wrong() == {"processes": 1}


def test_objects_and_artifacts_that_stay_are_counted(witness, monkeypatch):
    monkeypatch.setattr(witness.place, "objects", lambda: ["pods/left", "jobs/left"])
    monkeypatch.setattr(witness.place, "artifact_sets", lambda: 3)
    witness.stopped = 1  # one start took down what it had started
    witness.settle()
    assert witness.tally.wrong() == {"objects": 2, "duplicated": 1}


class Ended:
    """A client that has ended."""

    def __init__(self, code, said):
        self.code, self.text = code, said

    def end(self, timeout_s):
        return self.code

    def said(self):
        return self.text


def test_a_run_that_nobody_can_start_again_is_locked_and_lost(witness, monkeypatch):
    shutil.rmtree(witness.place.path)
    witness.known.clear()
    refusal = "kvab: another start of this run is going on (process 1); wait for it to end"
    monkeypatch.setattr(witness.place, "start", lambda rows: Ended(3, refusal))
    witness.finish(ROWS)
    assert witness.tally.wrong() == {"locked": 1, "lost": 2}  # never complete, and not there


@pytest.mark.parametrize(
    ("code", "said", "refused", "wrong"),
    [
        (0, "", 0, {}),
        (130, "", 0, {}),
        (3, "kvab: the cluster is away", 1, {}),
        (1, "Traceback ...", 0, {"crashed": 1}),
        (2, "Traceback ...\nkvab: cannot write", 0, {"crashed": 1}),
        (None, "", 0, {"crashed": 1}),
    ],
)
def test_ends_are_told_apart(witness, code, said, refused, wrong):
    witness.judge(code, said)
    assert (witness.tally.refused, witness.tally.wrong()) == (refused, wrong)


def test_every_boundary_meets_every_signal_and_chains_are_seeded():
    made = kills.chains(60, 1, "simulated")
    every = [kill for chain in made for kill in chain]
    boundaries = {(kill.step, kill.signum) for kill in every if kill.share is None}
    assert len(every) == 60
    assert len(boundaries) == len(kills.STEPS) * len(kills.SIGNALS)
    assert made == kills.chains(60, 1, "simulated") != kills.chains(60, 2, "simulated")


def test_counts_add_up_and_are_those_of_the_published_file():
    total = Tally(injected=2, lost=1) + Tally(injected=3, lost=1, refused=1)
    assert (total.injected, total.refused, total.wrong()) == (5, 1, {"lost": 2})
    assert set(WRONG) <= total.rounded().keys()


def test_a_flipped_byte_is_another_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    others.flip(path, random.Random(1))
    assert sum(byte != 0 for byte in path.read_bytes()) == 1


@pytest.mark.slow
def test_a_share_of_the_campaign_finds_nothing_wrong(tmp_path):
    out = tmp_path / "reliability.json"
    command = [sys.executable, str(HERE / "campaign.py"), "--out", str(out), "--seed", "7"]
    command += ["--kills", str(SHARE_KILLS), "--resets", str(SHARE_RESETS)]
    command += ["--every", str(EVERY), "--kinds", "simulated", "kubernetes"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert out.is_file(), ended.stderr
    faults = json.loads(out.read_text())["faults"]
    wrong = {(each["kind"], each["fault"]): {name: each[name] for name in WRONG}
             for each in faults if any(each[name] for name in WRONG)}  # fmt: skip
    assert wrong == {}, ended.stderr
    injected = Counter()
    for each in faults:
        injected[each["fault"]] += each["injected"]
    assert injected["kill"] >= SHARE_KILLS - 3  # one may come when its client has ended
    assert injected["connection reset"] >= SHARE_RESETS
    assert ended.returncode == 0
