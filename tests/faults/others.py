"""Faults that are no kills: full disks, clocks that jump, two clients, a cluster that is away.

Each takes a kind of cluster, a seed, a function that is told what went wrong, and ``every``: of its
cases only each n-th is brought about.
"""

import random
import time
from contextlib import contextmanager

from client import STEPS
from counting import Tally, Witness
from disks import ROOM_KIB, small_disk, used_kib
from kills import FEWER, references
from places import PLACES, ROWS, SCALE

# Free space at each start: a page more each time, or where every start takes long, a few sizes.
FREE_KIB = {"simulated": range(0, 160, 4), "live": (0, 64, 1024), "kubernetes": range(0, 160, 4)}
OUTAGE_S = 60 / SCALE
RESETS = 200
PART_BYTES = 400


@contextmanager
def watched(kind, tell, on=None):
    """Give a place and its witness, and take the place away."""
    place = PLACES[kind](on)
    try:
        yield place, Witness(place, references(kind), tell)
    finally:
        place.close()


def run_against(witness, rows=ROWS, look=True, **more):
    """Let one client run under the fault; return whether it came through."""
    client = witness.place.start(rows, **more)
    code = client.end(witness.place.timeout_s)
    witness.tally.injected += 1
    witness.judge(code, client.said())
    if look:
        witness.look()
    return code == 0


def full_disk(kind, seed, tell, every=1):
    """Give a run more room at each start, so that each of its writes fails in turn."""
    with small_disk() as (disk, resize), watched(kind, tell, disk) as (_, witness):
        witness.finish(FEWER)  # a complete run is at stake
        for free_kib in FREE_KIB[kind][::every]:
            resize(used_kib(disk) + free_kib)
            if run_against(witness):
                witness.tally.injected -= 1  # there was room enough
                break
        resize(ROOM_KIB)
        witness.finish(ROWS)
        return witness.tally


def read_only(kind, seed, tell, every=1):
    """Make results unwritable, for a run that is missing and for one that is complete."""
    with small_disk() as (disk, resize), watched(kind, tell, disk) as (_, witness):
        resize(ROOM_KIB, "ro")
        run_against(witness)
        resize(ROOM_KIB)
        witness.finish(ROWS)
        resize(ROOM_KIB, "ro")
        if not run_against(witness):
            witness.count("crashed", "a complete run needs no writing, but a start of it failed")
        resize(ROOM_KIB)
        return witness.tally


def jumping_clock(kind, seed, tell, every=1):
    """Let the client's wall clock jump up to a day back and forth at every look."""
    with watched(kind, tell) as (_, witness):
        for number, rows in enumerate((ROWS, FEWER)):
            run_against(witness, rows, clock_seed=seed + number)
            witness.finish(rows)
        return witness.tally


def two_clients(kind, seed, tell, every=1):
    """Start the same run twice, the second one somewhere within the first."""
    draw = random.Random(seed)
    steps = STEPS if kind != "live" else STEPS[:3:2]
    return sum(
        (_second(kind, step, draw.uniform(0, 0.2), tell) for step in steps[::every]), Tally()
    )


def _second(kind, step, delay_s, tell):
    with watched(kind, tell) as (place, witness):
        first, second = place.start(), place.start(wait_at=("prepare",))
        first.reach(step, place.timeout_s)
        second.reach("prepare", place.timeout_s)
        time.sleep(delay_s)
        second.go()
        witness.tally.injected += 1
        ends = [(each.end(place.timeout_s), each.said()) for each in (first, second)]
        for code, said in ends:
            witness.judge(code, said)
        if all(code != 0 for code, _ in ends):
            witness.count("locked", "neither of two clients came through")
        witness.look()
        witness.finish(ROWS)
        return witness.tally


class Outage:
    """An API server that closes every connection for a while."""

    cut, status = None, 0

    def __init__(self, seconds):
        self.until_s = time.monotonic() + seconds

    def hits(self, method, path):
        return time.monotonic() < self.until_s


def api_down(kind, seed, tell, every=1):
    """Take the API server away for a minute, in the scale of the profile's limits."""
    draw = random.Random(seed)
    return sum(
        (_outage(kind, step, draw.uniform(0, 0.1), tell) for step in STEPS[::every]), Tally()
    )


def _outage(kind, step, delay_s, tell):
    with watched(kind, tell) as (place, witness):
        client = place.start(wait_at=(step,))
        client.reach(step, place.timeout_s)
        client.go()
        time.sleep(delay_s)
        place.emulated.server.faults.append(Outage(OUTAGE_S))
        witness.tally.injected += 1
        witness.judge(client.end(place.timeout_s), client.said())
        witness.look()
        witness.finish(ROWS)
        return witness.tally


class Resets:
    """Every part of an artifact is cut off once, at a random byte, before it arrives whole."""

    def __init__(self, seed):
        self.draw, self.met = random.Random(seed), set()

    @property
    def cut(self):
        return self.draw.randrange(PART_BYTES)

    def hits(self, method, command):
        fresh = method == "EXEC" and "tail -c" in command and command not in self.met
        self.met.add(command)
        return fresh


def resets(kind, seed, tell, least=RESETS):
    """Reset connections while the artifacts are collected, each part of them once."""
    total = Tally()
    while total.injected < least:
        with watched(kind, tell) as (place, witness):
            fault = Resets(seed + total.injected)
            place.emulated.server.faults.append(fault)
            client = place.start(part_bytes=PART_BYTES)
            witness.judge(client.end(10 * place.timeout_s), client.said())
            witness.tally.injected += len([c for c in fault.met if "tail -c" in c])
            witness.look()
            witness.finish(ROWS)
        total += witness.tally
    return total


def wrong_checksum(kind, seed, tell, every=1):
    """Alter what was written: artifacts after their marker, the marker, files of a complete run."""
    draw = random.Random(seed)
    cases = [(_altered_run, name) for name in ("requests.parquet", "manifests/deploy.yaml")]
    if kind == "kubernetes":
        cases = [(_altered_artifact, n) for n in ("profile_export.jsonl", "finished.json")] + cases
    return sum((case(kind, name, draw, tell) for case, name in cases[::every]), Tally())


def _altered_artifact(kind, name, draw, tell):
    with watched(kind, tell) as (place, witness):
        client = place.start(wait_at=("collect",))
        client.reach("collect", place.timeout_s)
        (path,) = place.emulated.node.volume.rglob(name)
        flip(path, draw)
        client.go()
        witness.tally.injected += 1
        witness.judge(client.end(place.timeout_s), client.said())
        witness.look()
        witness.finish(ROWS)
        return witness.tally


def _altered_run(kind, name, draw, tell):
    with watched(kind, tell) as (place, witness):
        witness.finish(ROWS)
        flip(place.path / name, draw)
        witness.known.clear()
        witness.stopped += 1  # its artifacts stay, and another set is made
        before = set(place.path.parent.iterdir())
        run_against(witness, look=False)
        witness.planted = set(place.path.parent.iterdir()) - before
        witness.finish(ROWS)
        return witness.tally


def flip(path, draw):
    """Change one byte of a file for another one."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 + draw.randrange(255)
    path.write_bytes(content)


ALL = ("live", "simulated", "kubernetes")
FAULTS = {
    "full disk": (full_disk, ALL),
    "read-only results": (read_only, ALL),
    "clock that jumps": (jumping_clock, ALL),
    "two clients at once": (two_clients, ALL),
    "wrong checksum": (wrong_checksum, ALL),
    "API server away": (api_down, ("kubernetes",)),
}
