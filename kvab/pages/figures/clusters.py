"""The forest plot: what the comparison gains on each cluster.

Input: the clusters. Output: a panel that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator, NullLocator

from kvab.pages.clusters import Clusters
from kvab.pages.figures.theme import COMPARISON, PLAIN, WIDTH_IN, Drawing, drawn
from kvab.pages.wording import clusters as wording
from kvab.requests.metrics import LATENCIES, METRICS

MARKERS = {"simulated": "o", "live": "^", "kubernetes": "s", "imported": "D"}


@drawn("clusters-forest", lambda c: c.effects, source=wording.source)
def forest(clusters: Clusters) -> Drawing:
    """Effect on the good share and on each mean latency, a line for each cluster."""
    places = clusters.places
    height_in = 1.3 + 0.45 * len(places)
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH_IN, height_in), sharey=True)
    shown = {"good_share": ("difference", 100.0), **dict.fromkeys(LATENCIES, ("ratio", 1.0))}
    for axis, (key, (column, factor)) in zip(axes, shown.items(), strict=True):
        rows = clusters.effects[clusters.effects["metric"] == key].set_index("place")
        values = factor * rows[[column, f"{column}_low", f"{column}_high"]]
        axis.axvline(0 if column == "difference" else 1, color="#333333", linewidth=0.9)
        for at, (place, evidence) in enumerate(places.items()):
            centre, low, high = values.loc[place]
            axis.hlines(at, low, high, color=COMPARISON, linewidth=1.6)
            hollow = "white" if evidence.simulated else COMPARISON
            axis.plot(centre, at, marker=MARKERS[evidence.manifest.kind], color=COMPARISON,
                      markerfacecolor=hollow)  # fmt: skip
        short = METRICS[key].short
        if column == "difference":
            axis.set_xlabel("good share,\ndifference [points]")
        else:
            axis.set(xscale="log", xlabel=f"mean {short},\nratio [log scale]")
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(PLAIN)
        axis.grid(axis="x")
    names = [f"{place}\n({each.manifest.kind})" for place, each in places.items()]
    axes[0].set_yticks(range(len(places)), names, fontsize=7)
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    caption = wording.forest_caption(clusters)
    return figure, caption, f"Dots with intervals by cluster and metric. {caption}"
