"""Clients of the emulated cluster in processes of their own, and what ends them.

A `Client` takes the five steps without a notebook; forked from a server that has everything
imported, it starts in a tenth of a second. `kvab_run` is the command as a person starts it.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "kvab", "run", "--cluster", "emulated"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "kubernetes.client", "kubernetes.config",
    "kubernetes.stream", "kvab.requests.aiperf", "kvab.clusters.kubernetes.run",
    "kvab.runs.replay"])  # fmt: skip


def kvab_run(emulated, trace):
    """Start `kvab run`."""
    command = [*COMMAND, "--configuration", "disagg-kv-router", "--trace", str(trace)]
    return subprocess.Popen(
        [*command, "--runs", str(emulated.runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Client:
    """A client that was started; that of a user of its own has a folder of runs of its own."""

    def __init__(self, emulated, trace, user=None, **given):
        runs = emulated.folder / f"runs-{user}" if user else emulated.runs
        given = {"trace": str(trace), "runs": str(runs), **given}
        self.log = emulated.folder / f"client-{user}.log"
        names = ("KUBECONFIG", "KVAB_ROOT")
        environment = {name: os.environ[name] for name in names} | (
            {"LOGNAME": user} if user else {}
        )
        self.process = SERVER.Process(target=_serve, args=(given, environment, str(self.log)))
        self.process.start()
        self.pid = self.process.pid

    def send(self, signum):
        os.kill(self.pid, signum)

    def ended(self, timeout_s=120):
        """Return its exit code and the last line that it printed."""
        self.process.join(timeout_s)
        text = self.log.read_text()
        assert "Traceback" not in text
        return self.process.exitcode, (text.strip().splitlines() or [""])[-1]


def _serve(given, environment, log):
    """Be the client: end with the exit code, and the one line, that the command line has."""
    from kvab.errors import KvabError
    from kvab.runs.replay import start

    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(environment)
    study, configuration = "recipes/qwen3-32b/study.yaml", "disagg-kv-router"
    try:
        start(study, "emulated", configuration, **given).run()
    except KvabError as error:
        print(f"kvab: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def wait_for(condition, what, timeout_s=60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"no {what} in {timeout_s} s")


def hold(emulated):
    """Return a file; until it is removed, the benchmark sends no second request."""
    path = emulated.folder / "hold"
    path.touch()
    emulated.node.environment["HOLD"] = str(path)
    return path


def wait_for_records(emulated):
    records = emulated.node.volume / "artifacts"
    wait_for(lambda: any(records.rglob("profile_export.jsonl")), "records of the replay")
