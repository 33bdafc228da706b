"""Files written whole, and results kept between pages: once for the runs, study and code at hand.

Input: a key of everything that a result depends on. Output: the result, from the cache if it can.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

Result = TypeVar("Result")
# A pickle of pandas' objects is read by the version that wrote it.
VERSIONS = f"numpy{version('numpy')}-pandas{version('pandas')}"


def cache_folder() -> Path:
    """Return the folder of kept traces and results: ``KVAB_CACHE``, else the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KVAB_CACHE") or Path(base) / "kvab")


def write(path: Path, content: bytes | Path) -> None:
    """Write a file, or a copy of one, and its folder; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def write_beside(path: Path, content: bytes) -> None:
    """Write a file under another name in its folder and rename it in, so that it is whole."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name), content)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    finally:
        Path(name).unlink(missing_ok=True)


def source_digest() -> str:
    """Return the sha256 of this package's source: a change of the code is a change of the key."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.[pj][ys]")):  # and scripts of pages
        digest.update(path.read_bytes())
    return digest.hexdigest()


def remember(key: str, name: str, compute: Callable[[], Result]) -> Result:
    """Return a result from the user's cache, or compute it and keep it there.

    Pages are made side by side: who comes second waits for the first instead of computing it
    again. A cache that cannot be read or written costs time and nothing else.
    """
    path = cache_folder() / "results" / f"{key[:32]}-{name}-{VERSIONS}.pickle"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError:
        return compute()
    try:
        with contextlib.suppress(Exception):  # a damaged pickle may raise anything
            return pickle.loads(path.read_bytes())
        result = compute()
        with contextlib.suppress(OSError):
            write_beside(path, pickle.dumps(result))
        return result
    finally:
        lock.release()
