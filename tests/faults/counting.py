"""What is counted of a fault: every count but the injected and the refused ones aims at zero."""

import hashlib
from dataclasses import asdict, dataclass, fields

from kvab.errors import InputError
from kvab.runs import folder as runs

WRONG = {
    "lost": "runs lost",
    "duplicated": "runs made twice",
    "altered": "results altered",
    "locked": "runs left locked",
    "processes": "processes left running",
    "objects": "objects left on a cluster",
    "leftovers": "files left over",
    "crashed": "tracebacks",
}


@dataclass
class Tally:
    """Counts of one fault on one kind of cluster; those named in `WRONG` aim at zero.

    Attributes
    ----------
    injected, completed, refused : int
        Faults brought about; runs that were complete at the end; starts that ended by themselves
        with one line that says why.
    lost, duplicated, altered : int
        Runs that are gone or never complete; folders, Jobs or artifact sets too many; folders that
        are torn or differ from an undisturbed run.
    locked, crashed : int
        Starts refused after the other one is dead; starts that ended with a traceback.
    processes, objects, leftovers : int
        Left running; left on the cluster; files left beside runs and in the temporary folder.
    seconds : float
        What it took, summed over starts side by side.
    """

    injected: int = 0
    completed: int = 0
    refused: int = 0
    lost: int = 0
    duplicated: int = 0
    altered: int = 0
    locked: int = 0
    processes: int = 0
    objects: int = 0
    leftovers: int = 0
    crashed: int = 0
    seconds: float = 0.0

    def __add__(self, other):
        names = [each.name for each in fields(self)]
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def rounded(self):
        """Return the counts as plain values."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}

    def wrong(self):
        """Return the counts that should be zero and are not."""
        return {name: value for name, value in asdict(self).items() if name in WRONG and value}


def digest(path):
    return hashlib.sha256((path / "run.json").read_bytes()).hexdigest()


class Witness:
    """Looks at one place again and again, and counts what went wrong there, each thing once."""

    def __init__(self, place, references, tell=lambda line: None):
        self.place, self.references, self.tally = place, references, Tally()
        self.known, self.planted, self.seen, self.stopped = {}, set(), set(), 0
        self.tell = tell

    def count(self, name, what):
        if (name, what) not in self.seen:
            self.seen.add((name, what))
            setattr(self.tally, name, getattr(self.tally, name) + 1)
            self.tell(f"{self.place.kind}: {name}: {what}")

    def folders(self):
        path = self.place.path
        return [each for each in (path, *path.parent.glob(f"{path.name}.set-aside-*"))
                if each.exists() and each not in self.planted]  # fmt: skip

    def look(self):
        """Check every run folder: whole, as an undisturbed run is, still there, there once."""
        found = {}
        for folder in self.folders():
            try:
                run = runs.read_run(folder)
            except InputError as error:
                self.count("altered", f"{folder.name}: {error}")
                continue
            if run.manifest.status != "complete":
                continue
            expected = self.references[run.manifest.trace.rows]
            if not self.place.same(run, expected):
                self.count("altered", f"{folder.name}: differs from an undisturbed run")
            key = str(sorted(run.manifest.depends_on.items()))
            if key in found:
                self.count("duplicated", f"{folder.name} and {found[key]}")
            found[key] = folder.name
            self.known[digest(folder)] = run.manifest.trace.rows
        there = {digest(folder) for folder in self.folders() if (folder / "run.json").is_file()}
        for gone in self.known.keys() - there:
            self.count("lost", f"the complete run {gone[:12]} is gone")

    def judge(self, code, said):
        """Count how a client that was not killed ended: done, refused in one line, or badly."""
        lines = said.strip().splitlines()
        if code in (2, 3) and "Traceback" not in said and lines[-1].startswith("kvab: "):
            self.tally.refused += 1
            self.stopped += 1
        elif code not in (0, 130):
            self.count("crashed", f"exit code {code}: {said.strip()[-1500:]}")
            self.stopped += 1

    def settle(self):
        """Count what is left once a run is complete."""
        for line in self.place.settled():
            self.count("processes", line)
        for name in self.place.objects():
            self.count("objects", name)
        for path in self.place.beside():
            self.count("leftovers", path)
        # A start that ended by itself took down what it had started, and its set is not used.
        sets = self.place.artifact_sets() - len(self.known) - self.stopped
        if sets > 0:
            self.count("duplicated", f"{sets} more sets of artifacts than starts that need one")

    def finish(self, rows, tries=3):
        """Start again until the run is complete, and count what kept it from that."""
        for _ in range(tries):
            client = self.place.start(rows)
            code, said = client.end(self.place.timeout_s), client.said()
            self.look()
            if code == 0:
                self.tally.completed += 1
                break
            locked = code == 3 and ("going on" in said or "holds the GPUs" in said)
            self.count(
                "locked" if locked else "crashed", f"rerun ended with {code}: {said[-1500:]}"
            )
        else:
            self.count("lost", f"the run of {rows} rows is not complete after {tries} starts")
        complete = {self.known.get(digest(each)) for each in [self.place.path]
                    if (each / "run.json").is_file()}  # fmt: skip
        if rows not in complete:
            self.count("lost", f"no complete run of {rows} rows stands in its place")
        self.settle()
