"""The figures of the runs, under one theme, with their captions and alternative texts.

Input: the evidence. Output: panels that a notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.pages.evidence import Evidence
from kvab.pages.theme import (
    COMPARISON,
    PLAIN,
    WIDTH_IN,
    Drawing,
    arm_styles,
    drawn,
    legend_below,
    log_ms,
)
from kvab.pages.wording import captions
from kvab.requests import metrics
from kvab.study import Arm


@drawn("index-good-shares", lambda e: e.good_shares)
def good_shares(evidence: Evidence) -> Drawing:
    """Share of good requests of each configuration: every repeat a point, with its interval."""
    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 1.75))
    styles, names = arm_styles(evidence.arms), list(evidence.arms)
    table = evidence.good_shares
    for place, name in enumerate(reversed(names)):
        row, style = table.loc[name], styles[name]
        values = 100 * np.array([row["low"], row["share"], row["high"]])
        axes.plot(values[[0, 2]], [place, place], color=style["color"], linewidth=2.5, alpha=0.45)
        axes.plot(
            [100 * share for share in row["repeats"]],
            [place] * len(row["repeats"]),
            linestyle="",
            marker=style["marker"],
            color=style["color"],
        )
        axes.annotate(
            f"{values[1]:.1f} %", (values[2], place), (6, 0), textcoords="offset points",
            va="center", fontsize=9, fontweight="bold", color=style["color"],
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [evidence.arms[name].label for name in reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 100)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    slo = evidence.study.slo
    axes.set_xlabel(f"requests within TTFT {slo.ttft_ms:g} ms and ITL {slo.itl_ms:g} ms [%]")
    alt = "Dot plot of the share of good requests: " + ", ".join(
        f"{evidence.arms[name].label} {table.loc[name, 'share']:.0%}" for name in names
    )
    return figure, captions.good_shares(evidence), alt


def _both(evidence: Evidence) -> dict[str, Arm]:
    names = (evidence.study.baseline, evidence.study.comparison)
    return {name: evidence.study.configurations[name] for name in names}


@drawn("outcome-distributions", lambda e: e.percentiles)
def distributions(evidence: Evidence) -> Drawing:
    """Cumulative distributions of TTFT, ITL and latency of the two main configurations."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.0), sharey=True)
    arms = _both(evidence)
    styles, bounds = arm_styles(arms), evidence.study.slo.model_dump()
    for place, key in zip(axes, metrics.LATENCIES, strict=True):
        metric = metrics.METRICS[key]
        for name, arm in arms.items():
            drawn_ms = evidence.percentiles[key].loc[name]
            look = {"color": styles[name]["color"], "linestyle": styles[name]["linestyle"]}
            sns.ecdfplot(x=drawn_ms, stat="percent", ax=place, label=arm.label, **look)
        if key in bounds:
            place.axvline(bounds[key], color="#333333", linewidth=0.9)
            place.annotate(
                f"SLO {bounds[key]:g} ms", (bounds[key], 3), (3, 0), textcoords="offset points",
                fontsize=7,
            )  # fmt: skip
        log_ms(place, metric.short if metric.short != "latency" else "Latency")
    axes[0].set(ylabel="requests [%]", ylim=(0, 100))
    legend_below(figure, axes[0])
    alt = "Cumulative distributions of TTFT, ITL and latency for both arms on log axes. " + (
        captions.distributions_alt(evidence)
    )
    return figure, captions.distributions(evidence), alt


@drawn("outcome-quantiles", lambda e: pd.concat(e.quantile_differences, names=["metric"]))
def quantile_differences(evidence: Evidence) -> Drawing:
    """Difference between the arms at every quantile, with a simultaneous band."""
    curves = evidence.quantile_differences
    figure, axes = plt.subplots(1, len(curves), figsize=(WIDTH_IN, 2.7))
    for place, (key, curve) in zip(axes, curves.items(), strict=True):
        metric, percent = metrics.METRICS[key], 100 * curve["q"]
        place.axhline(0, color="#333333", linewidth=0.9)
        place.fill_between(
            percent, curve["band_low"], curve["band_high"], color=COMPARISON, alpha=0.2, linewidth=0
        )
        place.plot(percent, curve["difference"], color=COMPARISON)
        place.set(xlabel="percentile", ylabel=f"{metric.short} difference [ms]")
        place.set_yscale("symlog", linthresh=_linear_until_ms(curve["difference"]))
        place.yaxis.set_major_formatter(PLAIN)
    alt = "Difference of each quantile between comparison and baseline, with a band. " + (
        captions.quantiles_alt(curves)
    )
    caption = captions.quantile_differences(evidence)
    return figure, caption, alt


def _linear_until_ms(difference: pd.Series) -> float:
    """Return where the symmetric log scale begins: a power of ten near the small differences."""
    small = np.nanquantile(difference.abs(), 0.25)
    return 10.0 ** np.floor(np.log10(max(small, 1e-3)))


@drawn("outcome-over-time", lambda e: e.minutes)
def over_time(evidence: Evidence) -> Drawing:
    """Good share and median TTFT minute by minute for the two main configurations."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, axes = plt.subplots(2, 1, figsize=(WIDTH_IN, 4.2), sharex=True)
    arms = _both(evidence)
    for name, style in arm_styles(arms).items():
        rows = evidence.minutes.loc[name]
        look = {**style, "markersize": 3, "markeredgewidth": 0, "linewidth": 1.2}
        sns.lineplot(x=rows.index, y=100 * rows["good"], ax=axes[0], label=arms[name].label, **look)
        sns.lineplot(x=rows.index, y=rows["ttft_ms"], ax=axes[1], **look)
    axes[0].set(ylabel="good requests [%]", ylim=(0, 102))
    axes[1].axhline(evidence.study.slo.ttft_ms, color="#333333", linewidth=0.9)
    axes[1].set(ylabel="median TTFT\n[ms, log scale]", xlabel="minute of the trace", yscale="log")
    axes[1].yaxis.set_major_formatter(PLAIN)
    axes[1].yaxis.set_minor_formatter(PLAIN)
    axes[1].annotate(
        "SLO", (0, evidence.study.slo.ttft_ms), (2, -9), textcoords="offset points", fontsize=7
    )
    legend_below(figure, axes[0])
    alt = "Lines by minute: " + captions.over_time(evidence)
    return figure, captions.over_time(evidence), alt


@drawn("outcome-workers", lambda e: e.worker_balance)
def worker_balance(evidence: Evidence) -> Drawing:
    """Prompt tokens computed and answer tokens made by each worker, relative to an even share."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    if evidence.worker_balance.empty:
        return "Which worker served a request is not recorded on this kind of cluster."
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 2.6), sharey=True)
    table, names = evidence.worker_balance, list(evidence.arms)
    styles = arm_styles(evidence.arms)
    reach = 130 * (table["relative"] - 1).abs().max()
    for place, (work, rows) in zip(axes, table.groupby("work", sort=False), strict=True):
        for at, name in enumerate(names):
            of_arm = rows[rows["configuration"] == name]
            spread = np.linspace(-0.25, 0.25, len(of_arm))
            look = {"marker": styles[name]["marker"], "color": styles[name]["color"]}
            sns.scatterplot(x=at + spread, y=100 * of_arm["relative"], ax=place, s=18, **look)
        place.axhline(100, color="#333333", linewidth=0.9, zorder=0)
        place.set(title=str(work), xlabel="")
        labels = [evidence.arms[name].label.replace(", ", ",\n") for name in names]
        place.set_xticks(range(len(names)), labels, fontsize=7)
        place.set_xlim(-0.5, len(names) - 0.5)
    axes[0].set(ylabel="load of a worker\n[% of an even share]", ylim=(100 - reach, 100 + reach))
    alt = "One point a worker and repeat: " + captions.worker_balance(evidence)
    return figure, captions.worker_balance(evidence), alt


@drawn("outcome-groups", lambda e: e.groups)
def effects_by_group(evidence: Evidence) -> Drawing:
    """Difference of mean TTFT and of good share within groups, and the share that is faster."""
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.7), sharey=True)
    rows = evidence.groups.iloc[::-1]
    at = range(len(rows))
    shown = (
        ("ttft_ms", 1, "mean TTFT\ndifference [ms]"),
        ("good_share", 100, "good share\n[points]"),
    )
    for place, (key, factor, label) in zip(axes, shown, strict=False):
        value, low, high = (
            factor * rows[f"{key}_{part}"] for part in ("difference", "ci_low", "ci_high")
        )
        place.axvline(0, color="#333333", linewidth=0.9)
        place.hlines(at, low, high, color=COMPARISON, linewidth=1.5)
        place.plot(value, at, "s", color=COMPARISON)
        place.set_xlabel(label)
    axes[2].axvline(50, color="#333333", linewidth=0.9)
    axes[2].plot(100 * rows["ttft_ms_faster_share"], at, "s", color=COMPARISON)
    axes[2].set(xlabel="faster first token\n[% of requests]", xlim=(0, 100))
    for place in axes:
        place.grid(axis="x")
    axes[0].set_yticks(at, [f"{row.by}: {row.group}" for row in rows.itertuples()], fontsize=7)
    alt = "Differences with intervals by group: " + captions.effects_by_group(evidence)
    return figure, captions.effects_by_group(evidence), alt
