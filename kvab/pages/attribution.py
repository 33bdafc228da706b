"""Page 06: why requests miss, the four cells of the 2x2, and which factor brings what.

Input: the evidence and its gate. Output: what the notebook shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import matplotlib.pyplot as plt
import pandas as pd

from kvab.console import number, percent, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.outcome import NO_VERDICT, reuse_text
from kvab.pages.printed import quantity, with_ends
from kvab.pages.tables import Table
from kvab.pages.theme import PLAIN, STYLES, WIDTH_IN, Drawing, drawn, legend_below
from kvab.stats.attribution import (
    BOTH,
    FAILED,
    GOOD,
    ITL_KEPT,
    LATE,
    NONE_KEPT,
    ONE_TOKEN,
    SLOW,
    TTFT_KEPT,
)

CELL_COLUMNS = {
    "TTFT mean [ms]": "ttft_ms.mean",
    "TTFT p50": "ttft_ms.p50",
    "TTFT p99": "ttft_ms.p99",
    "ITL p50 [ms]": "itl_ms.p50",
    "ITL p99": "itl_ms.p99",
    "latency mean [ms]": "latency_ms.mean",
}
LOOKS = {
    GOOD: ("#d9d9d9", ""),
    LATE: ("#E69F00", ""),
    SLOW: ("#56B4E9", "//"),
    BOTH: ("#5D3A9B", ".."),
    ONE_TOKEN: ("#8c8c8c", "xx"),
    FAILED: ("#222222", ""),
}
PART_NAMES = {
    "queue_ms": "waiting",
    "prefill_ms": "prefill",
    "transfer_ms": "KV transfer",
    "first_decode_ms": "first decode step",
}
FACTORS = {"split": "how prefill and decode share the GPUs", "routing": "how requests are routed"}


def unless_whole(show: Callable[[Evidence], Table]) -> Callable[[Evidence], Table]:
    """Return a decorator: where the 2x2 is not whole, a table says what it lacks."""

    def table(evidence: Evidence) -> Table:
        if evidence.missing:
            frame = pd.DataFrame({"no run of": [evidence.missing]})
            return Table(frame, "The 2x2 is not whole.", ("no run of",))
        return show(evidence)

    return table


def points_gained(evidence: Evidence) -> pd.Series:
    """Return what each configuration's good share gains on the baseline's, in points as printed."""
    shares = (100 * evidence.good_shares["share"]).round(1)
    return shares - shares[evidence.study.baseline]


def _differ(evidence: Evidence, names: Iterable[str]) -> list[str]:
    """Return in which factors some configurations differ."""
    levels = [evidence.study.configurations[name].factors.model_dump() for name in names]
    return [text for key, text in FACTORS.items() if len({level[key] for level in levels}) > 1]


def factors(evidence: Evidence) -> str:
    """Return in which factors baseline and comparison differ, and what tells them apart."""
    differ = _differ(evidence, (evidence.study.baseline, evidence.study.comparison))
    if not differ:
        return "Baseline and comparison have the same split and the same routing."
    if len(differ) == 1:
        return f"Baseline and comparison differ in one factor: {differ[0]}."
    rest = (
        f"What would tell them apart has no run: {plain(evidence.missing)}."
        if evidence.missing
        else "Configurations that have one factor without the other tell them apart."
    )
    return f"Baseline and comparison differ in two factors at once: {' and '.join(differ)}. {rest}"


def all_factors(evidence: Evidence) -> str:
    """Return in which factors any two configurations differ."""
    differ = _differ(evidence, evidence.arms)
    what = f"in {' and in '.join(differ)}, and in what follows from that" if differ else (
        "only in the fields listed above"
    )  # fmt: skip
    return f"The configurations differ {what}."


def cells_table(evidence: Evidence) -> Table:
    """Return the metrics of the four cells of the 2x2."""
    lines = []
    for name, arm in evidence.arms.items():
        of_arm = evidence.pooled.loc[name]
        line = {"configuration": arm.label, "good": percent(of_arm["good.share"])}
        line |= {heading: number(of_arm[column]) for heading, column in CELL_COLUMNS.items()}
        lines.append(line | {"prompt from cache": reuse_text(of_arm["reuse"])})
    caption = "Over the requests of all repeats; the share from cache is the mean over the repeats."
    return Table(pd.DataFrame(lines), caption, ("configuration",))


def anatomy_table(evidence: Evidence) -> Table | None:
    """Return where the mean TTFT of each configuration goes; None if no run recorded it."""
    parts = evidence.anatomy
    if parts.isna().all(axis=None):
        return None
    lines = []
    for name, of_arm in parts.iterrows():
        line = {"configuration": evidence.arms[str(name)].label}
        line |= {heading: number(of_arm[column], 0) for column, heading in PART_NAMES.items()}
        lines.append(line | {"together": number(of_arm.sum(), 0)})
    return Table(
        pd.DataFrame(lines),
        "Means over the requests of all repeats, in ms. Waiting: frontend and queue, until a "
        "worker admits the request. Prefill: from then until its prompt is read, with the other "
        "prompts of the same steps. Transfer: until the decode worker has the KV cache and admits "
        "the request; an aggregated worker does without and gives the first token with the "
        "prompt's last step.",
        ("configuration",),
    )


def anatomy(evidence: Evidence) -> str:
    """Return where the comparison's TTFT differs from the baseline's."""
    parts = evidence.anatomy
    if not {evidence.study.baseline, evidence.study.comparison} <= {*parts.dropna().index}:
        return (
            "Where a TTFT goes cannot be told: only a simulation records when a worker admits a "
            "request, and only from requests schema 2 on."
        )
    apart = parts.loc[evidence.study.comparison] - parts.loc[evidence.study.baseline]
    text = ", ".join(
        f"{PART_NAMES[column]} {signed(apart[column], 0)} ms" for column in apart.index
    )
    return f"Against the baseline's, the comparison's mean TTFT differs by: {text}."


def misses_table(evidence: Evidence) -> Table:
    """Return what becomes of the requests of each configuration."""
    shares = evidence.misses
    columns = [kind for kind in shares if kind != FAILED or shares[kind].any()]
    lines = [
        {"configuration": evidence.arms[name].label}
        | {kind: percent(shares.loc[name, kind]) for kind in columns}
        for name in shares.index
    ]
    slo = evidence.study.slo
    return Table(
        pd.DataFrame(lines),
        f"Late: TTFT over {slo.ttft_ms:g} ms. Slow: ITL over {slo.itl_ms:g} ms. Over the requests "
        "of all repeats.",
        ("configuration",),
    )


@drawn("attribution-misses", lambda e: e.misses.rename_axis("configuration"))
def misses_figure(evidence: Evidence) -> Drawing:
    """Draw what becomes of requests: a bar for each configuration, a part for each kind."""
    shares, left = 100 * evidence.misses.iloc[::-1], 0.0
    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 1.0 + 0.35 * len(shares)))
    labels = [evidence.arms[name].label for name in shares.index]
    for kind, (color, hatch) in LOOKS.items():
        if shares[kind].any():
            axes.barh(labels, shares[kind], left=left, color=color, hatch=hatch, edgecolor="white",
                      linewidth=0.5, label=kind)  # fmt: skip
            left = left + shares[kind]
    axes.set(xlim=(0, 100), xlabel="requests [%]")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes)
    caption = misses_caption(evidence)
    parts = "; ".join(
        f"{evidence.arms[name].label} " + ", ".join(
            f"{kind} {percent(share)}" for kind, share in row.items() if share
        )
        for name, row in evidence.misses.iterrows()
    )  # fmt: skip
    return figure, caption, f"Stacked bars. {parts}."


def misses_caption(evidence: Evidence) -> str:
    """Return the most frequent reason of a miss in either arm, and what is drawn."""
    clauses = []
    for name in (evidence.study.baseline, evidence.study.comparison):
        reasons = evidence.misses.loc[name].drop(GOOD)
        if reasons.any():
            clauses.append(f"under {evidence.arms[name].label} is {reasons.idxmax()} "
                           f"({percent(reasons.max())} of requests)")  # fmt: skip
    why = f"The largest kind of miss {', '.join(clauses)}" if clauses else "No request misses"
    return f"{why}. What becomes of the requests of each configuration, repeats pooled."


@unless_whole
def bounds_table(evidence: Evidence) -> Table:
    """Return the effects on the shares of requests that keep each bound, neither and both."""
    bounds, lines = evidence.attribution.bounds, []
    for kept, rows in bounds.groupby("kept", sort=False):
        line = {"share of requests": kept}
        for row in rows.itertuples():
            ends = row.value, row.ci_low, row.ci_high
            line[f"{row.effect} [points]"] = with_ends("good_share", *ends)
        lines.append(line)
    slo = evidence.study.slo
    return Table(
        pd.DataFrame(lines),
        f"Effects ({evidence.study.statistics.percent} workload interval) by bound: TTFT "
        f"{slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms. The first three rows add up to the last.",
        ("share of requests",),
    )


@drawn("attribution-interaction", lambda e: e.cells)
def interaction_figure(evidence: Evidence) -> Drawing:
    """Draw the 2x2: good share, mean TTFT and p99 ITL by routing, a line for each split."""
    if evidence.missing:
        return f"The 2x2 is not whole: no run of {evidence.missing} on {evidence.cluster}."
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.9))
    shown = (
        ("good", 100, "good requests [%]"),
        ("ttft_ms", 1, "mean TTFT [ms]"),
        ("itl_p99_ms", 1, "p99 ITL [ms, log scale]"),
    )
    for axes, (column, factor, label) in zip(panels, shown, strict=True):
        for split, style in (("aggregated", "baseline"), ("disaggregated", "comparison")):
            rows = evidence.cells.xs(split, level="split").loc[["round-robin", "kv"]]
            axes.plot([0, 1], factor * rows[column], label=split, **STYLES[style])
        axes.set(ylabel=label, xlim=(-0.3, 1.3))
        axes.set_xticks([0, 1], ["round-robin", "KV router"])
    panels[0].set_ylim(0, 100)
    panels[1].set_ylim(0, None)
    panels[2].set_yscale("log")
    panels[2].yaxis.set_major_formatter(PLAIN)
    panels[2].yaxis.set_minor_formatter(PLAIN)
    legend_below(figure, panels[0])
    caption = interaction_caption(evidence)
    return figure, caption, f"Lines from round-robin to KV router for each split. {caption}"


def interaction_caption(evidence: Evidence) -> str:
    """Return how much more one factor does in the presence of the other, and what is drawn."""
    table = evidence.attribution.table.set_index(["metric", "statistic", "effect"]).sort_index()
    row = table.loc[("good_share", "share", "interaction")]
    return (
        f"The interaction is {with_ends('good_share', *row, gap=' points of good share ')}. Good "
        "share, mean TTFT and p99 ITL of the four cells; parallel lines would mean that the "
        "factors add up."
    )


@unless_whole
def effects_table(evidence: Evidence) -> Table:
    """Return main effects and interaction for every metric, with intervals."""
    lines: dict[str, dict[str, str]] = {}
    for row in evidence.attribution.table.itertuples():
        name, ends = quantity(row.metric, row.statistic), (row.value, row.ci_low, row.ci_high)
        lines.setdefault(name, {"metric": name})[row.effect] = with_ends(row.metric, *ends)
    caption = f"Value ({evidence.study.statistics.percent} workload interval)."
    return Table(pd.DataFrame([*lines.values()]), caption, ("metric",))


def lesson(evidence: Evidence, judged: Gate) -> str:
    """Return in one paragraph which factor brings what."""
    if not judged.green:
        return NO_VERDICT
    if evidence.missing:
        return (
            f"What routing brings and what the split brings cannot be told apart on "
            f"{plain(evidence.cluster)}: there is no run of {evidence.missing}."
        )
    table = evidence.attribution.table.set_index(["metric", "statistic", "effect"]).sort_index()

    def effect(metric: str, statistic: str, name: str) -> str:
        unit = " points " if metric == "good_share" else " ms "
        return with_ends(metric, *table.loc[(metric, statistic, name)], gap=unit)

    def larger(metric: str, statistic: str) -> str:
        return str(table.loc[(metric, statistic), "value"][["routing", "split"]].abs().idxmax())

    row = table.loc[("good_share", "share", "interaction")]
    depends = (
        f"what one factor brings depends on the other. {_by_bound(evidence)}"
        if row["ci_low"] > 0 or row["ci_high"] < 0
        else "these runs do not show that what one factor brings depends on the other."
    )
    points = points_gained(evidence)
    steps = ", ".join(
        f"{arm.label} {signed(points[name], 1)}"
        for name, arm in evidence.arms.items()
        if name != evidence.study.baseline
    )
    return (
        f"Mean TTFT moves mostly with the **{larger('ttft_ms', 'mean')}**: routing "
        f"{effect('ttft_ms', 'mean', 'routing')}, split {effect('ttft_ms', 'mean', 'split')}. The "
        f"tail of ITL (p99) moves mostly with the **{larger('itl_ms', 'p99')}**: routing "
        f"{effect('itl_ms', 'p99', 'routing')}, split {effect('itl_ms', 'p99', 'split')}. Against "
        f"the baseline the good share changes by these points: {steps}. The interaction is "
        f"{effect('good_share', 'share', 'interaction')}: {depends}"
    )


def _by_bound(evidence: Evidence) -> str:
    """Return how much of the interaction comes through each bound."""
    bounds = evidence.attribution.bounds.set_index(["effect", "kept"])
    points = 100 * bounds.loc["interaction", "value"]
    return (
        f"It is the sum of {signed(points[TTFT_KEPT], 1)} points on the share that keeps the TTFT "
        f"bound, {signed(points[ITL_KEPT], 1)} on the share that keeps the ITL bound and "
        f"{signed(points[NONE_KEPT], 1)} on the share that keeps neither."
    )
