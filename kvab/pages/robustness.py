"""Page 07: the verdicts under other choices, in other hours, and at other values in the simulation.

Input: the evidence and its gate; replays at other values. Output: figures, tables and sentences, in
the order of the page.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.console import counted, number, percent, plain, signed
from kvab.pages.capacity import source
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.hardware import mark_measured
from kvab.pages.outcome import NO_VERDICT, RED, hour_effects
from kvab.pages.printed import Table, ends, quantity, side_by_side, size, with_ends
from kvab.pages.theme import COMPARISON, GREY, RULE, WIDTH_IN, Drawing, drawn, unless_missing
from kvab.requests.metrics import METRICS
from kvab.runs.hardware import load_hardware
from kvab.runs.hours import MadeHours
from kvab.runs.sensitivity import (
    AGAIN,
    CHUNK,
    FRONTEND,
    REUSE,
    TIMES,
    TRANSFER,
    Answers,
)

ENDS = ["difference", "ci_low", "ci_high"]
NOT_REPLAYED = (
    ":::{note}\nNothing has been replayed at other values for this study: declare them under "
    "`sensitivity` in study.yaml and run `kvab sensitivity`.\n:::"
)


def _verdicts(evidence: Evidence) -> pd.DataFrame:
    """Return the verdict on each metric under each choice beside the ``declared`` choice's."""
    verdicts = evidence.robustness
    declared = verdicts[verdicts["choice"] == verdicts["choice"].iloc[0]]
    declared = declared.set_index("metric")["verdict"]
    return verdicts.assign(declared=verdicts["metric"].map(declared))


def choices_table(evidence: Evidence, judged: Gate) -> Table:
    """Return the difference of each metric under each choice; a verdict that differs is marked."""
    lines: dict[str, dict[str, str]] = {}
    verdicts = _verdicts(evidence)
    for row in verdicts.itertuples():
        key, half = row.metric, size(row.metric, (row.ci_high - row.ci_low) / 2)
        verdict = "" if lines.keys() - {row.choice} else f"{row.verdict}\n"
        if row.verdict != row.declared:
            verdict = f"CHANGED: {row.verdict}\n"
        line = lines.setdefault(row.choice, {"choice": row.choice})
        line[quantity(key)] = f"{verdict * judged.green}{side_by_side(key, row)[2]} ± {half}"
    caption = (
        f"{_same(verdicts) if judged.green else RED} Differences ± half of the "
        f"{evidence.study.statistics.percent} workload interval; the verdict is that of the first "
        "row where no other is written; a dash where the choice cannot affect the metric."
    )
    return Table(pd.DataFrame([*lines.values()]).fillna("–"), caption)


def _same(verdicts: pd.DataFrame) -> str:
    """Return how many verdicts survive the other choices."""
    others = verdicts[verdicts["choice"] != verdicts["choice"].iloc[0]]
    same = (others["verdict"] == others["declared"]).sum()
    return f"{same} of {len(others)} verdicts under other choices are as declared."


def _kept(evidence: Evidence) -> str:
    """Return which verdicts survive the other choices, and which do not."""
    verdicts = _verdicts(evidence)
    turned = [
        f"with {row.choice}, {METRICS[row.metric].label.lower()} from {row.declared} to "
        f"{row.verdict}"
        for row in verdicts[verdicts["verdict"] != verdicts["declared"]].itertuples()
    ]
    return _same(verdicts) + f" What changes: {'; '.join(turned)}." * bool(turned)


# --- from hour to hour -------------------------------------------------------------------------


@drawn("robustness-hours", lambda e: e.made_hours.effects)
def hours_figure(evidence: Evidence) -> Drawing:
    """Draw the effects in made hours as points, and the recorded ones with their intervals."""
    made, effects = evidence.made_hours, hour_effects(evidence)
    if made is None:
        return "No hours were made of the workload of these runs (kvab resample)."
    figure, panels = plt.subplots(len(effects), 1, figsize=(WIDTH_IN, 1.05 * len(effects)))
    for axes, ((key, statistic), hours) in zip(panels, effects.items(), strict=True):
        factor = METRICS[key].factor
        rise = np.random.default_rng(0).uniform(-0.3, 0.3, len(hours.made))
        axes.scatter(factor * hours.made, rise, s=10, color=GREY, alpha=0.7, linewidths=0)
        for at, of in enumerate((hours.recorded, hours.mean, hours.another), start=1):
            axes.hlines(at, factor * of.low, factor * of.high, color=COMPARISON)
            axes.plot(factor * of.value, at, "s", color=COMPARISON)
            axes.annotate(
                ends(key, of), (1, at), (4, 0), fontsize=7, va="center",
                xycoords=("axes fraction", "data"), textcoords="offset points",
            )  # fmt: skip
        axes.axvline(0, **RULE)
        names = ["made hours", "workload", "mean hour", "another hour"]
        axes.set_yticks(range(4), names, fontsize=7)
        axes.set(ylim=(3.6, -0.6), xlabel=f"difference of {quantity(key, statistic)}")
    covered = [hours.another_coverage for hours in effects.values()]
    same = sum(bool((of.made * of.recorded.value > 0).all()) for of in effects.values())
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
    recorded = pd.Series(made.summary.recorded)
    of = made.table[recorded.index]
    outside = recorded.index[~recorded.between(of.min(), of.max())].str.replace("_", " ")
    beyond = f" (not in {', '.join(outside)})" if len(outside) else ""
    return (
        f"In {len(recorded) - len(outside)} of {len(recorded)} quantities the recorded hour lies "
        f"among the {made.summary.hours} made ones{beyond}, each of as many conversations as the "
        f"{made.summary.conversations:,} of this workload."
    )


# --- other values in the simulation -------------------------------------------------------------


@unless_missing(NOT_REPLAYED)
def provenance(answers: Answers) -> str:
    """Return what was replayed, and at which values it counts."""
    cluster, trace = answers.summary.cluster, answers.summary.trace
    made_up = " **GENERATED WORKLOAD: the requests are generated.**" if answers.synthetic else ""
    return (
        f"{plain(cluster['description'])}: {counted(len(answers.cells), 'replay')} of "
        f"{counted(trace.rows, 'request')} of {plain(trace.name)}. Where the values below do not "
        "say otherwise, the KV transfer is "
        f"{_transfer(cluster['kv_transfer_gb_per_s'] or np.inf)} and the "
        f"frontend takes {cluster['frontend_ms_per_1k_tokens']:g} ms for each 1,000 prompt tokens."
        f"{made_up}"
    )


def _transfer(gb_per_s: float) -> str:
    return "free" if np.isinf(gb_per_s) else f"{gb_per_s:g} GB/s a worker"


def _level(answers: Answers) -> str:
    return f"{answers.study.statistics.percent} workload interval"


SWEEPS = {FRONTEND: ("delay", "{:g} ms"), CHUNK: ("chunk", "{:,.0f} tokens"),
          REUSE: ("share", "{:g}")}  # fmt: skip
"""Heading and text of a sweep's values."""


@unless_missing(None)
def values_table(answers: Answers, sweep: str) -> Table | None:
    """Return the good shares of both arms at each value of one sweep; None where it has none."""
    if answers.of(sweep).empty:
        return None
    (heading, text), study, effects = SWEEPS[sweep], answers.study, answers.effects_of(sweep)
    shares = answers.of(sweep).set_index([*effects.index.names, "configuration"])["good_share"]
    lines = [
        {
            heading: text.format(value),
            **{study.configurations[name].label: percent(shares[value, name])
               for name in study.main},
            "difference [points]": with_ends("good_share", *effects.loc[value, ENDS], gap=" "),
        }
        for value in shares.index.unique(0)
    ]  # fmt: skip
    caption = f"Good requests by {heading}; in brackets the {_level(answers)} of the difference."
    return Table(pd.DataFrame(lines), caption)


@drawn("sensitivity-transfer", lambda a: a.effects_of(TRANSFER), source=source)
def transfer_figure(answers: Answers) -> Drawing:
    """Effect on the good share against the bandwidth."""
    effects = answers.effects_of(TRANSFER)
    at, values = np.arange(len(effects)), 100 * effects["difference"].to_numpy()
    ends = 100 * effects[["ci_low", "ci_high"]].to_numpy().T
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.6))
    axes.errorbar(at, values, abs(ends - values), color=COMPARISON, fmt="s", capsize=3)
    for x, y, high in zip(at, values, ends[1], strict=True):
        axes.annotate(number(y, 1), (x, high), (0, 4), textcoords="offset points", ha="center")
    axes.axhline(0, color=GREY, linewidth=0.8)
    labels = ["free" if np.isinf(value) else f"{value:g}" for value in effects.index]
    axes.set_xticks(at, labels)
    axes.margins(x=0.08)
    axes.set(xlabel="KV transfer [GB/s a worker]", ylabel="effect on good share [points]",
             ylim=(min(0, ends.min()) - 1, 1.15 * max(0, ends.max()) + 1))  # fmt: skip
    caption = (
        f"{transfer(answers)} Effect: good share of the comparison minus the baseline's, "
        f"with its {_level(answers)}."
    )
    ends_text = " to ".join(f"{signed(values[n], 1)} at {labels[n]}" for n in (0, -1))
    alt = f"Points with intervals, from {ends_text}."
    return figure, caption, alt


def transfer(answers: Answers) -> str:
    """Return what a slow transfer costs, and whether the comparison stays ahead."""
    effects = answers.effects_of(TRANSFER)
    slowest, fastest = _transfer(effects.index[0]), _transfer(effects.index[-1])
    cost = 100 * (effects["difference"].iloc[-1] - effects["difference"].iloc[0])
    holds = (effects["ci_low"] > 0).all()
    return (
        f"A KV transfer of {slowest} instead of {fastest} costs the comparison "
        f"{number(cost, 1)} points. It "
        f"{'stays ahead' if holds else 'does not stay ahead'} at every bandwidth replayed."
    )


def chunk(answers: Answers) -> str:
    """Return whether the baseline catches up at some chunk size."""
    study, cells = answers.study, answers.of(CHUNK)
    base, comp = (
        cells[cells["configuration"] == name].set_index("chunk_tokens")["good_share"]
        for name in study.main
    )
    finding = "No chunk size replayed lets the baseline catch up"
    if base.max() >= comp.min():
        finding = "At its best chunk size the baseline reaches the comparison at its worst"
    return (
        f"{finding}: at {base.idxmax():,.0f} tokens, its best, the baseline keeps "
        f"{percent(base.max())} of requests good; the comparison keeps "
        f"{percent(comp.min())} at its worst, {comp.idxmin():,.0f}, and {percent(comp.max())} at "
        f"its best, {comp.idxmax():,.0f}."
    )


def _router_gains(answers: Answers) -> pd.DataFrame:
    """Return the points that the KV router gains on round-robin: by reuse, a column a split."""
    cells, arms = answers.of(REUSE), answers.study.configurations
    cells = cells[cells["configuration"].isin(arms)]
    factors = [arms[name].factors for name in cells["configuration"]]
    if not {"kv", "round-robin"} <= {each.routing for each in factors}:
        return pd.DataFrame()
    shares = cells.assign(
        routing=[each.routing for each in factors], split=[each.split for each in factors]
    ).pivot_table("good_share", "reuse", ["routing", "split"], "last")
    return 100 * (shares["kv"] - shares["round-robin"]).dropna(axis=1)


@unless_missing("")
def reuse(answers: Answers) -> str:
    """Return what the KV router gains with and without anything to reuse, by split."""
    gains = _router_gains(answers)
    clauses = [
        f"{signed(gain.iloc[-1], 1)} points with all reuse and {signed(gain.iloc[0], 1)} "
        f"with {percent(gain.index[0], 0)} of it where workers are {split}"
        for split, gain in gains.items()
    ]
    if not clauses:
        return ""
    return (
        f"The KV router instead of round-robin changes the good share by {'; by '.join(clauses)}."
    )


@unless_missing("")
def without_reuse(answers: Answers) -> str:
    """Return in short what is left of the KV router's gains with least to reuse."""
    gains = _router_gains(answers).head(1)
    left = [f"{signed(gain.iloc[0], 1)} points to {split} workers" for split, gain in gains.items()]
    share = percent(gains.index[0], 0) if left else ""
    return f" With {share} of that reuse the KV router brings {' and '.join(left)}." if left else ""


@drawn("sensitivity-times", lambda a: a.effects_of(TIMES), source=source)
def times_figure(answers: Answers) -> Drawing:
    """Effect on the good share where steps take longer or shorter than simulated."""
    grid = answers.effects_of(TIMES).unstack("prefill_time_ratio")
    values = 100 * grid["difference"]
    open_ = (grid["ci_low"] <= 0) & (grid["ci_high"] >= 0)
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 3.2))
    most = float(abs(values.to_numpy()).max())
    image = axes.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto", origin="lower")
    for y, row in enumerate(values.to_numpy()):
        for x, value in enumerate(row):
            mark = "?" if open_.iloc[y, x] else ""
            dark = abs(value) > 0.6 * most
            axes.text(
                x, y, signed(value, 1) + mark, ha="center", va="center", fontsize=8,
                color="white" if dark else "#222222",
                bbox={"facecolor": image.to_rgba(value), "linewidth": 0, "pad": 1},
            )  # fmt: skip
    for axis, ratios in ((axes.xaxis, values.columns), (axes.yaxis, values.index)):
        axis.set_ticks(range(len(ratios)), [f"{signed(100 * (v - 1), 0)} %" for v in ratios])
    axes.set(xlabel="error of prefill times", ylabel="error of decode times")
    axes.grid(visible=False)
    caption = (
        f"{_times_finding(answers)} Comparison minus baseline in points of good share, where the "
        "simulator's steps take longer or shorter in both; a question mark where the "
        f"{_level(answers)} includes zero.{mark_measured(load_hardware(), axes, values)}"
    )
    least, largest = values.min().min(), values.max().max()
    alt = f"Grid of {values.size} differences, {signed(least, 1)} to {signed(largest, 1)} points."
    return figure, caption, alt


def _change(ratio: float) -> str:
    return "as simulated" if ratio == 1 else f"{signed(100 * (ratio - 1), 0)} %"


def _times_finding(answers: Answers) -> str:
    effects = answers.effects_of(TIMES)
    wins, loses = effects["ci_low"] > 0, effects["ci_high"] < 0
    if wins.all():
        return f"The comparison stays ahead at all {len(effects)} combinations of errors."
    text = f"The comparison is ahead at {wins.sum()} of {len(effects)} combinations of errors"
    return f"{text} and behind at {loses.sum()}."


def times(answers: Answers) -> str:
    """Return where the answer would flip, and how far the engine's settings reach."""
    effects = answers.effects_of(TIMES)
    prefill, decode = at = effects["difference"].idxmin()
    least = with_ends("good_share", *effects.loc[at, ENDS], gap=" points ")
    return (
        f"{_times_finding(answers)} The least favourable is {least}, prefill {_change(prefill)} "
        f"and decode {_change(decode)}."
    )


@unless_missing("")
def again(answers: Answers) -> str:
    """Return how far replays of the very same order lie apart behind the KV router."""
    clauses = []
    for name, of in answers.of(AGAIN).groupby("configuration", sort=False):
        shares = 100 * of["good_share"]
        clauses.append(
            f"{answers.arms[name].label} keeps {number(shares.min(), 2)} to "
            f"{number(shares.max(), 2)} % of requests good (sd {number(shares.std(), 2)} points)"
        )
    return f"The same requests in the same order, replayed again: {'; '.join(clauses)}."


# --- what was learned -----------------------------------------------------------------------------


def lesson(evidence: Evidence, judged: Gate, answers: Answers | None) -> str:
    """Return which verdicts survive the other choices, and what other values change."""
    lines = [_kept(evidence) if judged.green else NO_VERDICT]
    lines += [transfer(answers), chunk(answers), times(answers)] if answers else []
    return "\n".join(f"- {line}" for line in lines)
