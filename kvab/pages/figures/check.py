"""The figures of the model check: errors of the simulation, and every request live and simulated.

Input: the check. Output: panels that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt

from kvab.pages.evidence.model_check import Check
from kvab.pages.figures.theme import PLAIN, WIDTH_IN, Drawing, arm_styles, drawn, legend_below
from kvab.pages.wording import check as wording
from kvab.requests.metrics import LATENCIES, METRICS

STATISTICS = ("mean", "p50", "p90", "p99")


@drawn("check-errors", lambda c: c.errors, source=wording.source)
def errors(check: Check) -> Drawing:
    """Error of each statistic of each latency, over orders inside bursts, by configuration."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.1), sharey=True)
    found = check.errors
    styles = arm_styles(check.live.arms)
    for place, key in zip(axes, LATENCIES, strict=True):
        place.axvline(0, color="#333333", linewidth=0.9)
        for nth, (name, style) in enumerate(styles.items()):
            rows = found[(found["configuration"] == name) & (found["metric"] == key)]
            rows = rows.set_index("statistic").loc[[*STATISTICS]]
            at = [n + 0.17 * (nth - (len(styles) - 1) / 2) for n in range(len(STATISTICS))]
            look = {"color": style["color"], "linewidth": 1.3, "alpha": 0.6}
            place.hlines(at, 100 * rows["least"], 100 * rows["most"], **look)
            place.plot(
                100 * rows["centre"],
                at,
                linestyle="",
                marker=style["marker"],
                markersize=4.5,
                color=style["color"],
                label=check.live.arms[name].label,
            )
        place.set(xlabel=f"{METRICS[key].short} error [%]")
        place.grid(axis="x")
    axes[0].set_yticks(range(len(STATISTICS)), STATISTICS)
    axes[0].invert_yaxis()
    legend_below(figure, axes[0])
    alt = "Dots with ranges by statistic and configuration. " + wording.errors_caption(check)
    return figure, wording.errors_caption(check), alt


@drawn("check-requests", lambda c: c.pairs, source=wording.source)
def requests(check: Check) -> Drawing:
    """TTFT of every request, live and simulated, a panel for each configuration."""
    arms = check.live.arms
    figure, axes = plt.subplots(
        1, len(arms), figsize=(WIDTH_IN, 2.5), sharex=True, sharey=True, squeeze=False
    )
    styles = arm_styles(arms)
    for place, (name, rows) in zip(axes[0], check.pairs.groupby("configuration", sort=False),
                                   strict=True):  # fmt: skip
        live, twin = rows["ttft_ms_live"], rows["ttft_ms_twin"]
        place.scatter(live, twin, s=5, alpha=0.45, linewidths=0, color=styles[name]["color"])
        ends = [min(live.min(), twin.min()), max(live.max(), twin.max())]
        place.plot(ends, ends, color="#333333", linewidth=0.8)
        place.set(xscale="log", yscale="log", aspect="equal")
        place.set_title(arms[name].label.replace(", ", ",\n"), fontsize=7)
        for axis in (place.xaxis, place.yaxis):
            axis.set_major_formatter(PLAIN)
        place.tick_params(labelsize=6)
        place.grid(axis="both")
    axes[0][0].set_ylabel("simulated TTFT\n[ms, log scale]")
    figure.supxlabel("live TTFT [ms, log scale]", fontsize=9)
    return (
        figure,
        wording.scatter_caption(check),
        ("Scatter of simulated over live TTFT on log axes. " + wording.scatter_caption(check)),
    )
