"""Files in and out of a pod that mounts a volume: binary, in parts, resumed, checked by sha256.

Input: a pod. Output: files here, or there. A single stream of hundreds of megabytes does not
survive every proxy on the way; parts do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from kvab.clusters.kubernetes.api import Failed, Pod
from kvab.console import Display
from kvab.declarations import Part, inside
from kvab.errors import DependencyError

PART_BYTES = 32 * 2**20
MARKER = "finished.json"
# Prompts and raw answers: gigabytes that no page reads; they stay on the volume.
SKIPPED = ("inputs.json", "profile_export_raw.jsonl")


class Spoiled(DependencyError):
    """Files on the volume are not what was written there; fetching them again does not help."""


class File(Part):
    """What a file on the volume has to be."""

    sha256: str


class Marker(Part):
    """What the benchmark writes last: how it ended, and every file by its name in the folder."""

    exit_code: int
    run_id: str
    files: Annotated[dict[str, File], AfterValidator(inside)]


class Listing(Part):
    """What is read of ``run.json``: the sha256 of every other file of the run's folder."""

    files: Annotated[dict[str, str], AfterValidator(inside)]


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
        '{ echo wanted; : >"$1.part"; }; }'
    )
    if not pod.run("sh", "-c", script, "sh", target, wanted):
        return
    # The channel of standard input has no end: the size says when a part is whole. A part that is
    # sent again starts at its own place.
    write = (
        'head -c "$2" | dd of="$1.part" bs=65536 seek="$3" conv=notrunc oflag=seek_bytes '
        "iflag=fullblock 2>/dev/null"
    )
    for start in range(0, len(content), PART_BYTES):
        part = content[start : start + PART_BYTES]
        pod.run("sh", "-c", write, "sh", target, str(len(part)), str(start), stdin=part)
    finish = 'sha256sum "$1.part" | grep -q "^$2" && mv "$1.part" "$1"'
    pod.run("sh", "-c", finish, "sh", target, wanted)


def download(
    pod: Pod,
    folder: str,
    sums: dict[str, str],
    target: Path,
    show: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Copy the files of a folder that pages read, and return their names.

    What an earlier try brought is kept; ``show`` gets how much is there.

    Parameters
    ----------
    sums : dict of str to str
        The sha256 of each file, by its name in the folder; it lies inside.

    Raises
    ------
    Spoiled
        If a file does not arrive as it has to be.
    """
    names = [name for name in sums if Path(name).name not in SKIPPED]
    for count, name in enumerate(names, 1):
        for size in _fetch(pod, f"{folder}/{name}", sums[name], target / name):
            show(f"{size / 1e6:.0f} MB of file {count} of {len(names)}")
    return names


def _fetch(pod: Pod, source: str, sha256: str, path: Path) -> Iterator[int]:
    """Copy one file, from where an earlier try ended; yield its bytes here, after each part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    script = 'tail -c +"$2" "$1" | head -c "$3"'
    for _ in range(2):  # a file that is here but wrong is fetched once more from its start
        with path.open("ab") as out:
            part = bytes(PART_BYTES)
            while len(part) == PART_BYTES:
                arguments = (source, str(out.tell() + 1), str(PART_BYTES))
                part = pod.run("sh", "-c", script, "sh", *arguments)
                out.write(part)
                yield out.tell()
        with path.open("rb") as here:
            got = hashlib.file_digest(here, "sha256").hexdigest()
        if got == sha256:
            return
        path.unlink()
    raise Spoiled(
        f"{source}: expected sha256 {sha256[:12]} as when it was written, got {got[:12]}; the "
        "volume changed since; run again"
    )


def bring(pod: Pod, folder: str, run_id: str, local: Path) -> dict[str, bytes]:
    """Return the artifacts of a try by name, and leave them in the folder here.

    Raises
    ------
    Spoiled
        If they are not whole, or not those of this try.
    DependencyError
        If the connection is lost for good.
    """
    try:
        marker = Marker.model_validate_json(pod.run("cat", f"{folder}/{MARKER}"))
    except (Failed, ValueError):
        raise Spoiled(
            f"{folder}/{MARKER}: the benchmark did not finish its artifacts, or others are there; "
            "see its log in diagnostics/, and run again"
        ) from None
    if marker.exit_code or marker.run_id != run_id:
        raise Spoiled(
            f"{folder}: expected the artifacts of a finished run {run_id}, got "
            f"{marker.run_id} with exit code {marker.exit_code}; run again"
        )
    sums = {name: file.sha256 for name, file in marker.files.items()}
    with Display("collect") as display:
        names = download(pod, folder, sums, local, display.show)
    return {name: (local / name).read_bytes() for name in names}


def bring_run(pod: Pod, folder: str, target: Path) -> None:
    """Copy a run folder; every file arrives as its ``run.json`` says.

    Raises
    ------
    Spoiled
        If it is no run's, or a file of it is altered or missing.
    Failed
        If there is none.
    """
    listed = pod.run("cat", f"{folder}/run.json")
    try:
        sums = Listing.model_validate_json(listed).files
    except ValueError:
        raise Spoiled(f"{folder}/run.json: expected a run's, got another file") from None
    sums["run.json"] = hashlib.sha256(listed).hexdigest()
    download(pod, folder, sums, target)
