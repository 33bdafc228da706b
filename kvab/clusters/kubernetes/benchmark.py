"""The benchmark's Job while it runs: how far it is, and what the serving side did meanwhile.

Input: a Job that was created of ``perf.yaml``. Output: it has ended well, or an error that names
the cause.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from kvab.clusters.base import Progress
from kvab.clusters.kubernetes import health, jobs
from kvab.clusters.kubernetes.api import Kube, Pod
from kvab.clusters.kubernetes.jobs import Look
from kvab.clusters.kubernetes.objects import Sending
from kvab.errors import DependencyError, KvabError

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})?\s+([-+.\deE]+|NaN)")
# The frontend's own counters; which of the hits there are depends on Dynamo's version.
EVENTS = ("kv_cache_events_applied", "kv_cache_events_applied_total")
HITS = (
    "router_kv_hit_rate_sum",
    "router_kv_selected_cached_prefix_tokens_total",
    "frontend_cached_tokens_sum",
)
COUNT_RECORDS = (
    'f="$1/profile_export.jsonl"; [ -f "$f" ] || exit 0; wc -l <"$f"; grep -c \'"error": *{\' "$f"'
    "; true"
)
COUNT_S = 15.0


class State(NamedTuple):
    """Restarts of every serving pod, and what the router counted so far."""

    restarts: dict[str, int]
    router: dict[str, float]


def state(kube: Kube, expected: health.Expected) -> State:
    """Return how the serving side is at this moment."""
    pods = kube.list("Pod", expected.selector)
    return State(health.restarts(pods), router_counters(kube, expected.service))


def router_counters(kube: Kube, service: str) -> dict[str, float]:
    """Return KV events applied and prefix hits, as the frontend counts them so far."""
    status, text = kube.proxy(service, "metrics")
    totals = {"events": 0.0, "hits": 0.0}
    for match in map(SAMPLE.match, text.splitlines() if status == 200 else ()):
        if not match or match[3] == "NaN":
            continue
        if match[1].endswith(EVENTS) and 'status="ok"' in (match[2] or ""):
            totals["events"] += float(match[3])
        elif match[1].endswith(HITS):
            totals["hits"] += float(match[3])
    return totals


def check_router(before: dict[str, float], after: dict[str, float]) -> None:
    """Refuse a replay behind a KV router that did not see the workers' caches.

    Raises
    ------
    DependencyError
        If no KV events were applied, or no prompt was found in a cache.
    """
    if after["events"] <= before.get("events", 0.0):
        raise DependencyError(
            "router: no KV events were applied during the replay, so it routed blindly; check "
            "--kv-events-config of the workers"
        )
    if after["hits"] <= before.get("hits", 0.0):
        raise DependencyError(
            "router: no prompt was found in any cache during the replay; check that block size "
            "and model agree between frontend and workers"
        )


def wait_finished(
    kube: Kube, expected: health.Expected, name: str, before: dict[str, int], counter: Counter
) -> None:
    """Return when the Job has succeeded and no serving pod was restarted.

    Raises
    ------
    DependencyError
        With the cause as soon as it is known; the Job's own deadline ends it at the latest.
    """

    def note(look: Look) -> str:
        serving = health.restarts(kube.list("Pod", expected.selector))
        if what := health.changed_pods(before, serving):
            raise DependencyError(
                f"{expected.deployment}: serving pods did not stay up during the replay "
                f"({what}); its latencies are worth nothing; see diagnostics/"
            )
        return counter.look(look)

    title = f"replay on {expected.deployment}"
    jobs.check_complete(name, jobs.wait_ended(kube, name, note, title=title))
    counter.tell(counter.sending.rows)


class Counter:
    """How far a replay is, counted in the records that AIPerf has written."""

    def __init__(
        self, kube: Kube, folder: str, sending: Sending, progress: Progress | None
    ) -> None:
        self.kube, self.folder, self.sending = kube.with_short_limits(), folder, sending
        self.tell: Progress = progress or (lambda done: None)
        self.next_s, self.first_s, self.text = 0.0, 0.0, "waits for the benchmark's pod"

    def look(self, look: Look) -> str:
        """Return requests done, errors and time left, or the log's last line before the first."""
        now_s = time.monotonic()
        running = [pod for pod in look.pods if health.phase(pod) == "Running"]
        if not running or now_s < self.next_s:
            return self.text
        self.next_s = now_s + min(COUNT_S, 3 * self.kube.limits.poll_s)
        pod = Pod(self.kube, running[0]["metadata"]["name"], health.main_container(running[0]))
        try:
            out = pod.run("sh", "-c", COUNT_RECORDS, "sh", self.folder, timeout_s=30)
            done, errors = [int(word) for word in out.split()] or (0, 0)
        except (KvabError, ValueError):
            return self.text  # the pod has just ended, or the connection was lost: look again
        if not done:
            self.text = look.log.rpartition(" | ")[2] or self.text
            return self.text
        self.first_s = self.first_s or now_s
        left_s = max(0.0, self.sending.span_s - (now_s - self.first_s))
        self.text = (
            f"{done:,} of {self.sending.rows:,} requests done, {errors} errors, "
            f"about {left_s / 60:.0f} min of the trace left"
        )
        self.tell(done)
        return self.text
