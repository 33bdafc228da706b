"""The tables of faults and of broken inputs: what was brought about, and what came of it.

Input: the campaign, the fuzzing. Output: tables that a notebook shows.
"""

from __future__ import annotations

import pandas as pd

from kvab.evidence.reliability import WRONG, Campaign, Fault, Fuzzing
from kvab.formats import Table, number
from kvab.wording.reliability import SAID

COLUMNS = {"injected": "faults", "completed": "complete after", "refused": "refused in one line"}
READERS = {
    "trace": "trace",
    "aiperf": "AIPerf's artifacts",
    "manifests": "deploy.yaml, perf.yaml",
    "runs": "run folders",
    "bundle": "bundles",
}


def faults(campaign: Campaign | None) -> Table | None:
    """Return the counts of every fault on every kind of cluster; None without a campaign."""
    if campaign is None:
        return None
    lines = [
        {
            "cluster": each.kind,
            "fault": each.fault,
            **{label: f"{getattr(each, name):,}" for name, label in COLUMNS.items()},
            "went wrong": _wrong(each),
        }
        for each in sorted(campaign.faults, key=lambda each: (each.fault != "kill", each.fault))
    ]
    caption = (
        f"Seed {campaign.seed}, {campaign.date:%Y-%m-%d}, {campaign.cores} cores, "
        f"{number(campaign.seconds / 60)} minutes. Nothing should go wrong; what is counted stands "
        "above."
    )
    return Table(pd.DataFrame(lines), caption, ("cluster", "fault"))


def _wrong(fault: Fault) -> str:
    """Return what went wrong, with its counts."""
    said = [f"{count:,} {SAID[name]}" for name in WRONG if (count := getattr(fault, name))]
    return ", ".join(said) or "nothing"


def inputs(fuzzing: Fuzzing | None) -> Table | None:
    """Return what came of broken inputs, a row a reader; None where nothing was fuzzed."""
    if fuzzing is None:
        return None
    lines = [
        {
            "reader": READERS.get(name, name),
            "inputs": f"{each.inputs:,}",
            "accepted": f"{each.accepted:,}",
            "refused in one line": f"{each.refused:,}",
            "crashed": f"{each.crashed:,}",
            "slowest [ms]": number(each.slowest_ms, 0),
            "memory at most [MB]": number(each.peak_mb, 0),
        }
        for name, each in fuzzing.readers.items()
    ]
    caption = f"Seed {fuzzing.seed}. What is accepted fulfils what the reader promises of it."
    return Table(pd.DataFrame(lines), caption, ("reader",))
