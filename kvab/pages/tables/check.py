"""The tables of the model check.

Input: the check. Output: tables that a notebook shows.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import number, percent, signed
from kvab.pages.evidence.model_check import Check
from kvab.pages.tabling import Table
from kvab.requests.metrics import LATENCIES, METRICS

STATISTICS = ("mean", "p50", "p90", "p99")


def errors(check: Check | None) -> Table | None:
    """Return live value and error of each statistic, with what the order inside bursts does."""
    if check is None:
        return None
    found = check.errors.set_index(["configuration", "metric", "statistic"])
    lines = []
    for name, arm in check.live.arms.items():
        for key in LATENCIES:
            line = {"configuration": arm.label, "metric": f"{METRICS[key].short} [ms]"}
            for statistic in STATISTICS:
                row = found.loc[(name, key, statistic)]
                spread = " to ".join(signed(100 * row[end], 0) for end in ("least", "most"))
                line[statistic] = (
                    f"{number(row['live'])}\n{signed(100 * row['centre'], 1)} %\n({spread})"
                )
            lines.append(line)
    caption = (
        "Live value; below it the error of the simulation, its mean over orders of the rows inside "
        f"bursts ({len(check.orders['order'].unique())} of them), and the least and the most."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration", "metric"))


def reuse(check: Check | None) -> Table | None:
    """Return good share and prefix reuse, live and simulated; None without a check."""
    if check is None:
        return None
    found = check.errors[check.errors["metric"] == "good_share"]
    good = found.set_index("configuration")
    lines = [
        {
            "configuration": arm.label,
            "good, live": percent(good.loc[name, "live"]),
            "good, simulated": percent(good.loc[name, "live"] + good.loc[name, "centre"]),
            "least to most": " to ".join(
                percent(good.loc[name, "live"] + good.loc[name, end]) for end in ("least", "most")
            ),
            "prompt from cache, live": _known(check.reuse.loc[name, "live"]),
            "simulated": percent(check.reuse.loc[name, "simulated"]),
        }
        for name, arm in check.live.arms.items()
    ]
    caption = "AIPerf does not record which worker served a request, so no balance is shown."
    return Table(pd.DataFrame(lines), caption, ("configuration",))


def _known(share: float) -> str:
    return "not known" if pd.isna(share) else percent(share)
