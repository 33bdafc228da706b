"""What a waiting person sees."""

import io

import pytest
from rich.console import Console

from kvab import console
from kvab.clusters.kubernetes import health
from kvab.clusters.kubernetes.health import COMPONENT_LABEL

REPLICAS = {"Frontend": 1, "Worker": 2}


def pod(name, component, ready):
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "labels": {COMPONENT_LABEL: component}},
        "status": {"phase": "Running", "conditions": conditions},
    }


def event(name, when, message):
    about = {"name": name}
    return {"involvedObject": about, "reason": "Pulling", "message": message, "lastTimestamp": when}


PODS = [pod("f-0", "Frontend", True), pod("w-0", "Worker", True), pod("w-1", "Worker", False)]
EVENTS = [
    event("w-1", "2026-07-01T00:00:02Z", "Pulling image x"),
    event("w-0", "2026-07-01T00:00:01Z", "older"),
    event("other", "2026-07-01T00:00:09Z", "of nobody here"),
]


def test_the_table_shows_counts_states_and_the_latest_event():
    out = io.StringIO()
    Console(file=out, width=110).print(health.component_table(REPLICAS, PODS, EVENTS))
    rows = [line for line in out.getvalue().splitlines() if "Frontend" in line or "Worker" in line]
    assert "1/1" in rows[0]
    assert "1/2" in rows[1]
    assert "1 Ready, 1 Running" in rows[1]
    assert "Pulling w-1: Pulling image x" in rows[1]


@pytest.mark.parametrize(("terminal", "lines"), [("0", 2), ("1", 0)])
def test_a_log_gets_a_line_a_change_and_a_terminal_a_live_table(
    monkeypatch, capsys, terminal, lines
):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)  # as rich has it
    with console.Display("dgd") as display:
        for note in ("waits for pods", "waits for pods", "waits for models"):
            display.show(note, health.component_table(REPLICAS, PODS, EVENTS))
    error = capsys.readouterr().err
    assert error.count("\n") == lines or terminal == "1"
    assert "waits for models" in error
    assert ("\x1b[" in error) == (terminal == "1")
    assert ("Worker" in error) == (terminal == "1")
