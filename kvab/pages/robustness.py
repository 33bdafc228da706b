"""Page 07: the verdicts under other choices, what survives them, and other hours.

Input: the evidence and its gate. Output: what the notebook shows.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.console import interval, percent
from kvab.pages.evidence import Evidence
from kvab.pages.gate import WITHHELD, Gate
from kvab.pages.outcome import NO_VERDICT, hour_effects
from kvab.pages.printed import changed, quantity, size
from kvab.pages.tables import Table
from kvab.pages.theme import COMPARISON, GREY, WIDTH_IN, Drawing, drawn
from kvab.requests.metrics import METRICS
from kvab.runs.hours import MadeHours


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
    return f"- Choices that leave the verdict as declared: {counts}.{changes}"


# --- from hour to hour -------------------------------------------------------------------------


@drawn("robustness-hours", lambda e: e.made_hours.effects)
def hours_figure(evidence: Evidence) -> Drawing:
    """Draw the effects in made hours as points, and the recorded ones with their intervals."""
    made, effects = evidence.made_hours, hour_effects(evidence)
    if made is None:
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
        f"{percent(max(covered))} of cases. {_brought(made)}"
    )
    return figure, caption, f"A strip for each metric. {caption}"


def _brought(made: MadeHours) -> str:
    """Return whether the recorded hour brings what the made ones bring."""
    outside = [
        name.replace("_", " ")
        for name, recorded in made.summary.recorded.items()
        if not made.table[name].min() <= recorded <= made.table[name].max()
    ]
    count = len(made.summary.recorded)
    beyond = f" (not in {', '.join(outside)})" if outside else ""
    return (
        f"In {count - len(outside)} of {count} quantities the recorded hour lies among "
        f"the {made.summary.hours} made ones{beyond}, each of as many conversations as the "
        f"{made.summary.conversations:,} of this workload."
    )
