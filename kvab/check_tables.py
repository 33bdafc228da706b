"""The tables of the model check.

Input: the check. Output: tables that a notebook shows.
"""

from __future__ import annotations

import pandas as pd

from kvab.formats import Table, number, percent, signed
from kvab.metrics import LATENCIES, METRICS
from kvab.model_check import AS_SENT, DECLARED, Check

STATISTICS = ("mean", "p50", "p90", "p99")


def errors(check: Check) -> Table:
    """Return live value and error of each statistic, in file order and in the order sent."""
    found = check.errors.set_index(["configuration", "order", "metric", "statistic"])
    lines = []
    for name, arm in check.live.arms.items():
        for key in LATENCIES:
            line = {"configuration": arm.label, "metric": f"{METRICS[key].short} [ms]"}
            for statistic in STATISTICS:
                rows = [found.loc[(name, order, key, statistic)] for order in (DECLARED, AS_SENT)]
                errors = " / ".join(signed(100 * row["error"], 1) for row in rows)
                line[statistic] = f"{number(rows[0]['live'])}\n{errors} %"
            lines.append(line)
    caption = (
        "Live value, and below it the error of the simulation: with the rows of a burst in file "
        "order / in the order that AIPerf sent them."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration", "metric"))


def reuse(check: Check) -> Table:
    """Return good share and prefix reuse, live and simulated."""
    found = check.errors[check.errors["metric"] == "good_share"]
    good = found.set_index(["configuration", "order"])
    lines = [
        {
            "configuration": arm.label,
            "good, live": percent(good.loc[(name, DECLARED), "live"]),
            "good, simulated": percent(good.loc[(name, DECLARED), "simulated"]),
            "in the order sent": percent(good.loc[(name, AS_SENT), "simulated"]),
            "prompt from cache, live": percent(check.reuse.loc[name, "live"]),
            "simulated": percent(check.reuse.loc[name, "simulated"]),
        }
        for name, arm in check.live.arms.items()
    ]
    caption = "AIPerf does not record which worker served a request, so no balance is shown."
    return Table(pd.DataFrame(lines), caption, ("configuration",))
