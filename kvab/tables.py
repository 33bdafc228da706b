"""Every table of the book: numbers formatted once, as HTML that fits a phone.

Input: the evidence. Output: objects that a notebook shows.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kvab import metrics, runs
from kvab.describe import describe_rows
from kvab.evidence import Evidence
from kvab.formats import interval, number, percent, signed
from kvab.study import Slo
from kvab.terminal import summary_lines
from kvab.validity import Gate

SHOWN = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Table:
    """A table of finished text with its caption; shows itself in a notebook."""

    frame: pd.DataFrame
    caption: str = ""
    text_columns: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        styled = self.frame.style.format(escape="html").set_caption(html.escape(self.caption))
        classes = pd.DataFrame("", index=self.frame.index, columns=self.frame.columns)
        classes[list(self.text_columns)] = "kvab-text"
        if isinstance(self.frame.index, pd.RangeIndex):
            styled = styled.hide(axis="index")
        styled = styled.set_td_classes(classes).apply_index(self._header, axis="columns")
        return f'<div class="kvab-table">{styled.to_html(table_uuid="kvab")}</div>'

    def _header(self, names: pd.Index) -> list[str]:
        return ["text-align: left" if name in self.text_columns else "" for name in names]


def _arm_labels(evidence: Evidence) -> tuple[str, str]:
    names = evidence.study.configurations
    return names[evidence.study.baseline].label, names[evidence.study.comparison].label


def _effect(label: str, row: dict, factor: float = 1, decimals: int | None = None) -> dict:
    """Return one line of an A/B table."""
    return {
        "": label,
        "baseline": number(factor * row["baseline"], decimals),
        "comparison": number(factor * row["comparison"], decimals),
        "difference": signed(factor * row["difference"], decimals),
        "95 % interval": interval(row["ci_low"], row["ci_high"], factor),
        "ratio": number(row["ratio"], 2),
    }


def headline(evidence: Evidence) -> Table:
    """Return the first screen's table: good share, and centre and tail of each latency."""
    result = evidence.comparison.to_json()
    lines = [_effect("good requests [%]", result["good_share"], 100, 1)]
    for key, statistics in (
        ("ttft_ms", ("mean", "p50", "p99")),
        ("itl_ms", ("p50", "p99")),
        ("latency_ms", ("mean",)),
    ):
        for statistic in statistics:
            label = f"{statistic} {metrics.METRICS[key].short} [ms]"
            lines.append(_effect(label, result["metrics"][key][statistic]))
    baseline, comparison = _arm_labels(evidence)
    kind = "simulated" if evidence.simulated else evidence.manifest.kind
    return Table(
        pd.DataFrame(lines),
        f"Baseline: {baseline}. Comparison: {comparison}. {kind.capitalize()}; intervals are "
        "workload intervals.",
        ("",),
    )


def outcome(evidence: Evidence) -> Table:
    """Return the A/B table: every statistic of every latency and the good share."""
    result = evidence.comparison.to_json()
    lines = [
        _effect(f"{metrics.METRICS[key].short} {statistic} [ms]", result["metrics"][key][statistic])
        for key in metrics.LATENCIES
        for statistic in SHOWN
    ]
    lines.append(_effect("good requests [%]", result["good_share"], 100, 1))
    method = result["method"]
    return Table(
        pd.DataFrame(lines),
        f"{result['pairs']:,} pairs. Intervals: {method['name']}, {method['resamples']:,} "
        f"resamples, blocks of {number(method['block_s'], 0)} s on average. They say how the "
        "numbers would move with other minutes of this workload, not from run to run.",
        ("",),
    )


def goodput(evidence: Evidence) -> Table:
    """Return share and rate of good requests of each configuration, over its repeats."""
    lines = []
    for name, arm in evidence.arms.items():
        found = [metrics.summarize(t, evidence.study.slo) for t in evidence.tables(name)]
        shares = [each["good"]["share"] for each in found]
        lines.append(
            {
                "configuration": arm.label,
                "good": percent(float(np.mean(shares))),
                "least to most of the repeats": f"{percent(min(shares))} to {percent(max(shares))}",
                "good a second": number(np.mean([e["good"]["rps"] for e in found]), 2),
                "duration [s]": number(np.mean([e["duration_s"] for e in found]), 0),
                "prompt from cache": percent(np.mean([e["cached_share"] for e in found])),
            }
        )
    slo = evidence.study.slo
    return Table(
        pd.DataFrame(lines),
        f"Good: TTFT at most {slo.ttft_ms:g} ms and ITL at most {slo.itl_ms:g} ms.",
        ("configuration",),
    )


def workload(evidence: Evidence) -> Table:
    """Return the description of the trace."""
    description = evidence.workload.description
    lines = describe_rows({**description, "sha256": description["sha256"][:16] + "…"})
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), "", ("quantity",))


def run(path: Path, slo: Slo) -> Table:
    """Return the metrics of one run folder."""
    rows = summary_lines(runs.read_run(path), slo)
    return Table(pd.DataFrame(rows, columns=["quantity", "value"]), str(path.name), ("quantity",))


def runs_table(evidence: Evidence) -> Table:
    """Return the runs that the book stands on."""
    lines = [
        {
            "configuration": evidence.arms[name].label,
            "repeat": run.manifest.repeat,
            "order of rows": run.manifest.order,
            "expected": f"{run.manifest.counts.expected:,}",
            "received": f"{run.manifest.counts.received:,}",
            "errors": run.manifest.counts.errors,
            "status": run.manifest.status,
            "ended (UTC)": f"{run.manifest.end:%Y-%m-%d %H:%M}",
            "requests.parquet": run.manifest.files["requests.parquet"][:8],
        }
        for name, found in evidence.runs.items()
        for run in found
    ]
    versions = ", ".join(f"{name} {v}" for name, v in evidence.manifest.versions.items())
    return Table(pd.DataFrame(lines), f"Cluster {evidence.cluster}; {versions}.",
                 ("configuration", "order of rows", "status"))  # fmt: skip


def gate(judged: Gate) -> Table:
    """Return the checks: those that failed one by one, those that passed summed up."""
    checks = judged.checks
    failed = checks[~checks["passed"]].assign(outcome="FAILED")
    passed = checks[checks["passed"]].groupby("check", sort=False, as_index=False).agg(
        where=("where", lambda v: v.iloc[0] if len(v) == 1 else f"all {len(v)}"),
        expected=("expected", "first"),
        found=("found", lambda v: v.iloc[0] if v.nunique() == 1 else f"{v.iloc[0]} … {v.iloc[-1]}"),
    )  # fmt: skip
    shown = pd.concat([failed, passed.assign(outcome="passed")], ignore_index=True)
    columns = ["check", "where", "expected", "found", "outcome"]
    return Table(shown[columns], "", tuple(columns))


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
                "prompt from cache": percent(mean("cached_share")),
            }
        )
    return Table(pd.DataFrame(lines), "Mean over the repeats.", ("configuration",))


def _dig(summary: dict, keys: tuple[str, ...]) -> float:
    for key in keys:
        summary = summary[key]
    return summary


def attribution(evidence: Evidence) -> Table:
    """Return main effects and interaction for every metric, with intervals."""
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
                "95 % interval": interval(row.ci_low, row.ci_high, metric.factor),
            }
        )
    wide = pd.DataFrame(lines)
    wide["shown"] = wide["value"] + "\n(" + wide["95 % interval"] + ")"
    order = [list(dict.fromkeys(wide[column])) for column in ("metric", "effect of")]
    wide = wide.pivot(index="metric", columns="effect of", values="shown").loc[*order]
    frame = wide.reset_index().rename_axis(columns=None)
    return Table(frame, "Value (95 % workload interval).", ("metric",))


def reproduction(evidence: Evidence, reference: Evidence) -> Table:
    """Return, per metric, the published difference beside the reader's."""
    ours, theirs = (each.comparison.to_json() for each in (reference, evidence))
    lines = []
    for key, metric in metrics.METRICS.items():
        statistics = SHOWN if key in metrics.LATENCIES else (None,)
        for statistic in statistics:
            a, b = (
                doc["metrics"][key][statistic] if statistic else doc["good_share"]
                for doc in (ours, theirs)
            )
            factor, decimals = metric.factor, None if statistic else 1
            lines.append(
                {
                    "difference of": f"{metric.short} {statistic or '[points]'}",
                    "published": signed(factor * a["difference"], decimals),
                    "its 95 % interval": interval(a["ci_low"], a["ci_high"], factor),
                    "yours": signed(factor * b["difference"], decimals),
                    "your 95 % interval": interval(b["ci_low"], b["ci_high"], factor),
                }
            )
    return Table(pd.DataFrame(lines), "Comparison minus baseline.", ("difference of",))


def setups(evidence: Evidence, reference: Evidence) -> Table:
    """Return what is known to differ between the published setup and the reader's."""
    fields = {}
    for label, each in (("published", reference), ("yours", evidence)):
        manifest = each.manifest
        fields[label] = {
            "cluster": each.cluster,
            "kind": manifest.kind,
            "workload": f"{manifest.trace.name}, {manifest.trace.rows:,} rows",
            "repeats": str(each.repeats),
            "study version": str(manifest.study_version),
            **manifest.versions,
        }
    frame = pd.DataFrame(fields).rename_axis("setup").reset_index().fillna("–")
    frame["equal"] = np.where(frame["published"] == frame["yours"], "yes", "no")
    return Table(frame, "", tuple(frame.columns))
