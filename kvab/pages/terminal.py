"""What the command line prints for people: a run's summary and a comparison, line by line.

Input: a run or a comparison. Output: (label, value) pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvab.console import interval, number, percent, signed
from kvab.requests.metrics import LATENCIES, METRICS
from kvab.runs.sources import Source
from kvab.study import Slo

if TYPE_CHECKING:
    from kvab.stats.compare import Comparison

Lines = list[tuple[str, str]]


def rejected(overload: int | None) -> str:
    """Return how many of the failed requests were rejected for overload; nothing if none was."""
    return f", {overload:,} of them rejected for overload (HTTP 503 or 529)" if overload else ""


def bounds_lines(slo: Slo, basis: str) -> Lines:
    """Return what a good request keeps to, and where that comes from."""
    return [("bounds", f"TTFT {slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms, {basis}")]


def summary_lines(source: Source, slo: Slo, basis: str = "") -> Lines:
    """Return the metrics of one run."""
    summary = source.summary(slo)
    bounds = f"TTFT {slo.ttft_ms:g} ms, ITL {slo.itl_ms:g} ms{', ' if basis else ''}{basis}"
    counts, good = summary["requests"], summary["good"]
    lines = [
        *source.about,
        (
            "requests",
            f"{number(counts['received'], 0)} of {number(counts['expected'], 0)}, "
            f"{counts['errors']} failed{rejected(counts['overload'])}",
        ),
        (
            "good requests",
            f"{percent(good['share'])} ({bounds}), {number(good['rps'], 2)} a second",
        ),
    ]
    for key in LATENCIES:
        values = (f"{name} {number(summary[key][name])}" for name in ("mean", "p50", "p90", "p99"))
        lines.append((f"{METRICS[key].short} [ms]", ", ".join(values)))
    lines.append(("prompt from cache", percent(summary["cached_share"])))
    lines.append(("output tokens/s", number(summary["output_tokens_per_s"], 0)))
    return lines


def header_lines(arms: list[list[Source]], level: float) -> Lines:
    """Return which arms are compared, and of what level the intervals in brackets are."""
    first, second = ("; ".join(source.about[0][1] for source in arm) for arm in arms)
    return [("baseline", first), ("comparison", second), ("intervals", percent(level, 0))]


def comparison_lines(comparison: Comparison) -> Lines:
    """Return differences with intervals and the verdicts."""
    result = comparison.to_json()
    share = result["good_share"]
    lines = [
        ("pairs", f"{result['pairs']:,}" if result["pairs"] else "none: unpaired"),
        (
            "good requests",
            f"{percent(share['baseline'])} -> {percent(share['comparison'])}: "
            f"{_change(share, 100)}",
        ),
    ]
    for key in LATENCIES:
        for statistic, row in result["metrics"][key].items():
            lines.append(
                (
                    f"{METRICS[key].short} {statistic} [ms]",
                    f"{number(row['baseline'])} -> {number(row['comparison'])}: {_change(row)}",
                )
            )
    lines += [
        (f"faster, {METRICS[k].short}", percent(v)) for k, v in result["faster_share"].items()
    ]
    lines += [(f"verdict, {METRICS[k].short}", v) for k, v in result["verdict"].items()]
    lines += [("note", note) for note in result["notes"]]
    return lines


def _change(row: dict[str, float | None], factor: float = 1) -> str:
    """Return a difference with its interval; of a share in points."""
    if row["difference"] is None:
        return "not measured in both"
    apart = row["difference"]
    shown = signed(apart) if factor == 1 else f"{signed(factor * apart, 1)} points"
    return f"{shown} ({interval(row['ci_low'], row['ci_high'], factor)})"
