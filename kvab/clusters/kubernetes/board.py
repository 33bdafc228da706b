"""The table that a person sees while a deployment starts or goes.

Input: what is expected, its pods and events. Output: a table for the terminal.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.table import Table
from rich.text import Text

from kvab.clusters.kubernetes import causes, readiness


def component_table(
    expected: readiness.Expected, pods: list[dict[str, Any]], events: list[dict[str, Any]]
) -> Table:
    """Return components, how many of their pods are ready, what the others do, and the news."""
    table = Table("component", "ready", "pods", "latest event", expand=True)
    ready = readiness.ready_pods(expected, pods)
    for name, wanted in expected.replicas.items():
        own = [pod for pod in pods if readiness.component_of(pod) == name]
        states = Counter(_state(pod) for pod in own)
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        news = causes.latest_event(events, {pod["metadata"]["name"] for pod in own})
        table.add_row(name, f"{ready[name]}/{wanted}", told or "none", Text(news[:160]))
    return table


def _state(pod: dict[str, Any]) -> str:
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating"
    if readiness.is_ready(pod):
        return "Ready"
    first = next(causes.of_pod(pod), None)
    return first.reason if first else (pod.get("status") or {}).get("phase", "Unknown")
