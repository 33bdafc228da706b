"""Files in and out of a volume, through a pod: binary, in parts, resumed, checked by sha256.

Input: a pod that mounts the volume. Output: files here, or there. A single stream of hundreds of
megabytes does not survive every proxy on the way; parts do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvab.clusters.kubernetes import deployment, health, objects
from kvab.clusters.kubernetes.api import Failed, Kube, Pod, Waiting
from kvab.clusters.kubernetes.health import condition, last_lines
from kvab.console import Display
from kvab.declarations import inside
from kvab.errors import DependencyError

PART_BYTES = 32 * 2**20
MARKER = "finished.json"
ENDED = {"Succeeded", "Failed"}
# Prompts and raw answers: gigabytes that no page reads; they stay on the volume.
SKIPPED = ("inputs.json", "profile_export_raw.jsonl")


class Spoiled(DependencyError):
    """Files on the volume are not what was written there; fetching them again does not help."""


@contextmanager
def helper_pod(kube: Kube, manifest: dict[str, Any], job: str | None = None) -> Iterator[Pod]:
    """Yield a running pod that mounts the volume: that of a Job if it runs, else one made for it.

    Raises
    ------
    DependencyError
        If the pod made for it does not start; the cause is named.
    """
    for pod in kube.list("Pod", f"job-name={job}") if job else ():
        if pod["status"].get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp"):
            yield Pod(kube, pod["metadata"]["name"], health.main_container(pod))
            return
    name = manifest["metadata"]["name"]
    if ENDED & {((kube.get("Pod", name) or {}).get("status") or {}).get("phase")}:
        deployment.remove(kube, "Pod", name, manifest["metadata"]["labels"][objects.STUDY_LABEL])
    made = kube.create(manifest)
    try:
        _wait_running(kube, made)
        yield Pod(kube, name, manifest["spec"]["containers"][0]["name"])
    finally:
        kube.delete("Pod", name, made["metadata"]["uid"])


def _wait_running(kube: Kube, pod: Manifest) -> None:
    """Return when a pod that was just created runs."""
    name, grace = pod["metadata"]["name"], health.Grace(kube.limits.grace_s)

    def probe() -> Waiting | None:
        latest = kube.get("Pod", name)
        if latest is None:
            raise DependencyError(f"pod {name} was deleted while it started; run again")
        phase = (latest.get("status") or {}).get("phase")
        if phase == "Running":
            return None
        causes = list(health.of_pods([latest], kube.list("Event")))
        if cause := grace.lasting(causes, time.monotonic()):
            raise DependencyError(str(cause))
        if phase in ENDED:
            why = f": {causes[0]}" if causes else ""
            raise DependencyError(f"pod {name} ended ({phase}) before it could be used{why}")
        return Waiting(f"pod {name}")

    kube.wait_until(
        probe,
        kube.limits.prepare_s,
        lambda waiting: f"{waiting.note} did not start; see `kubectl describe pod`",
    )


def upload(pod: Pod, content: bytes, target: str) -> None:
    """Write a file on the volume, beside its place and renamed in; one that is there is kept.

    Raises
    ------
    DependencyError
        If it did not arrive as it is.
    """
    wanted = hashlib.sha256(content).hexdigest()
    script = (
        'mkdir -p "$(dirname "$1")" && { [ -f "$1" ] && sha256sum "$1" | grep -q "^$2" || '
        "echo wanted; }"
    )
    if not pod.retried("sh", "-c", script, "sh", target, wanted):
        return
    pod.retried("sh", "-c", ': >"$1.part"', "sh", target)
    for place in range(0, len(content), PART_BYTES):
        part = content[place : place + PART_BYTES]
        # The channel of standard input has no end: the size says when a part is whole. A part
        # that is sent again starts at its own place.
        write = (
            'head -c "$2" | dd of="$1.part" bs=65536 seek="$3" conv=notrunc '
            "oflag=seek_bytes iflag=fullblock"
        )
        arguments = (target, str(len(part)), str(place))
        pod.retried("sh", "-c", write + " 2>/dev/null", "sh", *arguments, stdin=part)
    got = pod.retried("sh", "-c", 'sha256sum "$1.part"', "sh", target).decode().split()[0]
    if got != wanted:
        raise DependencyError(f"{target}: expected sha256 {wanted[:12]}, got {got[:12]}; run again")
    pod.retried("sh", "-c", 'mv "$1.part" "$1"', "sh", target)


def read_marker(pod: Pod, folder: str, run_id: str) -> dict[str, Any]:
    """Return the marker that the benchmark writes last, with every file's size and sha256.

    Raises
    ------
    Spoiled
        If there is none, so the artifacts are not whole, or it is not of a run that succeeded.
    """
    try:
        marker = json.loads(pod.retried("cat", f"{folder}/{MARKER}"))
        ended, whose, _ = marker["exit_code"], marker["run_id"], marker["files"]
    except (Failed, ValueError, LookupError, TypeError):
        raise Spoiled(
            f"{folder}/{MARKER}: the benchmark did not finish its artifacts; see its log in "
            "diagnostics/, and run again"
        ) from None
    if ended or whose != run_id:
        raise Spoiled(
            f"{folder}: expected the artifacts of a finished run {run_id}, got "
            f"{whose} with exit code {ended}; run again"
        )
    return marker


def download(
    pod: Pod,
    folder: str,
    marker: dict[str, Any],
    target: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Copy the artifacts that pages read; what an earlier try brought is kept.

    Parameters
    ----------
    pod, folder : Pod, str
        Where they lie.
    marker : dict
        Sizes and digests by file name.
    target : Path
        Folder here.
    progress : callable, optional
        Gets bytes done and bytes wanted.

    Returns
    -------
    list of str
        The files, by their name in the folder.

    Raises
    ------
    Spoiled
        If a file does not arrive as the marker says, or would lie outside the target.
    """
    try:
        listed = inside(marker["files"])
    except ValueError as error:
        raise Spoiled(
            f"{folder}: {error}; what is on the volume was not written by a run"
        ) from None
    files = {name: file for name, file in listed.items() if name.rpartition("/")[2] not in SKIPPED}
    total, done = sum(file["bytes"] for file in files.values()), 0

    def tell(more: int) -> None:
        if progress:
            progress(done + more, total)

    for name, file in files.items():
        _fetch(pod, f"{folder}/{name}", file, target / name, tell)
        done += file["bytes"]
        tell(0)
    return list(files)


def download_run(pod: Pod, folder: str, target: Path) -> None:
    """Copy a run folder; every file arrives as its ``run.json`` says.

    Raises
    ------
    Spoiled
        If it is no run's, or a file of it is altered.
    DependencyError
        If there is none, or a file of it is missing.
    """
    listed = pod.retried("cat", f"{folder}/run.json")
    try:
        sums = inside(json.loads(listed)["files"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Spoiled(f"{folder}/run.json: expected a run's, got another file") from None
    sums["run.json"] = hashlib.sha256(listed).hexdigest()
    sizes = 'cd "$1" && shift && stat -c "%s %n" -- "$@"'
    told = pod.retried("sh", "-c", sizes, "sh", folder, *sums).decode().splitlines()
    parts = [line.partition(" ") for line in told]
    files = {name: {"bytes": int(size), "sha256": sums[name]} for size, _, name in parts}
    download(pod, folder, {"files": files}, target)


def _fetch(
    pod: Pod, source: str, file: dict[str, Any], path: Path, tell: Callable[[int], None]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    size, wanted = file["bytes"], file["sha256"]
    for _ in range(2):  # a file that is here but wrong is fetched once more from its start
        with path.open("ab") as out:
            have = out.tell()
            while have < size:
                count = min(PART_BYTES, size - have)
                script = 'tail -c +"$2" "$1" | head -c "$3"'
                part = pod.retried("sh", "-c", script, "sh", source, str(have + 1), str(count))
                out.write(part)
                out.flush()
                have += len(part)
                tell(have)
                if not part:
                    break
        with path.open("rb") as here:
            got = hashlib.file_digest(here, "sha256").hexdigest()
        if got == wanted:
            return
        path.unlink()
    raise Spoiled(
        f"{source}: expected sha256 {wanted[:12]} as when it was written, got {got[:12]}; the "
        "volume changed since; run again"
    )


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
    name, study = scripts["metadata"]["name"], scripts["metadata"]["labels"][objects.STUDY_LABEL]
    found = kube.get("ConfigMap", name)
    if found and found.get("data") == scripts["data"]:
        return
    if found:
        objects.check_own(found, study)
        deployment.remove(kube, "ConfigMap", name, study)
    kube.create(scripts)


def fetch_model(kube: Kube, job: Manifest) -> None:
    """Run the download to its end, unless the same one has succeeded.

    Raises
    ------
    DependencyError
        If it fails, or is not done in ``limits.prepare_s``; it goes on by itself then.
    """
    name, study = job["metadata"]["name"], job["metadata"]["labels"][objects.STUDY_LABEL]
    found = kube.get("Job", name)
    if found and (condition(found, "Failed") or _revision(found) != _revision(job)):
        deployment.remove(kube, "Job", name, study)
        found = None
    if found is None:
        kube.create(job)
    grace, end = health.Grace(kube.limits.grace_s), ""

    def probe() -> Waiting | None:
        nonlocal end
        latest = kube.get("Job", name)
        if latest is None:
            raise DependencyError(f"Job {name} was deleted while it ran; run again")
        if condition(latest, "Complete"):
            return None
        pods, events = kube.list("Pod", f"job-name={name}"), kube.list("Event")
        end = _log_end(kube, pods) or end
        if failed := condition(latest, "Failed"):
            deployment.remove(kube, "Job", name, study)
            raise DependencyError(
                f"Job {name}: {failed.get('reason')}: {failed.get('message', '')}; "
                f"its log ends with: {end or 'nothing'}"
            )
        causes = [*health.of_pods(pods, events), *_unprovisioned(events, job)]
        causes += [] if pods else health.of_creation(events, latest)
        if cause := grace.lasting(causes, time.monotonic()):
            deployment.remove(kube, "Job", name, study)
            raise DependencyError(f"Job {name}: {cause}")
        return Waiting(end.rpartition(" | ")[2] or _phases(pods))

    kube.wait_until(
        probe,
        kube.limits.prepare_s,
        lambda _: (
            f"Job {name}: not done in {kube.limits.prepare_s:g} s; it goes on: run again "
            "later, or raise limits.prepare_s of the profile"
        ),
        title=f"Job {name}",
        selector=f"job-name={name}",
    )


def _revision(job: Manifest) -> Any:
    container = job["spec"]["template"]["spec"]["containers"][0]
    values = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
    return values.get("MODEL_NAME"), values.get("MODEL_REVISION")


def _unprovisioned(events: list[Manifest], job: Manifest) -> list[health.Cause]:
    volumes = job["spec"]["template"]["spec"].get("volumes", [])
    claims = {v["persistentVolumeClaim"]["claimName"] for v in volumes
              if "persistentVolumeClaim" in v}  # fmt: skip
    return [
        health.Cause(f"PVC {event['involvedObject']['name']}", event["reason"], event["message"])
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
    container = health.main_container(newest)
    return last_lines(kube.log(newest["metadata"]["name"], container, lines=50), 5)


def bring(pod: Pod, folder: str, run_id: str, local: Path) -> dict[str, bytes]:
    """Return the files of a try by name, and leave them in the folder here.

    Raises
    ------
    Spoiled
        If they are not whole, or not those of this try.
    DependencyError
        If the connection is lost for good.
    """
    with Display("collect") as display:
        marker = read_marker(pod, folder, run_id)
        names = download(
            pod,
            folder,
            marker,
            local,
            lambda done, total: display.show(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
        )
    return {name: (local / name).read_bytes() for name in names}


def forget(local: Path) -> None:
    """Remove the folder, and what other tries left beside it."""
    shutil.rmtree(local.parent)
