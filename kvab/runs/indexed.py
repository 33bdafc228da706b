"""The Indexed Job of a campaign: its manifests, and how it goes until its end.

Input: a profile and what is sent. Output: manifests; the indexes that are complete, and why others
failed.
"""

from __future__ import annotations

import time
from typing import Any

from kvab.cluster import applied, causes, marks
from kvab.cluster.causes import condition, last_lines
from kvab.cluster.kube import Kube
from kvab.declare import digest
from kvab.errors import DependencyError
from kvab.runs.cell import Campaign
from kvab.study import Kubernetes
from kvab.watching import Display

Object = dict[str, Any]
FILE, MOUNT, CLAIM = "campaign.json", "/opt/campaign", "perf-cache"
VOLUME = f"/{CLAIM}"
RUNS = f"{VOLUME}/runs"
RETRIES = 2  # of each index: what fails three times does not pass by itself
INDEX = "batch.kubernetes.io/job-completion-index"
# The longest replay of the whole trace took one core and 0.95 GB.
RESOURCES = {"cpu": "1", "memory": "2Gi"}


def manifests(profile: Kubernetes, campaign: Campaign) -> list[Object]:
    """Return ConfigMap and Indexed Job of a campaign, marked as its own."""
    name, count = f"{campaign.study.replace('.', '-')}-campaign", len(campaign.cells)
    container = {
        "name": "replay",
        "image": profile.campaign_image,
        "command": ["python", "-m", "kvab.runs.cell"],
        "args": [f"{MOUNT}/{FILE}", applied.staged_path(campaign.trace_sha256), RUNS],
        "resources": {"requests": RESOURCES},
        "volumeMounts": [
            {"name": "campaign", "mountPath": MOUNT, "readOnly": True},
            {"name": CLAIM, "mountPath": VOLUME},
        ],
    }
    pod: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(profile.limits.replay_s),
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [
            {"name": "campaign", "configMap": {"name": name}},
            {"name": CLAIM, "persistentVolumeClaim": {"claimName": CLAIM}},
        ],
    }
    if profile.tolerations:
        pod["tolerations"] = list(profile.tolerations)
    if profile.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
    waves = -(-count // profile.campaign_parallelism) * (1 + RETRIES)
    spec = {
        "activeDeadlineSeconds": round(max(1, waves) * profile.limits.replay_s),
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": min(count, profile.campaign_parallelism),
        "backoffLimitPerIndex": RETRIES,
        "template": {"metadata": {"labels": {marks.STUDY_LABEL: campaign.study}}, "spec": pod},
    }
    made = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
         "data": {FILE: campaign.model_dump_json()}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec},
    ]  # fmt: skip
    mark = marks.Mark(campaign.study, f"{campaign.study}/campaign", "", digest(made)[:32])
    return [mark.put(manifest, profile.namespace) for manifest in made]


def helper(job: Object) -> Object:
    """Return the pod through which files go in and out, with the marks of the campaign's Job."""
    metadata = job["metadata"]
    pod = applied.files_pod(job, f"{metadata['name']}-files")
    pod["metadata"] = {**metadata, **pod["metadata"]}
    return pod


def indexes(job: Object, key: str) -> set[int]:
    """Return the indexes that a Job's status lists, such as ``0,3-5``."""
    text = (job.get("status") or {}).get(key) or ""
    ends = [part.partition("-") for part in text.split(",") if part]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


def watch(kube: Kube, name: str, asked: set[int], total: int) -> dict[int, str]:
    """Return when the Job has ended: why indexes asked for are not complete.

    Raises
    ------
    DependencyError
        If no pod can start or be created, with the cause, or the Job was deleted.
    """
    grace = causes.Grace(kube.limits.grace_s)
    with Display("campaign") as display:
        while True:
            job, pods = kube.get("Job", name), kube.list("Pod", f"job-name={name}")
            if job is None:
                raise DependencyError(f"Job {name} was deleted while it ran; run again")
            done, failed = indexes(job, "completedIndexes"), indexes(job, "failedIndexes")
            if condition(job, "Complete") or condition(job, "Failed"):
                return {index: _why(kube, pods, index) for index in sorted(asked - done)}
            phases = [(pod.get("status") or {}).get("phase") for pod in pods]
            # Those that wait for a place while others run are no failure.
            idle = [] if "Running" in phases else [
                pod for pod, phase in zip(pods, phases, strict=True) if phase == "Pending"
            ]  # fmt: skip
            told = [cause for pod in idle for cause in causes.of_pod(pod)]
            alive = {"Running", "Pending"} & {*phases}
            events = kube.list("Event")
            told += causes.of_events(events, idle) if alive else causes.of_creation(events, job)
            if cause := grace.lasting(told, time.monotonic()):
                raise DependencyError(f"Job {name}: {cause}")
            left = total - len(done) - len(failed)
            display.show(
                f"{len(done)} of {total} cells done, {len(failed)} failed, {left} left, "
                f"{phases.count('Running')} running"
            )
            kube.changed(f"job-name={name}", kube.limits.poll_s)


def _why(kube: Kube, pods: list[Object], index: int) -> str:
    """Return how the last try of an index ended, with the end of its log."""
    own = [p for p in pods if (p["metadata"].get("annotations") or {}).get(INDEX) == str(index)]
    if not own:
        return "never started, or its pods are gone"
    last = max(own, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    status, container = last.get("status") or {}, causes.main_container(last)
    states = [each.get("state") or {} for each in status.get("containerStatuses", [])]
    ended: Object = next((state["terminated"] for state in states if "terminated" in state), {})
    reason = ended.get("reason") or status.get("reason") or status.get("phase", "Unknown")
    log = last_lines(kube.log(last["metadata"]["name"], container, lines=50), 4)
    code = f", exit code {ended['exitCode']}" if "exitCode" in ended else ""
    return f"{reason}{code}; its log ends with: {log or 'nothing'}"
