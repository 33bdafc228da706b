"""The client of a run, in a process of its own: the five steps, with the exits of `kvab run`.

Forked from a server that has everything imported, so that a start takes a tenth of a second.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

STEPS = ("prepare", "deploy", "replay", "collect", "teardown")
MARK = "KVAB_FAULTS"
DAY_S = 86_400.0
IMPORTED = """aisimulate.compiler aisimulate.config.cli aisimulate.config_adapter aisimulate.runner
    aisimulate_core.sdk.perf_database dynamo.llm dynamo.mocker.config dynamo.replay.api
    dynamo.router.simulation kubernetes.client kubernetes.config kubernetes.stream
    kvab.requests.aiperf kvab.clusters.kubernetes.run kvab.clusters.live
    kvab.runs.replay kvab.clusters.simulated"""
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Order:
    """What one client is asked to do; ``wait_at`` names the steps at whose boundary it waits."""

    cluster: str
    configuration: str
    runs: Path
    trace: Path
    rows: int
    log: Path
    environment: dict = field(default_factory=dict)
    wait_at: tuple = ()
    clock_seed: int | None = None
    part_bytes: int | None = None


def unsettle(seed):
    """Make the wall clock of this process jump up to a day, either way, at every look."""
    jumps, true = random.Random(seed), time.time

    class Jumping(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(seconds=jumps.uniform(-DAY_S, DAY_S))

    time.time = lambda: true() + jumps.uniform(-DAY_S, DAY_S)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "kvab" and getattr(module, "datetime", None) is datetime:
            module.datetime = Jumping


def take_steps(order, told):
    """Take the five steps; before each tell its name, and wait to be let go where that is asked."""
    from kvab.clusters import open_cluster
    from kvab.clusters.kubernetes import files
    from kvab.runs.replay import start

    if order.part_bytes:
        files.PART_BYTES = order.part_bytes
    replay = start(
        "recipes/qwen3-32b/study.yaml",
        order.cluster,
        order.configuration,
        rows=order.rows,
        trace=str(order.trace),
        runs=order.runs,
    )
    try:
        for step in STEPS:
            told.send(step)
            if step in order.wait_at:
                told.recv()
            getattr(replay, step)()
    except KeyboardInterrupt:  # as in `kvab run`
        open_cluster(replay.job.cluster).start(replay.job).teardown(keep_answers=False)
        raise


def outcome(order, told):
    """Return the exit code of a run that was not interrupted; why it failed is one line."""
    from kvab.errors import KvabError

    try:
        take_steps(order, told)
    except KvabError as error:
        print(f"kvab: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def serve(order, told):
    """Be the client: end with the exit code, and the one line, that the command line has."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.update(order.environment)
    tempfile.tempdir = None
    if order.clock_seed is not None:
        unsettle(order.clock_seed)
    try:
        code = outcome(order, told)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what comes now comes too late
    except KeyboardInterrupt:
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


class Client:
    """A client that was started."""

    def __init__(self, order):
        order.log.unlink(missing_ok=True)
        self.order, self.at, self.since_s = order, "", time.monotonic()
        self.told, theirs = SERVER.Pipe()
        self.process = SERVER.Process(target=serve, args=(order, theirs), daemon=False)
        self.process.start()
        theirs.close()

    def reach(self, step, timeout_s):
        """Return whether the client came to the boundary before a step."""
        end = time.monotonic() + timeout_s
        while self.at != step and time.monotonic() < end:
            try:
                if self.told.poll(0.2):
                    self.at = self.told.recv()
            except (EOFError, ConnectionError):
                return False
        return self.at == step

    def go(self):
        """Let it go on from the boundary where it waits."""
        self.told.send("go")

    def send(self, signum):
        """Return whether a signal found it alive."""
        if not self.process.is_alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signum)
            return True
        return False

    def end(self, timeout_s):
        """Return its exit code; one that does not end in time is killed and has none."""
        self.process.join(timeout_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return None
        self.told.close()
        return self.process.exitcode

    def said(self):
        """Return what it printed."""
        return self.order.log.read_text(errors="replace") if self.order.log.exists() else ""


SERVER.set_forkserver_preload(["client", *IMPORTED.split()])
