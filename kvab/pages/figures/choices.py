"""The figures of what the outcome hangs on: routing and split, and the bounds of a good request.

Input: the evidence. Output: panels that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from kvab.console import signed
from kvab.pages.evidence import Evidence
from kvab.pages.theme import PLAIN, STYLES, WIDTH_IN, Drawing, drawn, legend_below
from kvab.pages.wording import captions


@drawn("attribution-interaction", lambda e: e.cells)
def interaction(evidence: Evidence) -> Drawing:
    """Draw the 2x2: good share, mean TTFT and p99 ITL by routing, a line for each split."""
    if evidence.missing:
        return f"The 2x2 is not whole: no run of {evidence.missing} on {evidence.cluster}."
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.9))
    cells = evidence.cells
    shown = (("good", 100, "good requests [%]"), ("ttft_ms", 1, "mean TTFT [ms]"))
    for place, (column, factor, label) in zip(
        axes, (*shown, ("itl_p99_ms", 1, "p99 ITL [ms, log scale]")), strict=True
    ):
        for split, style in (("aggregated", "baseline"), ("disaggregated", "comparison")):
            rows = cells.xs(split, level="split").loc[["round-robin", "kv"]]
            place.plot([0, 1], factor * rows[column], label=split, **STYLES[style])
        place.set(ylabel=label, xlim=(-0.3, 1.3))
        place.set_xticks([0, 1], ["round-robin", "KV router"])
    axes[0].set_ylim(0, 100)
    axes[1].set_ylim(0, None)
    axes[2].set_yscale("log")
    axes[2].yaxis.set_major_formatter(PLAIN)
    axes[2].yaxis.set_minor_formatter(PLAIN)
    legend_below(figure, axes[0])
    alt = "Lines from round-robin to KV router for each split. " + captions.interaction(evidence)
    return figure, captions.interaction(evidence), alt


@drawn("robustness-slo-surface", lambda e: e.slo_surface)
def slo_surface(evidence: Evidence) -> Drawing:
    """Difference of the good share for every pair of bounds, the named pairs outlined."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 3.9))
    surface = evidence.slo_surface
    points = surface.assign(points=100 * surface["difference"])
    grid = points.pivot(index="itl_ms", columns="ttft_ms", values="points").sort_index()
    certain = (surface["band_low"] > 0) | (surface["band_high"] < 0)
    text = surface.assign(
        text=[signed(p, 1) + ("" if sure else "?") for p, sure in zip(points["points"], certain,
                                                                    strict=True)]
    ).pivot(index="itl_ms", columns="ttft_ms", values="text").loc[grid.index]  # fmt: skip
    reach = np.abs(grid.to_numpy()).max()
    sns.heatmap(
        grid, ax=axes, cmap="PuOr_r", vmin=-reach, vmax=reach, annot=text, fmt="",
        annot_kws={"fontsize": 7}, linewidths=0.6,
        cbar_kws={"label": "good share, difference [points]"},
    )  # fmt: skip
    axes.invert_yaxis()
    for slo, line in zip([evidence.study.slo, *evidence.study.other_slos],
                         ["-", *[(0, (2, 1))] * 9], strict=False):  # fmt: skip
        if slo.ttft_ms in grid.columns and slo.itl_ms in grid.index:
            corner = (grid.columns.get_loc(slo.ttft_ms), grid.index.get_loc(slo.itl_ms))
            box = Rectangle(corner, 1, 1, fill=False, linewidth=2, linestyle=line, zorder=3)
            axes.add_patch(box)
    axes.set_xticks(np.arange(len(grid.columns)) + 0.5, [f"{v / 1000:g}" for v in grid.columns])
    axes.set_yticks(np.arange(len(grid.index)) + 0.5, [f"{v:g}" for v in grid.index], rotation=0)
    axes.set(xlabel="TTFT bound [s]", ylabel="ITL bound [ms]")
    caption = captions.slo_surface(evidence)
    return figure, caption, "Grid of differences by TTFT and ITL bound. " + caption
