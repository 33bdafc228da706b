"""The artifacts of a finished benchmark, from the volume to a folder here.

Input: a pod that mounts the volume. Output: every file's content. What an earlier try brought
stays in the folder until all of it is here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from kvab.clusters.kubernetes.podexec import Pod
from kvab.clusters.kubernetes.podfiles import download, read_marker
from kvab.console import Display


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
