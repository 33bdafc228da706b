"""Kills: at every boundary between steps and at random moments, in chains that end complete."""

import random
import signal
import time
from dataclasses import dataclass

from client import STEPS
from counting import Witness
from places import PLACES, ROWS, reference

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
LONGEST_CHAIN = 5
LAST = ("collect", "teardown")
FEWER = ROWS - 3


@dataclass(frozen=True)
class Kill:
    """A signal at the boundary before a step, or after a share of the time that it takes."""

    signum: int
    step: str
    share: float | None = None


def chains(count, seed, kind):
    """Return chains of kills: all boundaries with all signals first, the rest at random moments."""
    draw = random.Random(f"{seed}/{kind}")
    wanted = [Kill(signum, step) for signum in SIGNALS for step in STEPS]
    draw.shuffle(wanted)
    wanted = wanted[:count]
    wanted += [Kill(draw.choice(SIGNALS), draw.choice(STEPS), draw.random())
               for _ in range(count - len(wanted))]  # fmt: skip
    found = []
    while wanted:
        size = draw.randint(1, LONGEST_CHAIN)
        part, wanted = wanted[:size], wanted[size:]
        # After the collection the run is complete, and other kills would mean nothing.
        found.append(
            sorted(part, key=lambda kill: LAST.index(kill.step) if kill.step in LAST else -1)
        )
    return found


def references(kind):
    return {rows: reference(kind, rows)[0] for rows in (ROWS, FEWER)}


def strike(place, rows, kill, took_s):
    """Start a client and kill it; return whether the signal found it alive, its end, its words."""
    client = place.start(rows, wait_at=(kill.step,) if kill.share is None else ())
    client.reach(kill.step, place.timeout_s)
    if kill.share is not None:
        time.sleep(kill.share * took_s[kill.step])
    hit = client.send(kill.signum)
    return hit, client.end(place.timeout_s), client.said()


def play(witness, rows, chain, took_s):
    """Kill start after start of one run, then let it complete."""
    for kill in chain:
        hit, code, said = strike(witness.place, rows, kill, took_s)
        witness.tally.injected += hit
        if code == 130:
            witness.stopped += 1
            for line in witness.place.settled():
                witness.count("processes", line)
        elif code is None or code >= 0:
            witness.judge(code, said)
        witness.look()
    witness.finish(rows)


def kill_in_chains(kind, seed, tell, pair):
    """Play two chains on one place; in the second one a complete run is at stake."""
    place = PLACES[kind]()
    witness = Witness(place, references(kind), tell)
    try:
        for rows, chain in zip((ROWS, FEWER), pair, strict=True):
            if chain:
                play(witness, rows, chain, reference(kind)[1])
    finally:
        place.close()
    return witness.tally
