"""Programs on this machine, started together and stopped together.

Input: commands. Output: running processes with a log each, in sessions of their own. What is left
of them when this process ends, in whatever way, is stopped by `kvab.clusters.live.guard`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from kvab.clusters.live import guard
from kvab.console import mask
from kvab.errors import DependencyError

TAIL_LINES = 8
GRACE_S = 10.0
LONGEST_FOLDER = 30  # characters: below it lie sockets of AIPerf, whose paths end at 107


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Program:
    """A program that was started, and its log."""

    name: str
    process: subprocess.Popen
    session: guard.Session
    log: Path

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of its log, joined by semicolons."""
        printed = mask(self.log.read_text(encoding="utf-8", errors="replace")).splitlines()
        kept = [line.strip()[:300] for line in printed if line.strip()][-lines:]
        return "; ".join(kept) or "it printed nothing"


class Programs:
    """Programs that share a folder, gone when this object is closed or its process ends."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        parent = parent if len(parent) <= LONGEST_FOLDER else "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="kvab-live-", dir=parent))
        self.started: list[Program] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-P", guard.__file__], stdin=subprocess.PIPE, text=True,
            start_new_session=True, cwd="/",
        )  # fmt: skip
        self._tell("folder", self.folder)

    def _tell(self, kind: str, value: object) -> None:
        assert self._guard.stdin is not None  # it is a pipe
        self._guard.stdin.write(f"{kind} {value}\n")
        self._guard.stdin.flush()

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> Program:
        """Start a program in a session of its own, its output going to ``<name>.log``.

        Raises
        ------
        DependencyError
            If it cannot be started.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    cwd=self.folder, env={**os.environ, **environment}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise DependencyError(f"{name} did not start: {error}") from None
        session = guard.session_of(process.pid)
        self._tell("session", f"{session.leader} {session.start}")
        self.started.append(Program(name, process, session, log))
        return self.started[-1]

    def check(self, *, but: Program | None = None) -> None:
        """Raise if a program has ended, except one that may.

        Raises
        ------
        DependencyError
            Naming the program, its exit code and the last lines of its log.
        """
        for program in self.started:
            code = program.process.poll()
            if code is not None and program is not but:
                raise DependencyError(f"{program.name} ended with {code}: {program.tail()}")

    def memory_gb(self) -> float:
        """Return what their processes hold (RSS; a page that two share counts twice), in GB."""
        held = 0
        for process in (p for program in self.started for p in guard.members(program.session)):
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        return round(held / 1e9, 2)

    def logs(self) -> dict[str, bytes]:
        """Return what every program has printed, by file name."""
        return {program.log.name: program.log.read_bytes() for program in self.started}

    def close(self) -> None:
        """Stop everything and remove the folder; safe to call again."""
        guard.stop([program.session for program in self.started], GRACE_S)
        for program in self.started:
            program.process.wait()
        self.started.clear()
        if self._guard.poll() is None:
            assert self._guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.close()
            self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
