"""Files written whole, locks, and results kept between pages for the runs, study and code at hand.

Input: a key of everything that a result depends on. Output: the result, from the cache if it can.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from kvab.errors import DependencyError

Result = TypeVar("Result")
KEPT_DAYS = 30  # of a result that nobody reads
# A pickle of pandas' objects is read by the version that wrote it.
VERSIONS = f"numpy{version('numpy')}-pandas{version('pandas')}"


def cache_folder() -> Path:
    """Return the folder of kept traces and results: ``KVAB_CACHE``, else the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("KVAB_CACHE") or Path(base) / "kvab")


def sha256_of(content: bytes | Path) -> str:
    """Return the SHA-256 of bytes or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """Write a file and its folder: under another name, then renamed, so that it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name), content)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    finally:
        Path(name).unlink(missing_ok=True)


class Lock:
    """A right that one process has at a time, free again when that process ends, in whatever way.

    Whoever comes second is told what is ``busy``, by which process and with ``what``.
    """

    def __init__(self, file: Path, busy: str, what: str = "") -> None:
        self.file, self.busy = file, busy
        self.owner = ", ".join(filter(None, (f"process {os.getpid()}", what)))
        self._lock = FileLock(file, blocking=False)

    def take(self) -> None:
        """Take it.

        Raises
        ------
        DependencyError
            If another process has it, which is named.
        OSError
            If its file cannot be written.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
            self.file.write_text(self.owner, encoding="utf-8")
        except Timeout:
            owner = str(self.file)
            with contextlib.suppress(OSError):
                owner = self.file.read_text(encoding="utf-8") or owner
            raise DependencyError(f"{self.busy} ({owner}); wait for it to end") from None
        except OSError:
            self.leave()
            raise

    def leave(self) -> None:
        """Let the next process have it; safe to call again."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self.file.unlink()  # whoever opened it meanwhile sees that it is gone, and retries
            self._lock.release()


def source_digest() -> str:
    """Return the sha256 of this package's source: a change of the code is a change of the key."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.[pj][ys]")):  # and scripts of pages
        digest.update(path.read_bytes())
    return digest.hexdigest()


def remember(key: str, name: str, compute: Callable[[], Result]) -> Result:
    """Return a result from the user's cache, or compute it and keep it there.

    Pages are made side by side: who comes second waits for the first instead of computing it
    again. A cache that cannot be read or written costs time and nothing else. Who writes a result
    removes those that were not read for `KEPT_DAYS`.
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
            result: Result = pickle.loads(path.read_bytes())
            with contextlib.suppress(OSError):
                path.touch()
            return result
        result = compute()
        with contextlib.suppress(OSError):
            write_beside(path, pickle.dumps(result))
            _remove_unread(path.parent)
        return result
    finally:
        lock.release()


def _remove_unread(folder: Path) -> None:
    """Remove results, and their locks, that nobody has asked for in `KEPT_DAYS`."""
    oldest_s = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # somebody else may remove it too
            if path.stat().st_mtime < oldest_s:
                path.unlink()
