"""What lies on volumes: claims, scripts and the model before a run, files in and out of it.

Input: a cluster, or a pod that mounts a volume. Output: files here, or there: binary, in parts,
resumed, checked by sha256. A single stream of hundreds of megabytes does not survive every proxy
on the way; parts do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvab.clusters.kubernetes import health, jobs, objects
from kvab.clusters.kubernetes.api import Failed, Kube, Object, Pod, Waiting
from kvab.clusters.kubernetes.deployment import remove
from kvab.clusters.kubernetes.jobs import JobFailed, Look
from kvab.console import Display
from kvab.declarations import Part, inside
from kvab.errors import DependencyError

PART_BYTES = 32 * 2**20
MARKER = "finished.json"
ENDED = ("Succeeded", "Failed")
# Prompts and raw answers: gigabytes that no page reads; they stay on the volume.
SKIPPED = ("inputs.json", "profile_export_raw.jsonl")


class Spoiled(DependencyError):
    """Files on the volume are not what was written there; fetching them again does not help."""


class File(Part):
    """What a file on the volume has to be."""

    bytes: int
    sha256: str


class Marker(Part):
    """What the benchmark writes last: how it ended, and every file by its name in the folder."""

    exit_code: int
    run_id: str
    files: dict[str, File]


@contextmanager
def helper_pod(kube: Kube, manifest: Object, job: str | None = None) -> Iterator[Pod]:
    """Yield a running pod that mounts the volume: that of a Job if it runs, else one made for it.

    Raises
    ------
    DependencyError
        If the pod made for it does not start; the cause is named.
    """
    for pod in kube.list("Pod", f"job-name={job}") if job else ():
        if health.phase(pod) == "Running" and not pod["metadata"].get("deletionTimestamp"):
            yield Pod(kube, pod["metadata"]["name"], health.main_container(pod))
            return
    name = manifest["metadata"]["name"]
    study = manifest["metadata"]["labels"][objects.STUDY_LABEL]
    remove(
        kube, "Pod", name, lambda pod: objects.of_study(pod, study) and health.phase(pod) in ENDED
    )
    made = kube.create(manifest)
    try:
        _wait_running(kube, name)
        yield Pod(kube, name, manifest["spec"]["containers"][0]["name"])
    finally:
        kube.delete("Pod", name, made["metadata"]["uid"])


def _wait_running(kube: Kube, name: str) -> None:
    """Return when a pod that was just created runs."""
    grace = health.Grace(kube.limits.grace_s)

    def probe() -> Waiting | None:
        pod = kube.get("Pod", name)
        if pod is None:
            raise DependencyError(f"pod {name} was deleted while it started; run again")
        if health.phase(pod) == "Running":
            return None
        causes = list(health.of_pods([pod], kube.list("Event")))
        if cause := grace.lasting(causes, time.monotonic()):
            raise DependencyError(str(cause))
        if health.phase(pod) in ENDED:
            why = f": {causes[0]}" if causes else ""
            raise DependencyError(
                f"pod {name} ended ({health.phase(pod)}) before it could be used{why}"
            )
        return Waiting(f"pod {name} did not start; see `kubectl describe pod`")

    kube.wait_until(probe, kube.limits.prepare_s)


def upload(pod: Pod, content: bytes, target: str) -> None:
    """Write a file on the volume, beside its place and renamed in; one that is there is kept.

    Raises
    ------
    Failed
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
    for start in range(0, len(content), PART_BYTES):
        part = content[start : start + PART_BYTES]
        # The channel of standard input has no end: the size says when a part is whole. A part
        # that is sent again starts at its own place.
        write = (
            'head -c "$2" | dd of="$1.part" bs=65536 seek="$3" conv=notrunc '
            "oflag=seek_bytes iflag=fullblock"
        )
        arguments = (target, str(len(part)), str(start))
        pod.retried("sh", "-c", write + " 2>/dev/null", "sh", *arguments, stdin=part)
    finish = 'sha256sum "$1.part" | grep -q "^$2" && mv "$1.part" "$1"'
    pod.retried("sh", "-c", finish, "sh", target, wanted)


def read_marker(pod: Pod, folder: str, run_id: str) -> Marker:
    """Return the marker that the benchmark writes last, with every file's size and sha256.

    Raises
    ------
    Spoiled
        If there is none, so the artifacts are not whole, or it is not of a run that succeeded.
    """
    try:
        marker = Marker.model_validate_json(pod.retried("cat", f"{folder}/{MARKER}"))
    except (Failed, ValueError):
        raise Spoiled(
            f"{folder}/{MARKER}: the benchmark did not finish its artifacts; see its log in "
            "diagnostics/, and run again"
        ) from None
    if marker.exit_code or marker.run_id != run_id:
        raise Spoiled(
            f"{folder}: expected the artifacts of a finished run {run_id}, got "
            f"{marker.run_id} with exit code {marker.exit_code}; run again"
        )
    return marker


def download(
    pod: Pod,
    folder: str,
    files: dict[str, File],
    target: Path,
    show: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Copy the files of a folder that pages read, and return their names.

    What an earlier try brought is kept; ``show`` gets how much is there.

    Raises
    ------
    Spoiled
        If a file does not arrive as it has to be, or would lie outside the target.
    """
    try:
        inside(files)
    except ValueError as error:
        raise Spoiled(
            f"{folder}: {error}; what is on the volume was not written by a run"
        ) from None
    files = {name: file for name, file in files.items() if Path(name).name not in SKIPPED}
    total, done = sum(file.bytes for file in files.values()), 0
    for name, file in files.items():
        for have in _fetch(pod, f"{folder}/{name}", file, target / name):
            show(f"{(done + have) / 1e6:.0f} of {total / 1e6:.0f} MB")
        done += file.bytes
    return list(files)


def download_run(pod: Pod, folder: str, target: Path) -> None:
    """Copy a run folder; every file arrives as its ``run.json`` says.

    Raises
    ------
    Spoiled
        If it is no run's, or a file of it is altered.
    Failed
        If there is none, or a file of it is missing.
    """
    listed = pod.retried("cat", f"{folder}/run.json")
    try:
        sums = inside(json.loads(listed)["files"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Spoiled(f"{folder}/run.json: expected a run's, got another file") from None
    sums["run.json"] = hashlib.sha256(listed).hexdigest()
    script = 'cd "$1" && shift && stat -c "%s %n" -- "$@"'
    lines = pod.retried("sh", "-c", script, "sh", folder, *sums).decode().splitlines()
    sizes = {name: int(size) for size, _, name in (line.partition(" ") for line in lines)}
    download(
        pod, folder, {name: File(bytes=sizes[name], sha256=sums[name]) for name in sums}, target
    )


def _fetch(pod: Pod, source: str, file: File, path: Path) -> Iterator[int]:
    """Copy one file and yield how many bytes of it are here, after each part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    script = 'tail -c +"$2" "$1" | head -c "$3"'
    for _ in range(2):  # a file that is here but wrong is fetched once more from its start
        with path.open("ab") as out:
            while (have := out.tell()) < file.bytes:
                count = min(PART_BYTES, file.bytes - have)
                arguments = (source, str(have + 1), str(count))
                part = pod.retried("sh", "-c", script, "sh", *arguments)
                out.write(part)
                yield out.tell()
                if not part:
                    break
        with path.open("rb") as here:
            got = hashlib.file_digest(here, "sha256").hexdigest()
        if got == file.sha256:
            return
        path.unlink()
    raise Spoiled(
        f"{source}: expected sha256 {file.sha256[:12]} as when it was written, got {got[:12]}; the "
        "volume changed since; run again"
    )


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
        names = download(pod, folder, marker.files, local, display.show)
    return {name: (local / name).read_bytes() for name in names}


def claim_storage(kube: Kube, claims: list[Object]) -> None:
    """Create the volume claims that are not there; those that are stay as they are.

    Raises
    ------
    DependencyError
        If one that is there cannot serve.
    """
    for claim in claims:
        name, mode = claim["metadata"]["name"], claim["spec"]["accessModes"]
        present = kube.get("PersistentVolumeClaim", name)
        if present is None:
            kube.create(claim)
        elif present["metadata"].get("deletionTimestamp"):
            raise DependencyError(f"PVC {name} is being deleted; wait until it is gone, run again")
        elif not set(mode) <= set(present["spec"]["accessModes"]):
            raise DependencyError(
                f"PVC {name}: expected access mode {mode[0]}, got "
                f"{', '.join(present['spec']['accessModes'])}; fix access_mode of the profile, or "
                "delete the claim"
            )


def place_scripts(kube: Kube, scripts: Object) -> None:
    """Create the benchmark's scripts where they are not, in place of another version of them.

    Raises
    ------
    DependencyError
        If something else has their name.
    """
    name, study = scripts["metadata"]["name"], scripts["metadata"]["labels"][objects.STUDY_LABEL]
    present = kube.get("ConfigMap", name)
    if present and present.get("data") == scripts["data"]:
        return
    if present:
        objects.check_own(present, study)
        remove(kube, "ConfigMap", name, lambda _: True)
    kube.create(scripts)


def fetch_model(kube: Kube, job: Object) -> None:
    """Run the download to its end, unless the same one has succeeded.

    Raises
    ------
    DependencyError
        If it fails, or is not done in ``limits.prepare_s``; it goes on by itself then.
    """
    name, study = job["metadata"]["name"], job["metadata"]["labels"][objects.STUDY_LABEL]

    def clear() -> None:
        remove(kube, "Job", name, lambda present: objects.of_study(present, study))

    present = kube.get("Job", name)
    failed = health.holds(present, "Failed")
    stale = present and (failed or objects.model_of(present) != objects.model_of(job))
    if stale:
        clear()
    if stale or not present:
        kube.create(job)

    def note(look: Look) -> str:
        phases = ", ".join(health.phase(pod) for pod in look.pods)
        return look.log.rpartition(" | ")[2] or phases or "no pod yet"

    limit_s = kube.limits.prepare_s
    late = (
        f"Job {name}: not done in {limit_s:g} s; it goes on: run again later, or raise "
        "limits.prepare_s of the profile"
    )
    try:
        ended = jobs.wait_ended(kube, name, note, title=f"Job {name}", limit_s=limit_s, late=late)
        jobs.check_complete(name, ended)
    except JobFailed:
        clear()
        raise
