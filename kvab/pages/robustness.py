"""Page 07: the verdicts under other choices, in other hours, and at other values in the simulation.

Input: the evidence and its gate; replays at other values. Output: figures, tables and sentences, in
the order of the page.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.console import counted, interval, number, percent, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import WITHHELD, Gate
from kvab.pages.hardware import mark_measured
from kvab.pages.outcome import NO_VERDICT, hour_effects
from kvab.pages.printed import Table, changed, quantity, size
from kvab.pages.theme import COMPARISON, GREY, WIDTH_IN, Drawing, drawn, unless_missing
from kvab.requests.metrics import METRICS
from kvab.runs.hardware import load_hardware
from kvab.runs.hours import MadeHours
from kvab.runs.sensitivity import (
    AGAIN,
    CHUNK,
    FRONTEND,
    REUSE,
    SETTING,
    TIMES,
    TRANSFER,
    Answers,
)

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


# --- other values in the simulation -------------------------------------------------------------


def _source(answers: Answers, runs: bool = True) -> str:
    whose = "" if answers.own else ", published"
    synthetic = " GENERATED WORKLOAD." if answers.synthetic else ""
    return (
        f"Source: {answers.cluster}{whose}, one replay of "
        f"{counted(answers.summary.trace.rows, 'request')} a cell; simulated, not measured."
        f"{synthetic}"
    )


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


def _one(gb_per_s: float) -> str:
    return "a free one" if np.isinf(gb_per_s) else f"one of {_transfer(gb_per_s)}"


def _level(answers: Answers) -> str:
    return f"{answers.study.statistics.percent} workload interval"


def _effect(row: pd.Series) -> str:
    points = signed(100 * row["difference"], 1)
    return f"{points}\n({interval(row['ci_low'], row['ci_high'], 100)})"


def _table(answers: Answers, sweep: str, first: str, label: str, caption: str) -> Table:
    """Return a row a setting: share and mean TTFT of each configuration, and the effect."""
    cells, column = answers.of(sweep), SETTING[sweep][0]
    effects = answers.effects_of(sweep, "good_share").set_index(column)
    lines = []
    for value, of in cells.groupby(column, sort=False):
        line = {first: label.format(value).replace("inf GB/s", "free")}
        rows = of.set_index("configuration")
        for name, arm in answers.arms.items():
            share, ttft = rows.loc[name, ["good_share", "ttft_ms_mean"]]
            line[f"{arm.short}: good, mean TTFT"] = f"{percent(share)}\n{number(ttft)} ms"
        line["effect on the good share [points]"] = _effect(effects.loc[value])
        lines.append(line)
    level = _level(answers)
    names = ", ".join(f"{arm.short} {arm.label}" for arm in answers.arms.values())
    caption = f"{caption} {names}. Effect: comparison minus baseline, with its {level}."
    return Table(pd.DataFrame(lines), caption, (first,))


@unless_missing(None)
def transfer_table(answers: Answers) -> Table:
    """Return what each bandwidth of the KV transfer does."""
    caption = "What a worker can send of its KV cache; an aggregated worker sends nothing."
    return _table(answers, TRANSFER, "KV transfer", "{:g} GB/s", caption)


@drawn("sensitivity-transfer", lambda a: a.effects_of(TRANSFER, "good_share"), source=_source)
def transfer_figure(answers: Answers) -> Drawing:
    """Effect on the good share against the bandwidth."""
    effects = answers.effects_of(TRANSFER, "good_share").sort_values(SETTING[TRANSFER][0])
    at, values = np.arange(len(effects)), 100 * effects["difference"].to_numpy()
    ends = 100 * effects[["ci_low", "ci_high"]].to_numpy().T
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.6))
    axes.errorbar(at, values, abs(ends - values), color=COMPARISON, fmt="s", capsize=3)
    for x, y in zip(at, values, strict=True):
        axes.annotate(signed(y, 1), (x, y), (8, 0), textcoords="offset points", va="center",
                      fontsize=8)  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    bandwidths = effects[SETTING[TRANSFER][0]]
    labels = ["free" if np.isinf(value) else f"{value:g}" for value in bandwidths]
    axes.set_xticks(at, labels)
    axes.set(xlabel="KV transfer [GB/s a worker]", ylabel="effect on good share [points]",
             ylim=(min(0, ends.min()) - 1, ends.max() + 2))  # fmt: skip
    caption = (
        f"{_transfer_finding(answers)} Effect: good share of the comparison minus the baseline's, "
        f"with its {_level(answers)}."
    )
    ends_text = " to ".join(f"{signed(values[n], 1)} at {labels[n]}" for n in (0, -1))
    alt = f"Points with intervals, from {ends_text}."
    return figure, caption, alt


def _transfer_finding(answers: Answers) -> str:
    effects = answers.effects_of(TRANSFER, "good_share").sort_values(SETTING[TRANSFER][0])
    slowest, fastest = effects.iloc[0], effects.iloc[-1]
    cost = 100 * (fastest["difference"] - slowest["difference"])
    holds = (effects["ci_low"] > 0).all()
    return (
        f"A KV transfer of {_transfer(slowest[SETTING[TRANSFER][0]])} costs the comparison "
        f"{number(cost, 1)} points against {_one(fastest[SETTING[TRANSFER][0]])}. It "
        f"{'stays ahead' if holds else 'does not stay ahead'} at every bandwidth replayed."
    )


def transfer(answers: Answers) -> str:
    """Return what leaving the transfer out would be worth."""
    declared = answers.summary.cluster["kv_transfer_gb_per_s"]
    effects = answers.effects_of(TRANSFER, "good_share").set_index(SETTING[TRANSFER][0])
    text = _transfer_finding(answers)
    if declared in effects.index and np.inf in effects.index:
        worth = 100 * (effects.loc[np.inf, "difference"] - effects.loc[declared, "difference"])
        text += (
            f" A free transfer changes the difference by {signed(worth, 1)} points from that at "
            f"the {declared:g} GB/s assumed in this book."
        )
    return text


@unless_missing(None)
def frontend_table(answers: Answers) -> Table:
    """Return what a slower frontend does."""
    caption = (
        "How long the frontend reads for each 1,000 prompt tokens before the router has a request, "
        "one request after the other; 0: a burst's requests reach the router at one instant."
    )
    return _table(answers, FRONTEND, "frontend", "{:g} ms", caption)


@unless_missing(None)
def chunk_table(answers: Answers) -> Table:
    """Return the good share of each configuration by chunk size."""
    caption = "Tokens that a step batches at most (--max-num-batched-tokens), for all workers."
    return _table(answers, CHUNK, "chunk", "{:,.0f} tokens", caption)


@unless_missing("")
def chunk(answers: Answers) -> str:
    """Return whether the baseline catches up at some chunk size."""
    study, cells = answers.study, answers.of(CHUNK)
    base, comp = (
        cells[cells["configuration"] == name].set_index("chunk_tokens")["good_share"]
        for name in (study.baseline, study.comparison)
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


@unless_missing(None)
def reuse_table(answers: Answers) -> Table | None:
    """Return what is left where fewer conversations share blocks."""
    if answers.of(REUSE).empty:
        return None
    caption = "Share of the conversations that keep the blocks they share; the others share none."
    return _table(answers, REUSE, "share", "{:g}", caption)


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


@drawn("sensitivity-times", lambda a: a.effects_of(TIMES, "good_share"), source=_source)
def times_figure(answers: Answers) -> Drawing:
    """Effect on the good share where steps take longer or shorter than simulated."""
    effects = answers.effects_of(TIMES, "good_share")
    grid = effects.pivot(index="decode_time_ratio", columns="prefill_time_ratio")
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
    axes.set_xticks(range(len(values.columns)), [_change(v) for v in values.columns])
    axes.set_yticks(range(len(values.index)), [_change(v) for v in values.index])
    axes.set(xlabel="time of a step that prefills", ylabel="time of a step that decodes")
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
    effects = answers.effects_of(TIMES, "good_share")
    wins, loses = effects["ci_low"] > 0, effects["ci_high"] < 0
    if wins.all():
        return f"The comparison stays ahead at all {len(effects)} combinations of errors."
    text = f"The comparison is ahead at {wins.sum()} of {len(effects)} combinations of errors"
    return f"{text} and behind at {loses.sum()}."


def times(answers: Answers) -> str:
    """Return where the answer would flip, and how far the engine's settings reach."""
    effects = answers.effects_of(TIMES, "good_share")
    least = effects.loc[effects["difference"].idxmin()]
    ends = interval(least["ci_low"], least["ci_high"], 100)
    return (
        f"{_times_finding(answers)} The least favourable is {signed(100 * least['difference'], 1)} "
        f"points ({ends}), prefill {_change(least['prefill_time_ratio'])} and decode "
        f"{_change(least['decode_time_ratio'])}."
    )


@unless_missing("")
def again(answers: Answers) -> str:
    """Return how far replays of the very same order lie apart behind the KV router."""
    clauses = []
    for name, of in answers.of(AGAIN).groupby("configuration", sort=False):
        shares, ttft_ms = 100 * of["good_share"], of["ttft_ms_mean"]
        clauses.append(
            f"{answers.arms[name].label} keeps {number(shares.min(), 2)} to "
            f"{number(shares.max(), 2)} % of requests good (sd {number(shares.std(), 2)} points), "
            f"with a mean TTFT of {number(ttft_ms.min(), 0)} to {number(ttft_ms.max(), 0)} ms"
        )
    return f"The same requests in the same order, replayed again: {'; '.join(clauses)}."


# --- what was learned -----------------------------------------------------------------------------


def lesson(evidence: Evidence, judged: Gate, answers: Answers | None) -> str:
    """Return which verdicts survive the other choices, and what other values change."""
    kept = _kept(evidence) if judged.green else NO_VERDICT
    lines = [kept] + ([transfer(answers), chunk(answers), times(answers)] if answers else [])
    return "\n".join(f"- {line}" for line in lines)


def _kept(evidence: Evidence) -> str:
    """Return which verdicts survive the other choices, and which do not."""
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
    return f"Choices that leave the verdict as declared: {counts}.{changes}"
