"""A small disk of one's own, to be filled and made read-only; needs a mount namespace."""

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

PAGE_KIB, ROOM_KIB = 4, 64 * 1024


@contextmanager
def small_disk():
    """Give a folder on a disk of its own, and a function that sets its size in KiB and access."""
    folder = Path(tempfile.mkdtemp(prefix="kvf-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_KIB}k", "none", str(folder)]
    subprocess.run(mount, check=True)

    def resize(size_kib, access="rw"):
        options = f"remount,{access},size={max(size_kib, PAGE_KIB)}k"
        subprocess.run(["mount", "-o", options, str(folder)], check=True)

    try:
        yield folder, resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def used_kib(folder):
    return shutil.disk_usage(folder).used // 1024
