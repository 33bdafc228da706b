"""Files in and out of a volume, through a pod: binary, in parts, resumed, checked by sha256.

Input: a pod that mounts the volume. Output: files here, or there. A single stream of hundreds of
megabytes does not survive every proxy on the way; parts do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvab.clusters.kubernetes import causes, deploying, marks
from kvab.clusters.kubernetes.kube import Kube
from kvab.clusters.kubernetes.podexec import Failed, Pod
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
            yield Pod(kube, pod["metadata"]["name"], causes.main_container(pod))
            return
    name = manifest["metadata"]["name"]
    if ENDED & {((kube.get("Pod", name) or {}).get("status") or {}).get("phase")}:
        deploying.remove(kube, "Pod", name, manifest["metadata"]["labels"][marks.STUDY_LABEL])
    found = kube.create(manifest)
    try:
        grace = causes.Grace(kube.limits.grace_s)
        deadline = time.monotonic() + kube.limits.prepare_s
        while (found.get("status") or {}).get("phase") != "Running":
            told = [*causes.of_pod(found), *causes.of_events(kube.list("Event"), [found])]
            if cause := grace.lasting(told, time.monotonic()):
                raise DependencyError(str(cause))
            if (phase := (found.get("status") or {}).get("phase")) in ENDED:
                why = f": {told[0]}" if told else ""
                raise DependencyError(f"pod {name} ended ({phase}) before it could be used{why}")
            if time.monotonic() > deadline:
                raise DependencyError(f"pod {name} did not start; see `kubectl describe pod`")
            time.sleep(min(1.0, kube.limits.poll_s))
            if (latest := kube.get("Pod", name)) is None:
                raise DependencyError(f"pod {name} was deleted while it started; run again")
            found = latest
        yield Pod(kube, name, manifest["spec"]["containers"][0]["name"])
    finally:
        kube.delete("Pod", name, found["metadata"]["uid"])


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
    if not pod.patiently("sh", "-c", script, "sh", target, wanted):
        return
    pod.patiently("sh", "-c", ': >"$1.part"', "sh", target)
    for place in range(0, len(content), PART_BYTES):
        part = content[place : place + PART_BYTES]
        # The channel of standard input has no end: the size says when a part is whole. A part
        # that is sent again starts at its own place.
        write = (
            'head -c "$2" | dd of="$1.part" bs=65536 seek="$3" conv=notrunc '
            "oflag=seek_bytes iflag=fullblock"
        )
        arguments = (target, str(len(part)), str(place))
        pod.patiently("sh", "-c", write + " 2>/dev/null", "sh", *arguments, stdin=part)
    got = pod.patiently("sh", "-c", 'sha256sum "$1.part"', "sh", target).decode().split()[0]
    if got != wanted:
        raise DependencyError(f"{target}: expected sha256 {wanted[:12]}, got {got[:12]}; run again")
    pod.patiently("sh", "-c", 'mv "$1.part" "$1"', "sh", target)


def read_marker(pod: Pod, folder: str, run_id: str) -> dict[str, Any]:
    """Return the marker that the benchmark writes last, with every file's size and sha256.

    Raises
    ------
    Spoiled
        If there is none, so the artifacts are not whole, or it is not of a run that succeeded.
    """
    try:
        marker = json.loads(pod.patiently("cat", f"{folder}/{MARKER}"))
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
    listed = pod.patiently("cat", f"{folder}/run.json")
    try:
        sums = inside(json.loads(listed)["files"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Spoiled(f"{folder}/run.json: expected a run's, got another file") from None
    sums["run.json"] = hashlib.sha256(listed).hexdigest()
    sizes = 'cd "$1" && shift && stat -c "%s %n" -- "$@"'
    told = pod.patiently("sh", "-c", sizes, "sh", folder, *sums).decode().splitlines()
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
                part = pod.patiently("sh", "-c", script, "sh", source, str(have + 1), str(count))
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
