"""Where runs are made and harmed: a folder of one's own for each of the three kinds of cluster."""

import json
import shutil
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
from client import MARK, STEPS, Client, Order

from kvab.runs import folder as runs

ROOT = Path(__file__).parents[2]
ROWS = 12
KINDS = ("simulated", "live", "kubernetes")
SCALE = 12  # limits of the emulated cluster are the profile's own, divided by this
LIMITS = {"prepare_s": 50, "deploy_s": 600, "teardown_s": 75, "retry_s": 25, "grace_s": 5,
          "lease_s": 5, "poll_s": 0.1}  # fmt: skip


def write_trace(path):
    """Write a made-up trace of four bursts, three seconds apart."""
    rows = [
        {
            "timestamp": 1000 * (row // 3),
            "input_length": 512 * (2 + row % 3) - row,
            "output_length": 5 + row % 4,
            "hash_ids": [0, *range(10 * row + 1, 10 * row + 2 + row % 3)],
        }
        for row in range(ROWS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Place:
    """A folder with runs, temporary files, cache and trace; ``on`` is where the first three lie."""

    kind, cluster, configuration = "simulated", "simulated-h200", "agg-round-robin"
    timeout_s = 300  # for a busy machine; an undisturbed run takes seconds

    def __init__(self, on=None):
        # Short, as the names of sockets below it must be.
        self.folder = Path(tempfile.mkdtemp(prefix="kvf-", dir="/tmp"))
        self.on = on or self.folder
        self.make()
        self.trace = write_trace(self.folder / "trace.jsonl")
        self.number = 0

    def make(self):
        for name in ("tmp", "cache", "runs"):
            (self.on / name).mkdir(exist_ok=True)

    @property
    def root(self):
        return ROOT

    def environment(self):
        told = {"KVAB_ROOT": self.root, "TMPDIR": self.on / "tmp", "KVAB_CACHE": self.on / "cache"}
        return {MARK: str(self.folder), **{name: str(path) for name, path in told.items()}}

    def start(self, rows=ROWS, **more):
        """Return a client that was started."""
        self.number += 1
        log = self.folder / f"client-{self.number}.log"
        order = Order(self.cluster, self.configuration, self.on / "runs", self.trace, rows, log,
                      self.environment(), **more)  # fmt: skip
        return Client(order)

    @property
    def path(self):
        return self.on / "runs" / "qwen3-32b" / self.cluster / self.configuration / "r1"

    def beside(self):
        """Return what lies where runs lie, and is neither a run nor one set aside."""
        kept = (self.path.name, f"{self.path.name}.set-aside-")
        found = [path for path in self.path.parent.glob("*")
                 if path.name != kept[0] and not path.name.startswith(kept[1])]  # fmt: skip
        return [str(path) for path in [*found, *(self.on / "tmp").glob("*")]]

    def processes(self):
        """Return the living processes that a client of this place has started."""
        mark, found = f"{MARK}={self.folder}", []
        for process in psutil.process_iter():
            try:
                own = mark in Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
                if own or process.cwd().startswith(str(self.folder)):
                    found.append(" ".join(process.cmdline()) or str(process.pid))
            except (psutil.Error, OSError):
                continue
        return found

    def settled(self, wait_s=15.0):
        """Return the processes that are still there after a while in which they may go."""
        end = time.monotonic() + wait_s
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def objects(self):
        """Return what is left on the cluster and should not be."""
        return []

    def artifact_sets(self):
        """Return how many whole sets of artifacts lie on the cluster."""
        return 0

    def same(self, run, reference):
        """Whether a complete run is what an undisturbed one is."""
        return run.manifest.files["requests.parquet"] == reference.manifest.files[
            "requests.parquet"]  # fmt: skip

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def alike(run, reference):
    """Whether two runs agree in what their clocks do not decide: rows, tokens, errors, counts."""
    columns = ["row", "input_tokens", "output_tokens", "error"]
    counts = run.manifest.counts == reference.manifest.counts
    return counts and run.requests[columns].equals(reference.requests[columns])


class LivePlace(Place):
    """Dynamo's processes and AIPerf."""

    kind, cluster, timeout_s = "live", "live-cpu", 600

    def same(self, run, reference):
        return alike(run, reference)


class ClusterPlace(Place):
    """The emulated cluster, with one server and one checkout for the place."""

    kind, cluster, configuration = "kubernetes", "emulated", "disagg-kv-router"

    def __init__(self, on=None):
        super().__init__(on)
        if (tests := str(ROOT / "tests" / "cluster")) not in sys.path:
            sys.path.insert(0, tests)
        from emulated import Emulated

        checkout = self.folder / "checkout"
        for name in ("recipes", "notebooks"):
            shutil.copytree(ROOT / name, checkout / name)
        self.emulated = Emulated(self.folder, checkout)
        self.emulated.profile(limits=LIMITS)

    @property
    def root(self):
        return self.folder / "checkout"

    def environment(self):
        return {**super().environment(), "KUBECONFIG": str(self.emulated.kubeconfig)}

    def objects(self):
        halves = [str(path) for path in self.emulated.node.volume.rglob("*.part")]
        return [*self.emulated.left(), *halves]

    def artifact_sets(self):
        return len(list(self.emulated.node.volume.rglob("finished.json")))

    def same(self, run, reference):
        return alike(run, reference)

    def close(self):
        self.emulated.stop()
        super().close()


PLACES = {"simulated": Place, "live": LivePlace, "kubernetes": ClusterPlace}
_references, _making = {}, {kind: threading.Lock() for kind in KINDS}


def reference(kind, rows=ROWS):
    """Return an undisturbed run of a kind and how long each step took, in seconds; made once."""
    with _making[kind]:
        if (kind, rows) not in _references:
            place = PLACES[kind]()
            try:
                client, at_s = place.start(rows), []
                for step in STEPS:
                    client.reach(step, place.timeout_s)
                    at_s.append(time.monotonic())
                code = client.end(place.timeout_s)
                if code != 0:
                    raise RuntimeError(f"{kind}: the undisturbed run ended with {code}: "
                                       f"{client.said()[-2000:]}")  # fmt: skip
                spans = [after - at for at, after in pairwise([*at_s, time.monotonic()])]
                took_s = dict(zip(STEPS, spans, strict=True))
                _references[kind, rows] = runs.read_run(place.path), took_s
            finally:
                place.close()
        return _references[kind, rows]
