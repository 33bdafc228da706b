"""A process that outlives its parent by a moment, to stop what the parent left running.

Input: a folder as argument, and lines ``PID START`` on standard input: the leader of a session of
processes and when it started. When the input ends, because the parent closed it or died in
whatever way, every process of those sessions is killed and the folder is removed. Nothing else
can promise that no process is left after a SIGKILL of the parent. It is run as a file and imports
nothing of kvab, so that it is there at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from typing import NamedTuple

import psutil


class Session(NamedTuple):
    """The session that a process leads: its number, and when that process started."""

    leader: int
    start: float


def members(session: Session) -> list[psutil.Process]:
    """Return the living processes of a session; the leader itself may be gone."""
    leader, start = session
    with contextlib.suppress(psutil.NoSuchProcess):
        if abs(psutil.Process(leader).create_time() - start) > 1:
            return []  # the session is gone, and its number belongs to another program
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return found


def stop(sessions: list[Session], grace_s: float) -> None:
    """Ask every process of the sessions to end, and kill those that have not after a while."""
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        alive = [process for session in sessions for process in members(session)]
        for process in alive:
            try:
                process.send_signal(signum)
            except psutil.Error:
                continue
        deadline = time.monotonic() + wait_s
        while any(members(session) for session in sessions) and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> None:
    """Wait for the end of the input, then stop what it named and remove the folder."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with its input, and not before
    named = [line.split() for line in sys.stdin]
    stop([Session(int(leader), float(start)) for leader, start in named], grace_s=2.0)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
