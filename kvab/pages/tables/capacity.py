"""Tables of a capacity sweep: loads kept, every cell, and the splits.

Input: the sweep. Output: objects that a notebook shows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvab.console import counted, interval, number, percent
from kvab.pages.tabling import Table, unless_missing
from kvab.pages.wording.loads import ends_text, load_text, ratio_text
from kvab.runs.capacity.sweep import Sweep


@unless_missing()
def loads(swept: Sweep) -> Table:
    """Return the load that each configuration carries at each good share, and the ratio."""
    replayed = sorted({cell.load for cell in swept.load_cells})
    kept = swept.curves.loads.set_index(["configuration", "target"])
    targets = swept.ratios.index
    lines = []
    for name, arm in swept.arms.items():
        rows = {target: kept.loc[(name, target)] for target in targets}
        lines.append({"configuration": arm.label} | {
            _at(target): f"{load_text(row['low'], row['high'])}\n({ends_text(row, replayed)})"
            for target, row in rows.items()
        })  # fmt: skip
    per_gpu = "" if len(set(swept.gpus.values())) == 1 else ", per GPU"
    lines.append({"configuration": f"comparison / baseline{per_gpu}"} | {
        _at(target): f"{ratio_text(row)}\n({ends_text(row)})"
        for target, row in swept.ratios.iterrows()
    })  # fmt: skip
    frame = pd.DataFrame(lines).replace({r"\n\(–\)": ""}, regex=True)
    statistics = swept.study.statistics
    return Table(
        frame,
        "Largest load, in multiples of the trace's arrival speed, at which this share of requests "
        f"is good ({statistics.percent} workload interval, {statistics.resamples:,} resamples, "
        f"blocks of {counted(swept.curves.block_bursts, 'burst')} on average). Never extrapolated "
        f"beyond {replayed[0]:g}x to {replayed[-1]:g}x.",
        ("configuration",),
    )


def _at(target: float) -> str:
    return f"{percent(target, 0)} good"


@unless_missing()
def cells(swept: Sweep) -> Table:
    """Return good share and GPU-hours for a thousand good requests of every cell of load."""
    lines: dict[float, dict[str, str]] = {}
    for cell in sorted(swept.load_cells, key=lambda cell: cell.load):
        line = lines.setdefault(cell.load, {"load": f"{cell.load:g}x"})
        shown = f"{percent(cell.share)}\n({_hours(cell.gpu_hours)})"
        line[swept.arms[cell.configuration].label] = shown
    return Table(
        pd.DataFrame(lines.values()),
        "Good requests (GPU-hours for each thousand of them).",
        ("load",),
    )


@unless_missing()
def splits(swept: Sweep) -> Table:
    """Return the metrics of each split of the comparison's workers."""
    table = swept.curves.splits
    lines = []
    for name, cell in swept.split_cells.items():
        row = table.loc[name]
        lines.append(
            {
                "split": name + (" (deployed)" if name == swept.deployed else ""),
                "good": percent(row["share"]),
                f"{swept.study.statistics.percent} interval [%]": f"{number(100 * row['low'], 1)} "
                f"to {number(100 * row['high'], 1)}",
                "points from the deployed": "–" if name == swept.deployed else interval(
                    row["difference_low"], row["difference_high"], 100),
                "TTFT mean [ms]": number(cell.ttft_ms.mean),
                "TTFT p99": number(cell.ttft_ms.p99),
                "ITL p50 [ms]": number(cell.itl_ms.p50),
                "ITL p99": number(cell.itl_ms.p99),
                "GPU-hours a thousand good": _hours(cell.gpu_hours),
            }
        )  # fmt: skip
    caption = (
        f"{swept.arms[swept.study.comparison].label} at the trace's own speed, xPyD: x prefill and "
        f"y decode workers, {counted(next(iter(swept.split_cells.values())).gpus, 'GPU')} in all. "
        "Intervals are workload intervals; the differences are paired."
    )
    return Table(pd.DataFrame(lines), caption, ("split",))


def _hours(hours: float) -> str:
    return number(hours) if np.isfinite(hours) else "none good"
