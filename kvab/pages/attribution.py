"""Page 06: why requests miss, where their time goes, and which factor brings what.

Input: the evidence and its gate. Output: what the notebook shows; the figure of misses stands on
the first page too.
"""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import pandas as pd

from kvab.console import number, percent, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.outcome import NO_VERDICT
from kvab.pages.printed import quantity, with_ends
from kvab.pages.tables import Table
from kvab.pages.theme import WIDTH_IN, Drawing, drawn, legend_below
from kvab.stats.attribution import BOTH, BOTH_KEPT, FAILED, GOOD, LATE, ONE_TOKEN, SLOW

LOOKS = {
    GOOD: ("#d9d9d9", "", "#222222"),
    LATE: ("#E69F00", "", "#222222"),
    SLOW: ("#56B4E9", "//", "#222222"),
    BOTH: ("#5D3A9B", r"\\", "#ffffff"),
    ONE_TOKEN: ("#8c8c8c", "xx", "#222222"),
    FAILED: ("#222222", "", "#ffffff"),
}
"""Colour, hatch and colour of the number of each kind of request."""
NARROW = 4.0  # per cent: a part of a bar without room for its number
PART_NAMES = {
    "queue_ms": "waiting",
    "prefill_ms": "prefill",
    "transfer_ms": "KV transfer",
    "first_decode_ms": "first decode step",
}
FACTORS = {"split": "how prefill and decode share the GPUs", "routing": "how requests are routed"}


def points_gained(evidence: Evidence) -> dict[str, float]:
    """Return what each configuration's good share gains on the baseline's, in points as printed."""
    shares = (100 * evidence.pooled["good.share"]).round(1)
    gained = shares - shares[evidence.study.baseline]
    return {str(name): float(points) for name, points in gained.items()
            if name != evidence.study.baseline}  # fmt: skip


def steps(evidence: Evidence) -> str:
    """Return what routing and split bring by themselves and together; else what each brings."""
    gained = {name: signed(points, 1) for name, points in points_gained(evidence).items()}
    arms, study = evidence.arms, evidence.study
    old, new = arms[study.baseline].factors, arms[study.comparison].factors
    if evidence.missing or old.split == new.split or old.routing == new.routing:
        texts = (f"{arms[name].label} {points}" for name, points in gained.items())
        return f"Against the baseline, in points of good requests: {', '.join(texts)}"
    routing = next(n for n, arm in arms.items() if arm.factors == old.model_copy(
        update={"routing": new.routing}))  # fmt: skip
    split = next(n for n, arm in arms.items() if arm.factors == old.model_copy(
        update={"split": new.split}))  # fmt: skip
    return (
        f"Routing by itself brings {gained[routing]} points of good requests, the split by itself "
        f"{gained[split]}, **both together {gained[study.comparison]}**"
    )


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


@drawn("attribution-misses", lambda e: e.misses.rename_axis("configuration"))
def misses_figure(evidence: Evidence) -> Drawing:
    """Draw what becomes of requests: a bar for each configuration, a part for each kind."""
    shares, left = 100 * evidence.misses.iloc[::-1], 0.0
    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 1.0 + 0.35 * len(shares)))
    labels = [evidence.arms[name].label for name in shares.index]
    for kind, (color, hatch, ink) in LOOKS.items():
        if shares[kind].any():
            bars = axes.barh(labels, shares[kind], left=left, color=color, hatch=hatch,
                             edgecolor="white", linewidth=0.5, label=kind)  # fmt: skip
            texts = [f"{share:.1f}" if share >= NARROW else "" for share in shares[kind]]
            if kind == GOOD:
                texts = [f"{text} % good" if text else "" for text in texts]
            axes.bar_label(
                bars, texts, label_type="center", fontsize=8, color=ink,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            left = left + shares[kind]
    axes.set(xlim=(0, 100), xlabel="requests [%]")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes)
    parts = "; ".join(
        f"{evidence.arms[name].label} " + ", ".join(
            f"{kind} {percent(share)}" for kind, share in row.items() if share
        )
        for name, row in evidence.misses.iterrows()
    )  # fmt: skip
    return figure, misses_caption(evidence), f"Stacked bars. {parts}."


def misses_caption(evidence: Evidence) -> str:
    """Return how the comparison changes what becomes of requests, and what is drawn."""
    study = evidence.study
    before, after = (100 * evidence.misses.loc[name].drop(GOOD)
                     for name in (study.baseline, study.comparison))  # fmt: skip
    points = (after.round(1) - before.round(1)).sort_values(key=abs, ascending=False)
    changes = ", ".join(f"{kind} {signed(value, 1)}" for kind, value in points.items() if value)
    return (
        f"What the comparison changes, in points of requests: {changes or 'nothing'}. All "
        "requests of each configuration, repeats pooled. Late: TTFT over "
        f"{study.slo.ttft_ms:g} ms; slow: ITL over {study.slo.itl_ms:g} ms."
    )


def anatomy_table(evidence: Evidence) -> Table | None:
    """Return where the mean TTFT of each configuration goes; None if no run recorded it."""
    parts, study = evidence.anatomy, evidence.study
    if parts.isna().all(axis=None):
        return None
    lines = []
    for name, of_arm in parts.iterrows():
        line = {"configuration": evidence.arms[str(name)].label}
        line |= {heading: number(of_arm[column], 0) for column, heading in PART_NAMES.items()}
        lines.append(line | {"together": number(of_arm.sum(), 0)})
    change = parts.loc[study.comparison] - parts.loc[study.baseline]
    text = ", ".join(f"{PART_NAMES[part]} {signed(change[part], 0)} ms" for part in change.index)
    caption = (
        f"The comparison's mean TTFT differs from the baseline's by: {text}. Parts of the mean "
        "TTFT in ms, over the requests of all repeats."
    )
    return Table(pd.DataFrame(lines), caption, ("configuration",))


def effects_table(evidence: Evidence) -> Table | None:
    """Return main effects and interaction, at last by bound; None without all four cells."""
    if evidence.missing:
        return None
    lines: dict[str, dict[str, str]] = {}
    bounds = evidence.attribution.bounds.assign(metric="good_share")
    by_bound = bounds[bounds["kept"] != BOTH_KEPT]
    for row in pd.concat([evidence.attribution.table, by_bound]).itertuples():
        kept = isinstance(row.kept, str)
        name = f"{row.kept} [points]" if kept else quantity(row.metric, row.statistic)
        ends = row.value, row.ci_low, row.ci_high
        lines.setdefault(name, {"effect on": name})[row.effect] = with_ends(row.metric, *ends)
    slo = evidence.study.slo
    interaction = lines[quantity("good_share")]["interaction"].replace("\n", " points ")
    caption = (
        f"Routing and split interact by {interaction} of good share. "
        f"Effects with their {evidence.study.statistics.percent} workload interval. The last rows "
        f"are shares of requests, by bound: TTFT {slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms; they "
        "add up to the effect on the good share."
    )
    return Table(pd.DataFrame([*lines.values()]), caption, ("effect on",))


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

    def main(metric: str, statistic: str) -> str:
        values = table.loc[(metric, statistic), "value"]
        larger = values[["routing", "split"]].abs().idxmax()
        effects = ", ".join(f"{name} {signed(values[name])} ms" for name in ("routing", "split"))
        return f"moves mostly with the **{larger}** ({effects})"

    row = table.loc[("good_share", "share", "interaction")]
    shown = row["ci_low"] > 0 or row["ci_high"] < 0
    depends = "what" if shown else "these runs do not show that what"
    return (
        f"The mean TTFT {main('ttft_ms', 'mean')}, the p99 ITL {main('itl_ms', 'p99')}. "
        f"{steps(evidence)}: {depends} one factor brings depends on the other."
    )
