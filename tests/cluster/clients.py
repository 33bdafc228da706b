"""Clients of the emulated cluster as processes of their own, and what ends them."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = [sys.executable, "-m", "kvab", "run", "--cluster", "emulated"]


def kvab_run(emulated, trace, *options, user=None):
    """Start `kvab run`; that of a user of its own has a folder of runs of its own."""
    runs = emulated.folder / f"runs-{user}" if user else emulated.runs
    command = [*COMMAND, "--configuration", "disagg-kv-router", "--trace", str(trace)]
    return subprocess.Popen(
        [*command, "--runs", str(runs), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **({"LOGNAME": user} if user else {})},
    )


def wait_for(condition, what, timeout_s=60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"no {what} in {timeout_s} s")


def kill_nine(process):
    """End a command and what it started as a power cut would."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
