"""The figures of a capacity sweep: good share against load, and the split.

Input: the sweep. Output: panels that a notebook shows, as those of `kvab.pages.figures`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from kvab.console import percent
from kvab.pages.figures.theme import COMPARISON, GREY, PLAIN, WIDTH_IN, Drawing, arm_styles, drawn
from kvab.pages.wording import capacity as wording
from kvab.pages.wording.loads import load_text
from kvab.runs.capacity.sweep import Sweep

DARK = "#333333"


@drawn("capacity-load", lambda s: s.curves.shares, source=wording.source)
def load(swept: Sweep) -> Drawing:
    """Good share against load, and below it where each curve falls through the target."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(WIDTH_IN, 4.9), sharex=True, height_ratios=[3, 1.15]
    )
    styles, curves = arm_styles(swept.arms), swept.curves
    for name, style in styles.items():
        rows = curves.shares[curves.shares["configuration"] == name]
        ends = (100 * rows["low"], 100 * rows["high"])
        above.fill_between(rows["load"], *ends, color=style["color"], alpha=0.15, linewidth=0)
        above.plot(rows["load"], 100 * rows["share"], **style)
    for target in curves.ratios.index:
        main = target == swept.headline
        above.axhline(100 * target, color=DARK if main else GREY, linewidth=0.9 if main else 0.6,
                      linestyle="-" if main else (0, (1, 2)), zorder=1)  # fmt: skip
    kept = curves.loads.set_index(["target", "configuration"]).loc[swept.headline]
    found = kept[kept["low"] == kept["high"]]
    above.vlines(found["low"], 0, 100 * swept.headline, linewidth=0.9, alpha=0.7,
                 colors=[styles[name]["color"] for name in found.index])  # fmt: skip
    above.set(ylabel="good requests [%]", ylim=(0, 100))
    _crossings(below, swept)
    below.set_xlabel("speed of arrivals [multiple of the trace's]")
    shares = curves.shares.set_index(["configuration", "load"])["share"]
    alt = "Falling curves of the good share over load. " + "; ".join(
        f"{arm.label} from {percent(shares[name].iloc[0], 0)} at {shares[name].index[0]:g}x to "
        f"{percent(shares[name].iloc[-1], 0)} at {shares[name].index[-1]:g}x"
        for name, arm in swept.arms.items()
    )
    return figure, wording.load_caption(swept), alt


def _crossings(axes: Axes, swept: Sweep) -> None:
    """Draw the load that each configuration carries at the headline's share, with its interval."""
    styles, names = arm_styles(swept.arms), [*swept.arms][::-1]
    kept = swept.curves.loads.set_index(["target", "configuration"]).loc[swept.headline]
    replayed = swept.curves.shares["load"]
    reach = (0, replayed.max() * 1.03)
    for place, name in enumerate(names):
        row, style = kept.loc[name], styles[name]
        ends = np.clip([row["ci_low"], row["ci_high"]], *reach)
        axes.plot(ends, [place, place], color=style["color"], linewidth=2.5, alpha=0.45)
        if row["low"] == row["high"]:
            axes.plot(row["low"], place, color=style["color"], marker=style["marker"])
        axes.annotate(
            load_text(row["low"], row["high"]), (np.nanmax(ends), place), (6, 0),
            textcoords="offset points", va="center", fontsize=8, fontweight="bold",
            color=style["color"],
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [swept.arms[name].label for name in names])
    axes.set(ylim=(-0.6, len(names) - 0.4), xlim=reach)
    axes.set_title(f"load that keeps {percent(swept.headline, 0)} good")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")


@drawn("capacity-split", lambda s: s.curves.splits, source=wording.source)
def split(swept: Sweep) -> Drawing:
    """Good share, mean TTFT and p99 ITL by how the workers are split."""
    figure, (good, ttft, itl) = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.7))
    table, cells = swept.curves.splits, swept.split_cells
    at, names = np.arange(len(cells)), [*cells]
    good.vlines(at, 100 * table["low"], 100 * table["high"], color=COMPARISON, alpha=0.45,
                linewidth=2.5)  # fmt: skip
    shown = (
        (good, [100 * cell.share for cell in cells.values()], "good requests [%]"),
        (ttft, [cell.ttft_ms.mean for cell in cells.values()], "mean TTFT [ms, log scale]"),
        (itl, [cell.itl_ms.p99 for cell in cells.values()], "p99 ITL [ms]"),
    )
    for axes, values, label in shown:
        axes.plot(at, values, color=COMPARISON, linestyle="--", linewidth=1)
        filled = [COMPARISON if name == swept.deployed else "white" for name in names]
        axes.scatter(at, values, marker="s", s=32, c=filled, edgecolors=COMPARISON, zorder=3)
        axes.set(ylabel=label, xlim=(-0.5, len(names) - 0.5))
        axes.set_xticks(at, names)
    good.set_ylim(0, 100)
    ttft.set_yscale("log")
    ttft.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ttft.yaxis.set_major_formatter(PLAIN)
    ttft.yaxis.set_minor_formatter(NullFormatter())
    itl.set_ylim(0, None)
    bound = swept.summary.slo.itl_ms
    itl.axhline(bound, color=DARK, linewidth=0.9)
    itl.annotate(f"SLO {bound:g} ms", (-0.4, bound), (0, 3), textcoords="offset points",
                 fontsize=7)  # fmt: skip
    figure.supxlabel("prefill (P) and decode (D) workers", fontsize=9)
    alt = "Points by split: " + "; ".join(
        f"{name} {percent(cell.share, 0)} good, mean TTFT {cell.ttft_ms.mean:,.0f} ms, p99 ITL "
        f"{cell.itl_ms.p99:.1f} ms"
        for name, cell in cells.items()
    )
    return figure, wording.split_caption(swept), alt
