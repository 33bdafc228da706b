"""The benchmark's Job from its start to its end, and what the serving side did meanwhile.

Input: marked manifests of ``perf.yaml``. Output: a finished Job, or an error that names the cause.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from kvab.clusters.kubernetes import health
from kvab.clusters.kubernetes.api import Kube, Pod, Waiting
from kvab.clusters.kubernetes.health import condition, last_lines
from kvab.errors import DependencyError

Object = dict[str, Any]
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


def router_counters(kube: Kube, service: str) -> dict[str, float]:
    """Return KV events applied and prefix hits, as the frontend counts them so far."""
    status, text = kube.proxy(service, "metrics")
    totals = {"events": 0.0, "hits": 0.0}
    for line in text.splitlines() if status == 200 else ():
        match = SAMPLE.match(line)
        if not match or match[3] == "NaN":
            continue
        name, labels = match[1], match[2] or ""
        if name.endswith(EVENTS) and 'status="ok"' in labels:
            totals["events"] += float(match[3])
        elif name.endswith(HITS):
            totals["hits"] += float(match[3])
    return totals


def check_router(before: dict[str, float], after: dict[str, float]) -> None:
    """Refuse a replay behind a KV router that did not see the workers' caches.

    Raises
    ------
    DependencyError
        If no KV events were applied, or no prompt was found in a cache.
    """
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    if grown["events"] <= 0:
        raise DependencyError(
            "router: no KV events were applied during the replay, so it routed blindly; check "
            "--kv-events-config of the workers"
        )
    if grown["hits"] <= 0:
        raise DependencyError(
            "router: no prompt was found in any cache during the replay; check that block size "
            "and model agree between frontend and workers"
        )


def state(kube: Kube, expected: health.Expected) -> dict[str, dict[str, Any]]:
    """Return the ``restarts`` of every serving pod, and what the ``router`` counted so far."""
    return {
        "restarts": health.restarts(kube.list("Pod", expected.selector)),
        "router": router_counters(kube, expected.service),
    }


def wait_finished(
    kube: Kube,
    expected: health.Expected,
    name: str,
    before: dict[str, int],
    rows: int,
    span_s: float,
    folder: str,
    progress: Callable[[int], None] | None,
) -> None:
    """Return when the Job has succeeded and no serving pod was restarted.

    Raises
    ------
    DependencyError
        With the cause as soon as it is known; the Job's own deadline ends it at the latest.
    """
    grace = health.Grace(kube.limits.grace_s)
    counter = Counter(kube, folder, rows, span_s, progress)

    def probe() -> Waiting | None:
        job, pods = kube.get("Job", name), kube.list("Pod", f"job-name={name}")
        if job is None:
            seen = f"; its log ended with: {counter.log}" if counter.log else ""
            raise DependencyError(f"Job {name} was deleted while it ran; run again{seen}")
        serving = health.restarts(kube.list("Pod", expected.selector))
        if what := health.changed_pods(before, serving):
            raise DependencyError(
                f"{expected.deployment}: serving pods did not stay up during the replay "
                f"({what}); its latencies are worth nothing; see diagnostics/"
            )
        if failed := condition(job, "Failed"):
            raise DependencyError(_failure(kube, name, failed, pods, counter.log))
        if condition(job, "Complete"):
            counter.tell(rows)
            return None
        events = kube.list("Event")
        causes = [*health.of_pods(pods, events)] if pods else [*health.of_creation(events, job)]
        started = [c for c in causes if c.reason not in ("Failed", "Error", "DeadlineExceeded")]
        if cause := grace.lasting(started, time.monotonic()):
            raise DependencyError(f"Job {name}: {cause}")
        return Waiting(counter.look(pods))

    title = f"replay on {expected.deployment}"
    kube.wait_until(probe, title=title, selector=f"job-name={name}")


def _failure(kube: Kube, name: str, failed: Object, pods: list[Object], seen: str) -> str:
    """Return how a Job failed; of pods that are gone, the last lines that were seen."""
    code, log = "unknown", seen
    for pod in pods:
        container = health.main_container(pod)
        for status in (pod.get("status") or {}).get("containerStatuses", []):
            ended = (status.get("state") or {}).get("terminated") or {}
            code = ended.get("exitCode", code)
        log = last_lines(kube.log(pod["metadata"]["name"], container, lines=50), 4) or log
    return (
        f"Job {name}: {failed.get('reason', 'Failed')}, exit code {code}: "
        f"{failed.get('message', '')}; its log ends with: {log or 'nothing'}"
    )


class Counter:
    """How far a replay is, counted in the records that AIPerf has written."""

    def __init__(
        self,
        kube: Kube,
        folder: str,
        rows: int,
        span_s: float,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.kube, self.folder, self.rows, self.span_s = kube, folder, rows, span_s
        self.progress = progress
        self.looked_s, self.first_s, self.text = -COUNT_S, 0.0, "waits for the benchmark's pod"
        self.log = ""

    def tell(self, done: int) -> None:
        """Hand the number of requests done on."""
        if self.progress:
            self.progress(done)

    def look(self, pods: list[Object]) -> str:
        """Return requests done, errors and time left, or the log's last line before the first."""
        now_s = time.monotonic()
        running = [p for p in pods if (p.get("status") or {}).get("phase") == "Running"]
        if not running or now_s - self.looked_s < min(COUNT_S, 3 * self.kube.limits.poll_s):
            return self.text
        self.looked_s = now_s
        name = running[0]["metadata"]["name"]
        container = health.main_container(running[0])
        log = self.kube.log(name, container, lines=50)
        self.log = last_lines(log, 4) or self.log
        try:
            out = Pod(self.kube, name, container).run(
                "sh", "-c", COUNT_RECORDS, "sh", self.folder, timeout_s=30
            )
            numbers = [int(word) for word in out.split()]
        except (DependencyError, ValueError):
            return self.text  # the pod has just ended, or the connection was lost: look again
        if not numbers or not numbers[0]:
            self.text = last_lines(log, 1) or self.text
            return self.text
        self.first_s = self.first_s or now_s
        left_s = max(0.0, self.span_s - (now_s - self.first_s))
        self.text = (
            f"{numbers[0]:,} of {self.rows:,} requests done, {numbers[1]} errors, "
            f"about {left_s / 60:.0f} min of the trace left"
        )
        self.tell(numbers[0])
        return self.text
