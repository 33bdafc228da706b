"""The tables of the outcome: numbers formatted once.

Input: the evidence. Output: tables that a notebook shows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from kvab.console import counted, interval, number, percent, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import WITHHELD, Gate
from kvab.pages.theme import Table
from kvab.requests import metrics
from kvab.runs import summaries
from kvab.runs.sweep import Sweep
from kvab.stats.contrasts import Contrast


def _arm_labels(evidence: Evidence) -> tuple[str, str]:
    names = evidence.study.configurations
    return names[evidence.study.baseline].label, names[evidence.study.comparison].label


def _effect(
    label: str, row: Contrast, factor: float = 1, decimals: int | None = None
) -> dict[str, str]:
    """Return one line of an A/B table."""
    return {
        "": label,
        "baseline": number(factor * row.baseline, decimals),
        "comparison": number(factor * row.comparison, decimals),
        "difference": signed(factor * row.difference.value, decimals),
        "interval": interval(row.difference.low, row.difference.high, factor),
        "ratio": number(row.ratio.value, 2),
    }


def headline(evidence: Evidence) -> Table:
    """Return the first screen's table: good share, and centre and tail of each latency."""
    result = evidence.comparison
    lines = [_effect("good requests [%]", result.good.mean, 100, 1)]
    for key, statistics in (
        ("ttft_ms", ("mean", "p50", "p99")),
        ("itl_ms", ("p50", "p99")),
        ("latency_ms", ("mean",)),
    ):
        for statistic in statistics:
            label = f"{statistic} {metrics.METRICS[key].short} [ms]"
            lines.append(_effect(label, result.metrics[key].statistics[statistic]))
    baseline, comparison = _arm_labels(evidence)
    kind = "simulated" if evidence.simulated else evidence.manifest.kind
    return Table(
        pd.DataFrame(lines),
        f"Baseline: {baseline}. Comparison: {comparison}. {kind.capitalize()}; intervals are "
        f"{evidence.study.statistics.percent} workload intervals.",
        ("",),
    )


def outcome(evidence: Evidence) -> Table:
    """Return the A/B table: every statistic of every latency and the good share."""
    result = evidence.comparison
    lines = [
        _effect(f"{metrics.METRICS[key].short} {statistic} [ms]", row)
        for key in metrics.LATENCIES
        for statistic, row in result.metrics[key].statistics.items()
    ]
    lines.append(_effect("good requests [%]", result.good.mean, 100, 1))
    method = result.method
    return Table(
        pd.DataFrame(lines),
        f"{counted(result.pairs, 'pair')}. Intervals: "
        f"{evidence.study.statistics.percent}, {method.name}, {method.resamples:,} "
        f"resamples, blocks of {number(method.block_s, 0)} s on average. They say how the "
        "numbers would move with other minutes of this workload, not from run to run.",
        ("",),
    )


def variation(evidence: Evidence) -> Table:
    """Return the two sources of variation side by side, and what noise alone looks like."""
    floor = evidence.noise_floor.set_index("metric")
    lines = []
    for key, outcome in evidence.comparison.metrics.items():
        metric, share, workload = metrics.METRICS[key], key == "good_share", outcome.mean.difference
        repeats = outcome.run_to_run.mean
        decimals, factor = 1 if share else None, metric.factor
        lines.append(
            {
                "difference of": "good share [points]" if share else f"mean {metric.short} [ms]",
                "estimate": signed(factor * workload.value, decimals),
                "± workload": _half(workload.low, workload.high, factor, decimals),
                "± run to run": _half(repeats.low, repeats.high, factor, decimals),
                "largest in A/A": number(factor * floor.loc[key, "largest_difference"], decimals),
                "detectable": number(factor * floor.loc[key, "smallest_detectable"], decimals),
            }
        )
    return Table(
        pd.DataFrame(lines),
        f"±: half of each {evidence.study.statistics.percent} interval; run to run over "
        f"{counted(evidence.repeats, 'repeat')}. A/A: the baseline against itself, the largest "
        "difference between two repeats. Detectable: the smallest true difference that an A/A "
        "comparison would call different from zero four times in five.",
        ("difference of",),
    )


def _half(low: float, high: float, factor: float, decimals: int | None) -> str:
    return number(factor * (high - low) / 2, decimals)


def robustness(evidence: Evidence, judged: Gate, sweep: Sweep | None) -> Table:
    """Return the verdict on each metric under each choice; what differs is marked."""
    found = evidence.robustness
    if sweep:
        found = pd.concat([found, sweep.spread_verdicts])
    declared = found[found["choice"] == found["choice"].iloc[0]].set_index("metric")["verdict"]
    lines: dict[str, dict[str, str]] = {}
    for row in found.itertuples():
        metric, share = metrics.METRICS[row.metric], row.metric == "good_share"
        name = "good share [points]" if share else f"{metric.short} [ms]"
        decimals = 1 if share else None
        value = signed(metric.factor * row.difference, decimals)
        half = _half(row.ci_low, row.ci_high, metric.factor, decimals)
        changed = "CHANGED: " if row.verdict != declared[row.metric] else ""
        verdict = f"{changed}{row.verdict}" if judged.green else WITHHELD
        line = lines.setdefault(row.choice, {"choice": row.choice})
        line[name] = f"{verdict}\n{value} ± {half}"
    frame = pd.DataFrame([*lines.values()])
    level = evidence.study.statistics.percent
    caption = f"Verdict, and the difference that it is about with its {level} workload interval."
    return Table(frame, caption, tuple(frame.columns))


def goodput(evidence: Evidence) -> Table:
    """Return share and rate of good requests of each configuration, over its repeats."""
    lines, unequal = [], len(set(evidence.gpus.values())) > 1
    for name, arm in evidence.arms.items():
        found = [metrics.summarize(t, evidence.study.slo) for t in evidence.tables(name)]
        rps, gpus = np.mean([each["good"]["rps"] for each in found]), evidence.gpus[name]
        per_gpu = {"GPUs": gpus, "good a second per GPU": number(rps / gpus, 3)}
        shares = [each["good"]["share"] for each in found]
        lines.append(
            {
                "configuration": arm.label,
                "good": percent(float(np.mean(shares))),
                "least to most of the repeats": f"{percent(min(shares))} to {percent(max(shares))}",
                "good a second": number(rps, 2),
                **(per_gpu if unequal else {}),
                "duration [s]": number(np.mean([e["duration_s"] for e in found]), 0),
                "prompt from cache": _reuse(evidence, name),
            }
        )
    slo = evidence.study.slo
    return Table(
        pd.DataFrame(lines),
        f"Good: TTFT at most {slo.ttft_ms:g} ms and ITL at most {slo.itl_ms:g} ms.",
        ("configuration",),
    )


def _reuse(evidence: Evidence, name: str) -> str:
    shares = [summaries.reuse(run) for run in evidence.runs[name]]
    known = [share for share in shares if share is not None]
    return percent(float(np.mean(known))) if len(known) == len(shares) else "not known"


def cells(evidence: Evidence) -> Table:
    """Return the metrics of the four cells of the 2x2."""
    lines = []
    for name, arm in evidence.arms.items():
        found = [metrics.summarize(t, evidence.study.slo) for t in evidence.tables(name)]

        def mean(*keys: str, found: list = found) -> float:
            return float(np.mean([_dig(each, keys) for each in found]))

        lines.append(
            {
                "configuration": arm.label,
                "good": percent(mean("good", "share")),
                "TTFT mean [ms]": number(mean("ttft_ms", "mean")),
                "TTFT p50": number(mean("ttft_ms", "p50")),
                "TTFT p99": number(mean("ttft_ms", "p99")),
                "ITL p50 [ms]": number(mean("itl_ms", "p50")),
                "ITL p99": number(mean("itl_ms", "p99")),
                "latency mean [ms]": number(mean("latency_ms", "mean")),
                "prompt from cache": _reuse(evidence, name),
            }
        )
    return Table(pd.DataFrame(lines), "Mean over the repeats.", ("configuration",))


def _dig(summary: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        summary = summary[key]
    return summary


def attribution(evidence: Evidence) -> Table:
    """Return main effects and interaction for every metric, with intervals."""
    if evidence.missing:
        return Table(
            pd.DataFrame({"no run of": [evidence.missing]}), "The 2x2 is not whole.", ("no run of",)
        )
    lines = []
    for row in evidence.attribution.table.itertuples():
        metric = metrics.METRICS[row.metric]
        share = row.metric == "good_share"
        lines.append(
            {
                "metric": "good share [points]"
                if share
                else f"{metric.short} {row.statistic} [ms]",
                "effect of": row.effect,
                "value": signed(metric.factor * row.value, 1 if share else None),
                "interval": interval(row.ci_low, row.ci_high, metric.factor),
            }
        )
    wide = pd.DataFrame(lines)
    wide["shown"] = wide["value"] + "\n(" + wide["interval"] + ")"
    order = [list(dict.fromkeys(wide[column])) for column in ("metric", "effect of")]
    wide = wide.pivot(index="metric", columns="effect of", values="shown").loc[*order]
    frame = wide.reset_index().rename_axis(columns=None)
    caption = f"Value ({evidence.study.statistics.percent} workload interval)."
    return Table(frame, caption, ("metric",))
