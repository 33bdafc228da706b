"""docs/reliability.md: what survived the fault campaign, and what came of broken inputs.

Input: ``reliability.json`` and ``fuzzing.json`` in book/published, as ``make faults`` and ``make
fuzz`` write them before they run this. Output: the page; every number in it is theirs.
"""

import json
from datetime import datetime
from pathlib import Path

from counting import WRONG

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "book" / "published"
PAGE = ROOT / "docs" / "reliability.md"
READERS = {
    "trace": "trace",
    "aiperf": "AIPerf's artifacts",
    "manifests": "deploy.yaml, perf.yaml",
    "runs": "run folders",
    "bundle": "bundles",
}
TEXT = """\
# What survives a fault

What is left of a run when its client is killed, its disk is full, its clock jumps or its cluster
is away, and what becomes of files that are broken? A campaign brings such faults about, a fuzzer
breaks inputs, and both count what went wrong. `make faults` and `make fuzz` write this page.

{answer}

## Fault by fault

{faults}

Seed {seed}, {date:%Y-%m-%d}, {cores} cores, {minutes:.1f} minutes. Every start is a process of its
own that takes the five steps of a run on a small made-up trace, and every fault ends in a complete
run that is checked: against its checksums, and against an undisturbed run. On `simulated` both
must be equal to the byte, elsewhere in rows, tokens, errors and counts. `kubernetes` is the
emulated cluster of the tests; its limits, and the time for which its API server is away, are those
of a real one divided by {time_scale:g}.
{left_out}
## Broken inputs

{inputs}

{readers}

Seed {fuzzing_seed}. What is accepted fulfils what the reader promises of it.

## How to repeat it

```bash
make faults                                                  # all of it, on two cores
make fuzz                                                    # all broken inputs
python tests/faults/campaign.py --kills 30 --kinds simulated --out build/reliability.json
```

Equal seeds strike at equal places.

## What was learned

{learned}
"""


def table(rows):
    """Return dicts as a table in Markdown, numbers to the right."""
    lines = [" | ".join(rows[0])]
    lines.append(
        " | ".join("--:" if str(each)[0].isdigit() else "---" for each in rows[0].values())
    )
    lines += [" | ".join(map(str, row.values())) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def went_wrong(tallies):
    """Return what went wrong in some tallies, with its counts; nothing if nothing did."""
    totals = {name: sum(each[name] for each in tallies) for name in WRONG}
    return ", ".join(f"{count:,} {WRONG[name]}" for name, count in totals.items() if count)


def answer(faults):
    """Return how many faults were brought about and what went wrong of them."""
    kills = sum(each["injected"] for each in faults if each["fault"] == "kill")
    known = f"**{sum(each['injected'] for each in faults):,} faults, {kills:,} of them kills, on "
    known += f"{len({each['kind'] for each in faults})} kinds of cluster: "
    if wrong := went_wrong(faults):
        return f"{known}{wrong}.** The target of each is zero."
    return f"{known}nothing went wrong.** Counted were {', '.join(WRONG.values())}; each is zero."


def fault_rows(faults):
    """Return a row for each fault on each kind of cluster, kills first."""
    return [
        {
            "cluster": each["kind"],
            "fault": each["fault"],
            "faults": f"{each['injected']:,}",
            "complete after": f"{each['completed']:,}",
            "rejected in one line": f"{each['refused']:,}",
            "went wrong": went_wrong([each]) or "nothing",
        }
        for each in sorted(faults, key=lambda each: (each["fault"] != "kill", each["fault"]))
    ]


def inputs(readers):
    """Return how many broken inputs the readers were fed, and what came of them."""
    whole, crashed = (
        sum(each[name] for each in readers.values()) for name in ("inputs", "crashed")
    )
    came = f"{crashed:,} of them" if crashed else "not one of them"
    return (
        f"**{whole:,} broken inputs for {len(readers)} readers: {came} made a reader crash.** They "
        "are mutations of real files, guided by the branches that they reach (atheris)."
    )


def reader_rows(readers):
    """Return a row for each reader."""
    return [
        {
            "reader": READERS.get(name, name),
            "inputs": f"{each['inputs']:,}",
            "accepted": f"{each['accepted']:,}",
            "rejected in one line": f"{each['refused']:,}",
            "crashed": f"{each['crashed']:,}",
            "slowest [ms]": f"{each['slowest_ms']:,.0f}",
            "memory at most [MB]": f"{each['peak_mb']:,.0f}",
        }
        for name, each in readers.items()
    ]


def learned(faults):
    """Return what to do after a fault, and what is not known."""
    completed, refused = (sum(each[name] for each in faults) for name in ("completed", "refused"))
    first = (
        f"Things went wrong ({wrong}): until they are fixed, check runs by hand after these faults."
        if (wrong := went_wrong(faults))
        else "After any of these faults the same command is enough: nothing is cleaned up by hand. "
        f"{completed:,} runs were completed so."
    )
    return (
        f"- {first}\n- What cannot go on says so in one line and leaves no half-written run: "
        f"{refused:,} starts ended this way.\n- Power cuts, which lose what a disk had not yet "
        "written, and two machines that share one cluster were not tried."
    )


def page(campaign, fuzzing):
    """Return the page of the contents of both files."""
    faults, readers = campaign["faults"], fuzzing["readers"]
    skipped = "\n".join(f"- {each['fault']} on {each['kind']}: {each['why']}"
                        for each in campaign["skipped"])  # fmt: skip
    return TEXT.format(
        answer=answer(faults),
        faults=table(fault_rows(faults)),
        seed=campaign["seed"],
        date=datetime.fromisoformat(campaign["date"]),
        cores=campaign["cores"],
        minutes=campaign["seconds"] / 60,
        time_scale=campaign["time_scale"],
        left_out=f"\nLeft out:\n\n{skipped}\n" if skipped else "",
        inputs=inputs(readers),
        readers=table(reader_rows(readers)),
        fuzzing_seed=fuzzing["seed"],
        learned=learned(faults),
    )


def published():
    """Return the page of the published results."""
    names = ("reliability.json", "fuzzing.json")
    return page(*(json.loads((PUBLISHED / name).read_text()) for name in names))


if __name__ == "__main__":
    PAGE.write_text(published())
    print(PAGE)
