"""Page 05: what a request gains or loses, and whether that is more than noise.

Input: the evidence and its gate. Output: what the notebook shows; the answer in one sentence is
what the whole book begins with.
"""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kvab.console import counted, number, percent, plain, signed, span
from kvab.pages.evidence import Evidence
from kvab.pages.gate import WITHHELD, Gate
from kvab.pages.printed import (
    Columns,
    Table,
    by_configuration,
    ends,
    quantity,
    side_by_side,
    size,
    where,
)
from kvab.pages.theme import (
    COMPARISON,
    RULE,
    WIDTH_IN,
    Drawing,
    arm_styles,
    drawn,
    legend_below,
)
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.runs.hours import EFFECTS
from kvab.stats.contrasts import metric_values
from kvab.stats.effects import HourToHour, Noise, hour_to_hour, noise
from kvab.study import Arm

VERDICTS = {
    "better": "Yes",
    "worse": "No",
    "no difference": "It makes no practical difference",
    "inconclusive": "These runs cannot tell",
}
LATENCY_STATISTICS = [*itertools.product(LATENCIES, ("mean", "p50", "p99"))]
COLUMNS = {"mean TTFT [ms]": "ttft_ms.mean", "p99 TTFT [ms]": "ttft_ms.p99",
           "p99 ITL [ms]": "itl_ms.p99"}  # fmt: skip
RED = "No verdict: the validity gate is red."
NO_VERDICT = f"**{RED}** Why is written with [the runs](02_setup)."


# --- the answer --------------------------------------------------------------------------------


def headline(evidence: Evidence, judged: Gate) -> str:
    """Return the answer in one sentence: verdict, good shares, difference and interval."""
    if not judged.green:
        return NO_VERDICT
    good, names = evidence.comparison.good, evidence.study.configurations
    baseline, comparison = (names[name] for name in evidence.study.main)
    slo = evidence.study.slo
    before, after, points = side_by_side("good_share", good.mean)
    where = "in simulation" if evidence.simulated else f"on {plain(evidence.cluster)}"
    if evidence.synthetic:
        where += " on a GENERATED WORKLOAD"
    return (
        f"{VERDICTS[good.verdict]}, {where}: {comparison.phrase} kept {after} % of requests "
        f"within both bounds (first token in {slo.ttft_ms / 1000:g} s, then {slo.itl_ms:g} ms a "
        f"token); {baseline.phrase} kept {before} %, a difference of "
        f"{points} points ({evidence.study.statistics.percent} workload interval "
        f"{ends('good_share', good.mean.difference)})."
        f"{undecided(evidence, 'good_share')}"
    )


def undecided(evidence: Evidence, metric: str) -> str:
    """Return why a verdict is open though its interval excludes zero; nothing if it does not."""
    basis = evidence.comparison.metrics[metric].judgement
    if basis.verdict != "inconclusive" or not (
        basis.difference.low > 0 or basis.difference.high < 0
    ):
        return ""
    if abs(basis.difference.value) <= basis.margin:
        return " The interval excludes zero, but the difference is within the practical margin."
    return (
        f" The interval excludes zero, but it is one of {len(evidence.comparison.metrics)} tested "
        f"together: adjusted for that (Holm), p is {number(basis.p_holm, 3)}."
    )


def tail(evidence: Evidence) -> str:
    """Return whether the typical request gains as well."""
    ttft = evidence.comparison.ttft
    faster = ttft.paired.faster.value
    gains = {"better": True, "worse": False}.get(evidence.comparison.good.verdict)
    sooner = f"{percent(faster, 0)} get their first token sooner"
    if gains == (faster <= 0.5):
        sooner = f"The {'gain' if gains else 'loss'} is in the tail: {'only ' * gains}{sooner}"
    return f"{sooner}; the median paired difference is {signed(ttft.paired.median.value)} ms."


def counterpoint(evidence: Evidence) -> str:
    """Return what the good share hides: the mean, the tail and the typical request."""
    ttft, itl = evidence.comparison.ttft, evidence.comparison.itl
    return (
        f"The mean TTFT goes from {number(ttft.mean.baseline)} to {number(ttft.mean.comparison)} "
        f"ms, its p99 from {number(ttft.p99.baseline)} to {number(ttft.p99.comparison)} ms and the "
        f"p99 ITL from {number(itl.p99.baseline)} to {number(itl.p99.comparison)} ms. "
        f"{tail(evidence)}"
    )


def losses(evidence: Evidence) -> str:
    """Return where the comparison is worse, as plainly as where it is better."""
    result, groups, clauses = evidence.comparison, evidence.groups, []
    slower = groups[groups["ttft_ms_faster_share"] < 0.5]
    if len(slower):
        clauses.append(
            f"in {len(slower)} of {counted(len(groups), 'group')} of requests most get their first "
            "token later"
        )
    clauses += [
        f"the {statistic} {METRICS[key].short} is {signed(row.difference.value)} ms"
        for key in LATENCIES
        for statistic, row in result.metrics[key].statistics.items()
        if row.difference.low > 0
    ]
    if only := result.good_table.only_baseline:
        every = counted(result.pairs, "pair")
        clauses.append(f"{only:,} of {every} are good under the baseline alone")
    return f"Where the comparison loses: {'; '.join(clauses) or 'nowhere measured'}."


def lesson(evidence: Evidence, judged: Gate) -> str:
    """Return what the page teaches."""
    if not judged.green:
        return NO_VERDICT
    return f"{counterpoint(evidence)} {losses(evidence)}"


# --- the table ---------------------------------------------------------------------------------


def statistics_table(evidence: Evidence) -> Table:
    """Return both arms: the good share and each latency's mean, median and tail."""
    result, method = evidence.comparison, evidence.comparison.method
    rows = {(key, name): result.metrics[key].statistics[name]
            for key, name in [("good_share", "mean"), *LATENCY_STATISTICS]}  # fmt: skip
    lines = []
    for (key, name), row in rows.items():
        before, after, points = side_by_side(key, row)
        lines.append({
            "metric": quantity(key, name) if key in LATENCIES else "good requests [%]",
            "baseline": before,
            "comparison": after,
            "difference": f"{points} ({ends(key, row.difference)})",
        })  # fmt: skip
    found = [rows[of].difference for of in LATENCY_STATISTICS]
    lower, higher = sum(of.high < 0 for of in found), sum(of.low > 0 for of in found)
    return Table(
        pd.DataFrame(lines),
        f"{lower} of {len(found)} statistics of latency are lower under the comparison, {higher} "
        f"higher (intervals without zero). {counted(result.pairs, 'pair')}; in brackets "
        f"{evidence.study.statistics.percent} workload intervals: {method.name}, "
        f"{method.resamples:,} resamples, blocks of {number(method.block_s, 0)} s on average.",
    )


# --- verdicts and noise -------------------------------------------------------------------------


def _noise(evidence: Evidence, key: str) -> Noise:
    """Return the baseline's noise over all orders of bursts replayed, else over its repeats."""
    study = evidence.study
    if evidence.answers:
        column = key if key == "good_share" else f"{key}_mean"
        means = evidence.answers.orders[column].to_numpy()
    else:
        tables = evidence.tables(study.baseline)
        means = np.array([np.nanmean(metric_values(table, study.slo)[key]) for table in tables])
    return noise(means, study.statistics.level)


def verdicts_table(evidence: Evidence, judged: Gate) -> Table:
    """Return the verdict on each mean beside its margin, its intervals and the noise."""
    columns, notes = {}, [*evidence.comparison.notes]
    for key, metric in METRICS.items():
        result, floor = evidence.comparison.metrics[key], _noise(evidence, key)
        workload, runs = result.mean.difference, result.run_to_run.mean
        columns[quantity(key, "mean")] = {
            "verdict": result.verdict if judged.green else WITHHELD,
            "estimate": side_by_side(key, result.mean)[2],
            "margin": size(key, result.judgement.margin),
            "± workload": size(key, (workload.high - workload.low) / 2),
            "± run to run": size(key, (runs.high - runs.low) / 2),
            "largest in A/A": size(key, floor.largest),
            "detectable": size(key, floor.detectable),
        }
        if judged.green and (reason := undecided(evidence, key)):
            notes.append(f"{metric.label}:{reason}")
    return Table(
        pd.DataFrame(columns).rename_axis("difference of").reset_index(),
        f"{variation(evidence)} ±: half of each {evidence.study.statistics.percent} interval; run "
        f"to run over {counted(evidence.repeats, 'repeat')}, A/A over "
        f"{counted(floor.replays, 'replay')}." + "".join(f" {note}" for note in notes),
    )


def variation(evidence: Evidence) -> str:
    """Return whether the difference stands clear of the noise of a run."""
    floor = _noise(evidence, "good_share")
    if floor.replays < 2:
        return "With one repeat there is no comparison of the baseline with itself."
    return (
        f"Of {counted(floor.replays, 'replay')} of the baseline"
        f"{', each in another order' if evidence.answers else ''}, the two that differ most are "
        f"{number(100 * floor.largest, 1)} points of good share apart; further replays may differ "
        "more. The comparison differs from the baseline by "
        f"{side_by_side('good_share', evidence.comparison.good.mean)[2]}."
    )


def hour_effects(evidence: Evidence) -> dict[tuple[str, str], HourToHour]:
    """Return what was followed from hour to hour, by metric and statistic."""
    if not evidence.made_hours:
        return {}
    made, level = evidence.made_hours.effects, evidence.study.statistics.level
    metrics = evidence.comparison.metrics
    return {
        (key, statistic): hour_to_hour(
            metrics[key].statistics[statistic].difference, made[column].to_numpy(), level
        )
        for (key, statistic), column in zip(EFFECTS, made, strict=True)
    }


def from_hour_to_hour(evidence: Evidence) -> str:
    """Return what the workload interval holds for, and what to expect of another hour."""
    recorded_s = float(evidence.replayed["arrival_ms"].max()) / 1000
    text = f"The workload interval holds at the offered load of these {span(recorded_s)}."
    if not (effects := hour_effects(evidence)):
        return f"{text} No other hours were made of them (`kvab resample`)."
    good = effects["good_share", "mean"]
    return (
        f"{text} In another hour of the same conversations the load differs as well: there the "
        "difference of the good share would be "
        f"{ends('good_share', good.another)} points "
        f"({evidence.study.statistics.percent} hour-to-hour interval, by the spread over "
        f"{len(good.made)} hours made of them; [other metrics](07_robustness))."
    )


# --- every configuration, every request ---------------------------------------------------------


def configurations_table(evidence: Evidence) -> Table:
    """Return share and rate of good requests, latencies and reuse of each configuration."""
    pooled, gpus = evidence.pooled, pd.Series(evidence.gpus)
    rate = pooled["good.rps"]
    columns: Columns = {"good [%]": (100 * pooled["good.share"], 1), "good per s": (rate, 2)}
    if gpus.nunique() > 1:
        columns |= {"GPUs": (gpus, 0), "good per s and GPU": (rate / gpus, 3)}
    columns |= {heading: (pooled[column], None) for heading, column in COLUMNS.items()}
    columns["from cache [%]"] = (100 * pooled["reuse"], 1)
    best = evidence.arms[pooled["good.share"].idxmax()].label
    return by_configuration(evidence.arms, columns, f"{best} keeps most requests good.")


def _two_arms(evidence: Evidence) -> dict[str, Arm]:
    return {name: evidence.study.configurations[name] for name in evidence.study.main}


@drawn("outcome-distributions", lambda e: e.percentiles)
def distributions_figure(evidence: Evidence) -> Drawing:
    """Draw the cumulative distributions of TTFT, ITL and latency of both arms."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 3.0), sharey=True)
    arms = _two_arms(evidence)
    styles, bounds = arm_styles(arms), evidence.study.slo.model_dump()
    for axes, key in zip(panels, LATENCIES, strict=True):
        short = METRICS[key].short
        for name, arm in arms.items():
            values_ms = evidence.percentiles[key].loc[name]
            axes.plot(values_ms, values_ms.index, label=arm.label, **styles[name] | {"marker": ""})
        if key in bounds:
            axes.axvline(bounds[key], **RULE)
            axes.annotate(f"{bounds[key]:,g} ms", (bounds[key], 3), (3, 0),
                          textcoords="offset points")  # fmt: skip
        axes.set(xscale="log", xlabel=f"{short} [ms, log scale]")
    panels[0].set(ylabel="requests [%]", ylim=(0, 100))
    legend_below(figure, panels[0])
    result = evidence.comparison
    caption = (
        f"{percent(result.ttft.paired.faster.value, 0)} of requests get their first token sooner "
        f"and {percent(result.itl.paired.faster.value, 0)} get tokens at a higher pace under the "
        "comparison. Cumulative distributions over served requests, repeats pooled; vertical lines "
        "are the bounds of a good request."
    )
    medians = "; ".join(
        f"{METRICS[key].short} {number(row.p50.baseline)} against {number(row.p50.comparison)} ms"
        for key, row in result.metrics.items() if key in LATENCIES
    )  # fmt: skip
    alt = f"Cumulative distributions of TTFT, ITL and latency of both arms. Medians: {medians}."
    return figure, caption, alt


@drawn("outcome-quantiles", lambda e: pd.concat(e.quantile_differences, names=["metric"]))
def quantile_differences_figure(evidence: Evidence) -> Drawing:
    """Draw the difference between the arms at every quantile, with a simultaneous band."""
    curves = evidence.quantile_differences
    figure, panels = plt.subplots(1, len(curves), figsize=(WIDTH_IN, 2.7))
    for axes, (key, curve) in zip(panels, curves.items(), strict=True):
        percentile = 100 * curve["q"]
        axes.axhline(0, **RULE)
        axes.fill_between(
            percentile, curve["band_low"], curve["band_high"], color=COMPARISON, alpha=0.2,
            linewidth=0,
        )  # fmt: skip
        axes.plot(percentile, curve["difference"], color=COMPARISON)
        axes.set(xlabel="percentile", ylabel=f"{METRICS[key].short} difference [ms]")
        # The symmetric log scale begins at a power of ten near the small differences.
        small_ms = max(np.nanquantile(curve["difference"].abs(), 0.25), 1e-3)
        axes.set_yscale("symlog", linthresh=10.0 ** np.floor(np.log10(small_ms)))
    signs = {METRICS[key].short: _signs(curve) for key, curve in curves.items()}
    caption = (
        f"Under the comparison {'; '.join(f'{name} is {text}' for name, text in signs.items())}. "
        "Difference of each quantile, comparison minus baseline, with a "
        f"{evidence.study.statistics.percent} band that holds at all quantiles at once; symmetric "
        "log scale."
    )
    every = " ".join(f"{name}: {text}." for name, text in signs.items())
    alt = f"Difference of each quantile between comparison and baseline, with a band. {every}"
    return figure, caption, alt


def _signs(curve: pd.DataFrame) -> str:
    """Return from where to where a curve is significantly below and above zero."""
    parts = []
    for word, mask in (("lower", curve["band_high"] < 0), ("higher", curve["band_low"] > 0)):
        if mask.any():
            parts.append(f"{word} at p{where(100 * curve['q'], mask)}")
    return " and ".join(parts) or "not distinguishable at any quantile"


# --- along the trace and by group ---------------------------------------------------


@drawn("outcome-over-time", lambda e: e.minutes)
def over_time_figure(evidence: Evidence) -> Drawing:
    """Draw the good share minute by minute for both arms."""
    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2.4))
    arms = _two_arms(evidence)
    for name, style in arm_styles(arms).items():
        good = 100 * evidence.minutes.loc[name, "good"]
        axes.plot(good, label=arms[name].label, markersize=3, linewidth=1.2, **style)
    axes.set(ylabel="good requests [%]", ylim=(0, 102), xlabel="minute of the trace")
    legend_below(figure, axes)
    shares = evidence.minutes["good"].unstack("configuration")
    baseline = shares[evidence.study.baseline]
    better = (shares[evidence.study.comparison] > baseline).sum()
    caption = (
        f"In {better} of {counted(len(shares), 'minute')} the comparison has more good requests; "
        f"in the baseline's worst minute {percent(baseline.min(), 0)} are good. Good share of the "
        "requests that arrive in each minute, repeats pooled."
    )
    return figure, caption, f"Lines by minute: {caption}"


@drawn("outcome-groups", lambda e: e.groups)
def effects_by_group_figure(evidence: Evidence) -> Drawing:
    """Draw differences of mean TTFT and good share within groups, and the share that is faster."""
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.1), sharey=True)
    rows = evidence.groups.iloc[::-1]
    at = range(len(rows))
    shown = (
        ("ttft_ms", 1, "mean TTFT\ndifference [ms]"),
        ("good_share", 100, "good share\n[points]"),
    )
    for axes, (key, factor, label) in zip(panels, shown, strict=False):
        value, low, high = (
            factor * rows[f"{key}_{part}"] for part in ("difference", "ci_low", "ci_high")
        )
        axes.axvline(0, **RULE)
        axes.hlines(at, low, high, color=COMPARISON, linewidth=1.5)
        axes.plot(value, at, "s", color=COMPARISON)
        axes.set_xlabel(label)
    panels[2].axvline(50, **RULE)
    panels[2].plot(100 * rows["ttft_ms_faster_share"], at, "s", color=COMPARISON)
    panels[2].set(xlabel="faster first token\n[% of requests]", xlim=(0, 100))
    for axes in panels:
        axes.grid(axis="x")
        axes.locator_params(axis="x", nbins=4)
    names = [f"{row.by}: {row.group}".removesuffix(" tokens") for row in rows.itertuples()]
    panels[0].set_yticks(at, names)
    shares = evidence.groups["ttft_ms_faster_share"]
    least, most = (rows.loc[at] for at in (shares.idxmin(), shares.idxmax()))
    caption = (
        f"{percent(shares.min(), 0)} ({least['by']} of {least['group']}) to "
        f"{percent(shares.max(), 0)} of requests ({most['by']} of {most['group']}) get their first "
        "token sooner. Mean paired difference of TTFT and of the good share with "
        f"{evidence.study.statistics.percent} workload intervals, and share of pairs with a lower "
        "TTFT, by terciles of prompt tokens and of those that an earlier request had brought."
    )
    return figure, caption, f"Differences with intervals by group: {caption}"
