"""The whole way: emulated control plane, Dynamo's own processes, real AIPerf, and the book."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("dynamo.mocker", reason="the live stack (extra `live`) is not installed")
pytest.importorskip("aiperf", reason="AIPerf (extra `live`) is not installed")

from emulated import Emulated
from live_node import LiveNode

from kvab.pages.evidence import load_evidence
from kvab.pages.gate import gate
from kvab.runs import folder as runs
from kvab.study import load_study
from kvab.trace.finding import find_trace

ROOT = Path(__file__).parents[2]
LIMITS = {"prepare_s": 60, "deploy_s": 240, "teardown_s": 60, "poll_s": 2}
ARMS = ("agg-round-robin", "agg-kv-router", "disagg-round-robin", "disagg-kv-router")
ROWS, GATE_RED = 60, 4


@pytest.mark.slow
def test_one_command_brings_all_configurations_into_the_book(tmp_path, checkout, monkeypatch):
    shutil.copytree(ROOT / "book", checkout / "book", ignore=shutil.ignore_patterns("_build"))
    shutil.copy(ROOT / "requirements.lock", checkout)
    emulated = Emulated(tmp_path, checkout, node=LiveNode)
    try:
        emulated.profile(limits=LIMITS)
        emulated.script.tick_s = 0.1  # the processes need this machine's two cores
        recipes = checkout / "recipes" / "qwen3-32b" / "vllm"
        emulated.script.on_deploy = lambda it: emulated.node.bring_up(it, recipes)
        trace = find_trace(load_study().trace)
        command = [sys.executable, "-m", "kvab", "report", "--cluster", "emulated"]
        command += ["--rows", str(ROWS), "--repeats", "1", "--trace", str(trace.path)]
        command += ["--runs", str(emulated.runs), "--out", str(tmp_path / "built")]
        told = {**os.environ, "KUBECONFIG": str(emulated.kubeconfig)}
        ended = subprocess.run(command, env=told, capture_output=True, text=True, timeout=900)
        assert emulated.node.failure is None
        assert ended.returncode in (0, GATE_RED), ended.stderr[-3000:]
        assert emulated.left() == []
    finally:
        emulated.stop()
    assert len(emulated.node.started) == len(ARMS)
    for arm in ARMS:
        run = runs.read_run(emulated.runs / "qwen3-32b" / "emulated" / arm / "r1")
        assert run.manifest.status == "complete"
        assert run.requests["error"].isna().all()
        assert (run.requests["input_tokens"] == trace.input_tokens[:ROWS]).all()
        assert (run.requests["output_tokens"] == trace.output_tokens[:ROWS]).all()
        router = run.manifest.host["router"]
        assert (router["after"]["events"] > router["before"]["events"]) == ("kv" in arm)
    # Control plane, client, engines and load share two cores here: requests may be sent late, and
    # the gate then says so. Nothing else may be wrong.
    judged = gate(load_evidence("recipes/qwen3-32b/study.yaml", "emulated", emulated.runs))
    assert judged.green == (ended.returncode == 0)
    assert [why for why in judged.reasons if "send lag p99" not in why] == []
    page = (tmp_path / "built" / "html" / "index.html").read_text()
    assert "good requests" in page
