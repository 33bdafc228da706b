"""The table of the fault campaign: what was brought about, and what came of it.

Input: the campaign. Output: a table that a notebook shows.
"""

from __future__ import annotations

import pandas as pd

from kvab.evidence.reliability import Campaign
from kvab.formats import Table, number

COLUMNS = {
    "injected": "faults",
    "completed": "complete after",
    "refused": "refused in one line",
    "lost": "lost",
    "duplicated": "twice",
    "altered": "altered",
    "locked": "locked",
    "processes": "processes left",
    "objects": "objects left",
    "leftovers": "files left",
    "crashed": "tracebacks",
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
        }
        for each in sorted(campaign.faults, key=lambda each: (each.fault != "kill", each.fault))
    ]
    caption = (
        f"Seed {campaign.seed}, {campaign.date:%Y-%m-%d}, {campaign.cores} cores, "
        f"{number(campaign.seconds / 60)} minutes. From the column “lost” on, every count should "
        "be zero."
    )
    return Table(pd.DataFrame(lines), caption, ("cluster", "fault"))
