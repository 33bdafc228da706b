"""The figures of the workload, in which nothing is simulated.

Input: the evidence. Output: panels that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import EngFormatter

from kvab.pages.evidence import Evidence
from kvab.pages.figures.theme import WIDTH_IN, Drawing, drawn
from kvab.pages.wording import captions


def _per_tick(evidence: Evidence) -> pd.DataFrame:
    counts = evidence.workload.table["arrival_ms"].value_counts().sort_index()
    return counts.rename("requests").reset_index()


@drawn("workload-arrivals", _per_tick, runs=False)
def arrivals(evidence: Evidence) -> Drawing:
    """Draw requests a minute along the trace, and how many arrive at one tick of its clock."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_IN, 2.6), width_ratios=[2, 1])
    table = evidence.workload.table
    per_minute = (table["arrival_ms"] // 60_000).value_counts().sort_index()
    left.step(per_minute.index, per_minute, where="mid", color="#333333", linewidth=1.2)
    left.set(xlabel="minute of the trace", ylabel="requests a minute", ylim=(0, None))
    bursts = table["arrival_ms"].value_counts().value_counts().sort_index()
    right.bar(bursts.index, bursts, color="#8c8c8c", width=0.8)
    right.set(xlabel="requests at one tick", ylabel="ticks")
    alt = (
        f"Left: requests a minute between {per_minute.min()} and {per_minute.max()} over "
        f"{len(per_minute)} minutes. Right: histogram of burst sizes from {bursts.index.min()} "
        f"to {bursts.index.max()}."
    )
    return figure, captions.arrivals(evidence), alt


@drawn("workload-lengths", lambda e: e.workload.table, runs=False)
def lengths(evidence: Evidence) -> Drawing:
    """Distributions of prompt and answer lengths, and of the reusable part of prompts."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.5))
    table = evidence.workload.table
    shares = 100 * table["reusable_tokens"] / table["input_tokens"]
    drawn = (
        (table["input_tokens"], "prompt tokens", True),
        (table["output_tokens"], "answer tokens", True),
        (shares, "prompt seen before [%]", False),
    )
    for place, (values, label, log) in zip(axes, drawn, strict=True):
        sns.histplot(x=values, ax=place, log_scale=log, bins=40, color="#8c8c8c", edgecolor="none")
        place.set(xlabel=label + (" [log scale]" if log else ""), ylabel="")
        if log:
            place.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].set_ylabel("requests")
    alt = (
        f"Histograms: prompts of median {table['input_tokens'].median():,.0f} tokens, answers of "
        f"median {table['output_tokens'].median():,.0f}, and the share of each prompt that an "
        f"earlier prompt began with, median {shares.median():.0f} per cent."
    )
    return figure, captions.lengths(evidence), alt
