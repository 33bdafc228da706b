"""What a namespace needs once: storage, and the model's files in it.

Input: manifests of storage and download. Output: both there; a second call finds them so.
"""

from __future__ import annotations

import time
from typing import Any

from kvab.clusters.kubernetes import causes, deploying, marks
from kvab.clusters.kubernetes.causes import condition, last_lines
from kvab.clusters.kubernetes.kube import Kube
from kvab.console import Display
from kvab.errors import DependencyError

Manifest = dict[str, Any]
CLAIM_EVENTS = ("ProvisioningFailed", "FailedBinding")


def claim_storage(kube: Kube, claims: list[Manifest]) -> None:
    """Create the volume claims that are not there; those that are stay as they are.

    Raises
    ------
    DependencyError
        If one that is there cannot serve.
    """
    for claim in claims:
        name, mode = claim["metadata"]["name"], claim["spec"]["accessModes"]
        found = kube.get("PersistentVolumeClaim", name)
        if found is None:
            kube.create(claim)
        elif found["metadata"].get("deletionTimestamp"):
            raise DependencyError(f"PVC {name} is being deleted; wait until it is gone, run again")
        elif found.get("status", {}).get("phase") == "Lost":
            raise DependencyError(f"PVC {name} lost its volume; delete it and run again")
        elif not set(mode) <= set(found["spec"]["accessModes"]):
            raise DependencyError(
                f"PVC {name}: expected access mode {mode[0]}, got "
                f"{', '.join(found['spec']['accessModes'])}; fix access_mode of the profile, or "
                "delete the claim"
            )


def place_scripts(kube: Kube, scripts: Manifest) -> None:
    """Create the benchmark's scripts where they are not, in place of another version of them.

    Raises
    ------
    DependencyError
        If something else has their name.
    """
    name, study = scripts["metadata"]["name"], scripts["metadata"]["labels"][marks.STUDY_LABEL]
    found = kube.get("ConfigMap", name)
    if found and found.get("data") == scripts["data"]:
        return
    if found:
        marks.check_own(found, study)
        deploying.remove(kube, "ConfigMap", name, study)
    kube.create(scripts)


def fetch_model(kube: Kube, job: Manifest) -> None:
    """Run the download to its end, unless the same one has succeeded.

    Raises
    ------
    DependencyError
        If it fails, or is not done in ``limits.prepare_s``; it goes on by itself then.
    """
    name, study = job["metadata"]["name"], job["metadata"]["labels"][marks.STUDY_LABEL]
    found = kube.get("Job", name)
    if found and (condition(found, "Failed") or _revision(found) != _revision(job)):
        deploying.remove(kube, "Job", name, study)
        found = None
    if found is None:
        found = kube.create(job)
    deadline, end = time.monotonic() + kube.limits.prepare_s, ""
    grace = causes.Grace(kube.limits.grace_s)
    with Display(f"Job {name}") as display:
        while not condition(found, "Complete"):
            pods = kube.list("Pod", f"job-name={name}")
            if failed := condition(found, "Failed"):
                end = _log_end(kube, pods) or end or "nothing"
                deploying.remove(kube, "Job", name, study)
                raise DependencyError(
                    f"Job {name}: {failed.get('reason')}: {failed.get('message', '')}; "
                    f"its log ends with: {end}"
                )
            events = kube.list("Event")
            told = [c for pod in pods for c in causes.of_pod(pod)]
            told += [*causes.of_events(events, pods), *_unprovisioned(events, job)]
            told += [] if pods else causes.of_creation(events, found)
            if cause := grace.lasting(told, time.monotonic()):
                deploying.remove(kube, "Job", name, study)
                raise DependencyError(f"Job {name}: {cause}")
            if time.monotonic() > deadline:
                raise DependencyError(
                    f"Job {name}: not done in {kube.limits.prepare_s:g} s; it goes on: run again "
                    "later, or raise limits.prepare_s of the profile"
                )
            end = _log_end(kube, pods) or end
            display.show(end.rpartition(" | ")[2] or _phases(pods))
            kube.changed(f"job-name={name}", kube.limits.poll_s)
            found = kube.get("Job", name)
            if found is None:
                raise DependencyError(f"Job {name} was deleted while it ran; run again")


def _revision(job: Manifest) -> Any:
    container = job["spec"]["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    return values.get("MODEL_NAME"), values.get("MODEL_REVISION")


def _unprovisioned(events: list[Manifest], job: Manifest) -> list[causes.Cause]:
    volumes = job["spec"]["template"]["spec"].get("volumes", [])
    claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes
              if "persistentVolumeClaim" in v}  # fmt: skip
    return [
        causes.Cause(f"PVC {event['involvedObject']['name']}", event["reason"], event["message"])
        for event in events
        if event.get("reason") in CLAIM_EVENTS
        and event.get("involvedObject", {}).get("name") in claims
    ]


def _phases(pods: list[Manifest]) -> str:
    return ", ".join(pod.get("status", {}).get("phase", "Unknown") for pod in pods) or "no pod yet"


def _log_end(kube: Kube, pods: list[Manifest]) -> str:
    if not pods:
        return ""
    newest = max(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    container = causes.main_container(newest)
    return last_lines(kube.log(newest["metadata"]["name"], container, lines=50), 5)
