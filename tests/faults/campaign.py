"""A fault campaign with figures: kills and other faults on real runs of all three kinds of cluster.

Kills clients with SIGKILL, SIGINT and SIGTERM at every boundary between steps and at seeded random
moments, fills disks, moves clocks, takes the API server away, and counts what went wrong. The
target of every count is zero. Writes one JSON, of which reliability.py makes docs/reliability.md.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "book" / "published" / "reliability.json"
SHARES = {"live": 0.08, "simulated": 0.22, "kubernetes": 0.7}
PACKAGES = ("kvab", "ai-dynamo", "aisimulate", "aiperf", "kubernetes")
MOUNTS = "KVAB_FAULTS_MOUNTS"
SIDE_BY_SIDE = 2


def parsed(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=230,
        help="kills in total (default 230; some clients end first)",
    )
    parser.add_argument("--resets", type=int, default=200, help="connections reset (default 200)")
    parser.add_argument("--every", type=int, default=1, help="of the cases of the other faults, "
                        "bring about each n-th (default 1: all)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="equal seeds strike at equal places")
    parser.add_argument("--kinds", nargs="+", choices=SHARES, default=[*SHARES],
                        help="kinds of cluster (default all; kubernetes is the emulated cluster "
                        "of tests/cluster)")  # fmt: skip
    parser.add_argument("--faults", nargs="+", metavar="FAULT", help="only these, by the names "
                        "of the page, such as kill (default all)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=OUT,
                        help=f"where to write (default {OUT.relative_to(ROOT)})")  # fmt: skip
    return parser.parse_args(arguments)


def with_own_mounts():
    """Start this program anew where it may mount small disks that nobody else sees."""
    if MOUNTS in os.environ or not shutil.which("unshare"):
        return
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    able = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    os.environ[MOUNTS] = "1" if able else ""
    if able:
        os.execvp("unshare", [*probe[:3], sys.executable, *sys.argv])


def tasks(given):
    """Return (kind, fault, function) of everything that is to be done, live runs first."""
    import kills
    import others

    found, whole = [], sum(SHARES[kind] for kind in given.kinds)
    for kind in given.kinds:
        for fault, (function, suited) in others.FAULTS.items():
            if kind in suited:
                found.append((kind, fault, partial(function, every=given.every)))
        chains = kills.chains(round(given.kills * SHARES[kind] / whole), given.seed, kind)
        found += [(kind, "kill", partial(kills.kill_in_chains, pair=pair))
                  for pair in zip_longest(chains[::2], chains[1::2], fillvalue=())]  # fmt: skip
    if "kubernetes" in given.kinds:
        resets = partial(others.resets, least=given.resets)
        found.append(("kubernetes", "connection reset", resets))
    chosen = [each for each in found if not given.faults or each[1] in given.faults]
    return sorted(chosen, key=lambda each: each[0] != "live")


def skipped(fault):
    """Return why a fault cannot be brought about here, nothing if it can."""
    disk = fault in ("full disk", "read-only results")
    return "no small disk can be mounted here" if disk and not os.environ.get(MOUNTS) else ""


def tell(line):
    print(line, file=sys.stderr, flush=True)


def carried_out(given):
    """Return the tally of each kind and fault, and what was skipped and why."""
    from counting import Tally

    done, left_out, live, rest = {}, {}, [], []
    for kind, fault, function in tasks(given):
        if why := skipped(fault):
            left_out[kind, fault] = why
        else:
            (live if kind == "live" else rest).append((kind, fault, function))
    # Live runs follow each other in one thread, as only one at a time may hold the machine.
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for ended in pool.map(partial(in_turn, given.seed), [live, *([each] for each in rest)]):
            for kind, fault, tally in ended:
                done[kind, fault] = done.get((kind, fault), Tally()) + tally
    return done, left_out


def in_turn(seed, some):
    """Return kind, fault and tally of some tasks, done one after the other."""
    ended = []
    for kind, fault, function in some:
        begun = time.monotonic()
        tally = function(kind, seed, tell)
        tally.seconds = time.monotonic() - begun
        wrong = ", ".join(f"{count} {name}" for name, count in tally.wrong().items())
        tell(f"{kind}, {fault}: {tally.injected} injected, {wrong or 'nothing wrong'}, "
             f"{tally.seconds:.0f} s")  # fmt: skip
        ended.append((kind, fault, tally))
    return ended


def main(arguments=None):
    given = parsed(arguments)
    with_own_mounts()
    os.environ.update(KVAB_ROOT=str(ROOT), HF_HUB_OFFLINE="1", DYN_LOG="error")
    for name in ("asyncio", "aiohttp.server"):  # of clients that are gone, as they are here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from places import SCALE

    begun = time.monotonic()
    done, left_out = carried_out(given)
    campaign = {
        "schema": 1,
        "seed": given.seed,
        "date": datetime.now(UTC).isoformat(),
        "seconds": round(time.monotonic() - begun, 1),
        "cores": os.cpu_count(),
        "time_scale": SCALE,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "faults": [{"kind": kind, "fault": fault, **tally.rounded()}
                   for (kind, fault), tally in done.items()],
        "skipped": [{"kind": kind, "fault": fault, "why": why}
                    for (kind, fault), why in left_out.items()],
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(campaign, indent=1) + "\n")
    wrong = sum(sum(tally.wrong().values()) for tally in done.values())
    print(f"{sum(tally.injected for tally in done.values())} faults, {wrong} things wrong, "
          f"{campaign['seconds']:.0f} s: {given.out}")  # fmt: skip
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
