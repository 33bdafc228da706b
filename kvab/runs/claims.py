"""One start of a run at a time, and nothing half-written beside it.

Input: a run's folder. Output: a lock beside it, which is free again when its process ends, in
whatever way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from kvab.errors import DependencyError, InputError, KvabError, remedy


class Claim:
    """The right to make one run; held by at most one process."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.with_name(f".{path.name}.lock")
        self._lock = FileLock(self.file, blocking=False)

    def take(self) -> None:
        """Hold the run, and remove what a start that died has left half-written.

        Raises
        ------
        DependencyError
            If another start of the run is going on, naming its process.
        InputError
            If the run's folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self.file.write_text(f"process {os.getpid()}", encoding="utf-8")
            for pattern in (f".{self.path.name}-*", f"..{self.path.name}.state.json-*"):
                for left in self.path.parent.glob(pattern):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
        except Timeout:
            raise DependencyError(
                f"{self.path}: another start of this run is going on ({self._who()}); "
                "wait for it to end"
            ) from None
        except OSError as error:
            self.leave()
            raise InputError(
                f"{self.path}: cannot write here ({error.strerror}); {remedy(error)}"
            ) from None

    def _who(self) -> str:
        with contextlib.suppress(OSError):
            return self.file.read_text(encoding="utf-8") or str(self.file)
        return str(self.file)

    def leave(self) -> None:
        """Let the next start have the run; safe to call again."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self.file.unlink()  # whoever opened it meanwhile sees that it is gone, and retries
            self._lock.release()

    def forget(self) -> None:
        """Remove the lock of a start that died when its run was complete already."""
        if self.file.exists():
            with contextlib.suppress(KvabError):
                self.take()
                self.leave()
