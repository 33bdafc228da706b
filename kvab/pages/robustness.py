"""Page 07: the surface of bounds, the verdicts under other choices, and what survives them.

Input: the evidence and its gate. Output: what the notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from kvab.console import interval, number, percent, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import WITHHELD, Gate
from kvab.pages.outcome import NO_VERDICT, hour_effects
from kvab.pages.printed import changed, quantity, size
from kvab.pages.tables import Table
from kvab.pages.theme import COMPARISON, GREY, WIDTH_IN, Drawing, drawn
from kvab.requests.metrics import METRICS


@drawn("robustness-slo-surface", lambda e: e.slo_surface)
def slo_surface_figure(evidence: Evidence) -> Drawing:
    """Draw the difference of the good share for every pair of bounds, the named ones outlined."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 3.9))
    surface = evidence.slo_surface
    points = 100 * surface["difference"]
    certain = (surface["band_low"] > 0) | (surface["band_high"] < 0)
    texts = [signed(p, 1) + ("" if sure else "?") for p, sure in zip(points, certain, strict=True)]
    cells = surface.assign(points=points, text=texts)
    grid, text = (
        cells.pivot(index="itl_ms", columns="ttft_ms", values=column).sort_index()
        for column in ("points", "text")
    )
    reach = np.abs(grid.to_numpy()).max()
    sns.heatmap(
        grid, ax=axes, cmap="PuOr_r", vmin=-reach, vmax=reach, annot=text, fmt="",
        annot_kws={"fontsize": 7}, linewidths=0.6,
        cbar_kws={"label": "good share, difference [points]"},
    )  # fmt: skip
    axes.invert_yaxis()
    for at, slo in enumerate([evidence.study.slo, *evidence.study.other_slos]):
        if slo.ttft_ms in grid.columns and slo.itl_ms in grid.index:
            corner = (grid.columns.get_loc(slo.ttft_ms), grid.index.get_loc(slo.itl_ms))
            line = (0, (2, 1)) if at else "-"
            box = Rectangle(corner, 1, 1, fill=False, linewidth=2, linestyle=line, zorder=3)
            axes.add_patch(box)
    axes.set_xticks(np.arange(len(grid.columns)) + 0.5, [f"{v / 1000:g}" for v in grid.columns])
    axes.set_yticks(np.arange(len(grid.index)) + 0.5, [f"{v:g}" for v in grid.index], rotation=0)
    axes.set(xlabel="TTFT bound [s]", ylabel="ITL bound [ms]")
    caption = slo_surface_caption(evidence)
    return figure, caption, f"Grid of differences by TTFT and ITL bound. {caption}"


def slo_surface_caption(evidence: Evidence) -> str:
    """Return under how many bounds the comparison wins and loses, and what is outlined."""
    surface, study = evidence.slo_surface, evidence.study
    wins, loses = surface["band_low"] > 0, surface["band_high"] < 0
    finding = f"The comparison keeps more requests good under {wins.sum()} of {len(surface)} bounds"
    if loses.any():
        slowest_ms = surface.loc[loses, "itl_ms"].max()
        finding += f" and fewer under {loses.sum()}, all with an ITL bound of {slowest_ms:g} ms"
        finding += " or less"
    others = " and ".join(f"{slo.ttft_ms:g}/{slo.itl_ms:g} ms" for slo in study.other_slos)
    dashed = f", dashed {others}" if others else ""
    return (
        f"{finding}. Difference of the good share in points; a question mark where the band that "
        f"holds for all bounds at once includes zero. Outlined: {study.slo.ttft_ms:g}/"
        f"{study.slo.itl_ms:g} ms, the study's bounds{dashed}."
    )


def _verdicts(evidence: Evidence) -> pd.DataFrame:
    """Return the verdict on each metric under each choice beside the ``declared`` choice's."""
    verdicts = evidence.robustness
    declared = verdicts[verdicts["choice"] == verdicts["choice"].iloc[0]]
    declared = declared.set_index("metric")["verdict"]
    return verdicts.assign(declared=verdicts["metric"].map(declared))


def choices_table(evidence: Evidence, judged: Gate) -> Table:
    """Return the verdict on each metric under each choice; what differs is marked."""
    lines: dict[str, dict[str, str]] = {}
    for row in _verdicts(evidence).itertuples():
        key, mark = row.metric, "CHANGED: " if row.verdict != row.declared else ""
        verdict = f"{mark}{row.verdict}" if judged.green else WITHHELD
        half = size(key, (row.ci_high - row.ci_low) / 2)
        line = lines.setdefault(row.choice, {"choice": row.choice})
        line[quantity(key)] = f"{verdict}\n{changed(key, row.baseline, row.comparison)} ± {half}"
    frame = pd.DataFrame([*lines.values()]).fillna("–")
    level, others = evidence.study.statistics.percent, _verdicts(evidence).iloc[len(METRICS) :]
    same = f"{(others['verdict'] == others['declared']).sum()} of {len(others)} verdicts under "
    finding = f"{same}other choices are as declared. " if judged.green else ""
    caption = (
        f"{finding}Verdict, and the difference that it is about with its {level} workload "
        "interval; a dash where the choice cannot affect the metric."
    )
    return Table(frame, caption, ("choice",))


def lesson(evidence: Evidence, judged: Gate) -> str:
    """Return which verdicts survive the other choices, and which do not."""
    if not judged.green:
        return NO_VERDICT
    verdicts = _verdicts(evidence)
    others = verdicts[verdicts["choice"] != verdicts["choice"].iloc[0]]
    same = others["verdict"] == others["declared"]
    counts = ", ".join(
        f"{METRICS[key].label.lower()} {of_metric.sum()} of {len(of_metric)}"
        for key, of_metric in same.groupby(others["metric"], sort=False)
    )
    turned = "; ".join(
        f"with {row.choice}, {METRICS[row.metric].label.lower()} from {row.declared} to "
        f"{row.verdict}"
        for row in others[~same].itertuples()
    )
    changes = f" What changes: {turned}." if turned else ""
    kept = f"Choices that leave the verdict as declared: {counts}.{changes}"
    return f"- {kept}\n- {_surface(evidence)}"


def _surface(evidence: Evidence) -> str:
    surface = evidence.slo_surface
    wins, loses = surface[surface["band_low"] > 0], surface[surface["band_high"] < 0]
    if loses.empty or wins.empty:
        return "No pair of bounds on the grid turns the difference of the good share around."
    slowest_ms, fastest_ms = loses["itl_ms"].max(), wins["itl_ms"].min()
    text = (
        f"The bounds matter more: under {len(loses)} of {len(surface)} pairs of bounds the "
        "comparison keeps **fewer** requests good"
    )
    if slowest_ms < fastest_ms:
        text += (
            f", all with an ITL bound of {slowest_ms:g} ms or less. The ITL bound decides who "
            "leads, the TTFT bound by how much"
        )
    return f"{text}."


# --- from hour to hour -------------------------------------------------------------------------


@drawn("robustness-hours", lambda e: e.made_hours.effects)
def hours_figure(evidence: Evidence) -> Drawing:
    """Draw the effects in made hours as points, and the recorded ones with their intervals."""
    if not (effects := hour_effects(evidence)):
        return "No hours were made of the workload of these runs (kvab resample)."
    figure, panels = plt.subplots(len(effects), 1, figsize=(WIDTH_IN, 1.05 * len(effects)))
    for axes, effect in zip(panels, effects, strict=True):
        rise = np.random.default_rng(0).uniform(-0.3, 0.3, len(effect.made))
        axes.scatter(effect.factor * effect.made, rise, s=10, color=GREY, alpha=0.7, linewidths=0)
        intervals = (effect.recorded, effect.hours.mean, effect.hours.another)
        for at, ends in enumerate(intervals, start=1):
            axes.hlines(at, effect.factor * ends.low, effect.factor * ends.high, color=COMPARISON)
            axes.plot(effect.factor * ends.value, at, "s", color=COMPARISON)
            axes.annotate(
                interval(ends.low, ends.high, effect.factor), (1, at), (4, 0), fontsize=7,
                xycoords=("axes fraction", "data"), textcoords="offset points", va="center",
            )  # fmt: skip
        axes.axvline(0, color="#333333", linewidth=0.9)
        names = ["made hours", "workload", "mean hour", "another hour"]
        axes.set_yticks(range(4), names, fontsize=7)
        axes.set(ylim=(3.6, -0.6), xlabel=f"difference of {effect.label}")
    covered = [effect.hours.another_coverage for effect in effects]
    same = sum(bool((effect.made * effect.recorded.value > 0).all()) for effect in effects)
    caption = (
        f"{same} of {len(effects)} differences have the recorded sign in every made hour. Points: "
        "made hours. Squares: the recorded difference, with its workload interval and the two "
        "hour-to-hour intervals, of the mean over such hours and of another one "
        f"({evidence.study.statistics.percent} each). With each made hour in the place of the "
        f"recorded one, the last covers each of the others in {percent(min(covered))} to "
        f"{percent(max(covered))} of cases."
    )
    return figure, caption, f"A strip for each metric. {caption}"


def loads_table(evidence: Evidence) -> Table | None:
    """Return what the recorded hour brings beside what the made ones bring."""
    if not (made := evidence.made_hours):
        return None
    lines = []
    for name, recorded in made.summary.recorded.items():
        least, most = made.table[name].min(), made.table[name].max()
        line = {"what an hour brings": name.replace("_", " "), "recorded": number(recorded, 0)}
        line["made hours"] = f"{number(least, 0)} to {number(most, 0)}"
        line["recorded is"] = "among them" if least <= recorded <= most else "outside"
        lines.append(line)
    among = sum(line["recorded is"] == "among them" for line in lines)
    caption = (
        f"The recorded hour lies among the made ones in {among} of {len(lines)} quantities. "
        f"{made.summary.hours} made hours, lowest to highest, each of as many conversations as the "
        f"{made.summary.conversations:,} of this workload, drawn anew and begun at other times. "
        "Reusable tokens: what an unlimited cache would serve."
    )
    return Table(pd.DataFrame(lines), caption, ("what an hour brings", "recorded is"))
