"""The caption of every figure; its first sentence is the finding, computed from the data.

Input: the evidence. Output: plain text.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import interval, number, percent, signed
from kvab.pages.evidence import Evidence
from kvab.requests.metrics import LATENCIES, METRICS


def good_shares(evidence: Evidence) -> str:
    """Return the caption of the good-share figure."""
    table, arms = evidence.good_shares["share"], evidence.arms
    first = evidence.study.baseline
    if evidence.missing:
        finding = " ".join(f"{arms[n].label}: {percent(s)} good." for n, s in table.items())
    else:
        alone = max((n for n in arms if arms[n].role == "ablation"), key=lambda n: table[n])
        both = evidence.study.comparison
        finding = (
            f"One factor alone brings at most {signed(100 * (table[alone] - table[first]), 1)} "
            f"points ({arms[alone].label}), both together "
            f"{signed(100 * (table[both] - table[first]), 1)}."
        )
    return (
        f"{finding} Share of good requests by configuration: each repeat a point, the bar the "
        f"{evidence.study.statistics.percent} workload interval (block bootstrap over arrival "
        "time)."
    )


def distributions(evidence: Evidence) -> str:
    """Return the caption of the distributions figure."""
    ttft, itl = evidence.comparison.ttft.paired, evidence.comparison.itl.paired
    return (
        f"{percent(ttft.faster.value, 0)} of requests get their first token sooner and "
        f"{percent(itl.faster.value, 0)} get tokens at a higher pace under the comparison. "
        "Cumulative distributions over served requests, repeats pooled; vertical lines are the "
        "bounds of a good request."
    )


def distributions_alt(evidence: Evidence) -> str:
    """Return the shape of the distributions in words."""
    parts = []
    for key in LATENCIES:
        row = evidence.comparison.metrics[key]
        parts.append(
            f"{METRICS[key].short} median {number(row.p50.baseline)} against "
            f"{number(row.p50.comparison)} ms, p99 {number(row.p99.baseline)} against "
            f"{number(row.p99.comparison)} ms"
        )
    return "; ".join(parts) + "."


def _signs(curve: pd.DataFrame) -> str:
    """Return from where to where a curve is significantly below and above zero."""
    said = []
    for word, mask in (
        ("lower", curve["band_high"] < 0),
        ("higher", curve["band_low"] > 0),
    ):
        q = 100 * curve.loc[mask, "q"]
        if len(q):
            said.append(f"{word} at {len(q)} of {len(curve)} quantiles (p{q.min():.0f} to "
                        f"p{q.max():.0f})")  # fmt: skip
    return " and ".join(said) or "not distinguishable at any quantile"


def quantile_differences(evidence: Evidence) -> str:
    """Return the caption of the quantile-difference figure."""
    curves = evidence.quantile_differences
    findings = [f"{METRICS[key].short} is {_signs(curve)}" for key, curve in curves.items()]
    return (
        f"Under the comparison {'; '.join(findings)}. Difference of each quantile, comparison "
        f"minus baseline, with a {evidence.study.statistics.percent} band that holds at all "
        "quantiles at once; symmetric log scale."
    )


def quantiles_alt(curves: dict[str, pd.DataFrame]) -> str:
    """Return the shape of the quantile differences in words."""
    return " ".join(f"{METRICS[key].short}: {_signs(curve)}." for key, curve in curves.items())


def over_time(evidence: Evidence) -> str:
    """Return the caption of the time-series figure."""
    shares = evidence.minutes["good"].unstack("configuration")
    better = (shares[evidence.study.comparison] > shares[evidence.study.baseline]).mean()
    worst = shares[evidence.study.baseline].min()
    return (
        f"In {percent(better, 0)} of minutes the comparison has more good requests; in the "
        f"baseline's worst minute {percent(worst, 0)} are good. Good share and median TTFT of the "
        "requests that arrive in each minute, repeats pooled."
    )


def worker_balance(evidence: Evidence) -> str:
    """Return the caption of the worker figure."""
    table = evidence.worker_balance
    most = table.loc[table["relative"].idxmax()]
    label = evidence.arms[most["configuration"]].label
    return (
        f"The busiest worker carries {percent(most['relative'], 0)} of an even share ({label}, "
        f"{most['work']}). Each point is one worker in one repeat: prompt tokens that it had to "
        "compute and answer tokens that it made, relative to the mean of the workers that do "
        "this work."
    )


def effects_by_group(evidence: Evidence) -> str:
    """Return the caption of the groups figure."""
    groups = evidence.groups
    most = groups.loc[groups["ttft_ms_faster_share"].idxmax()]
    least = groups.loc[groups["ttft_ms_faster_share"].idxmin()]
    return (
        f"{percent(most['ttft_ms_faster_share'], 0)} of requests with {most['by']} of "
        f"{most['group']} get their first token sooner, with {least['by']} of {least['group']} "
        f"only {percent(least['ttft_ms_faster_share'], 0)}. Mean paired difference of TTFT and of "
        f"the good share with {evidence.study.statistics.percent} workload intervals, and share of "
        "pairs with a lower TTFT, by terciles of prompt length and of the prompt tokens that an "
        "earlier request had brought, and along the trace."
    )


def interaction(evidence: Evidence) -> str:
    """Return the caption of the interaction figure."""
    effects = evidence.attribution.table.set_index(["metric", "statistic", "effect"])
    row = effects.loc[("good_share", "share", "interaction")]
    return (
        f"The interaction is {signed(100 * row['value'], 1)} points of good share "
        f"({interval(row['ci_low'], row['ci_high'], 100)}). Good share, mean TTFT and p99 ITL of "
        "the four cells; parallel lines would mean that the factors add up."
    )


def slo_surface(evidence: Evidence) -> str:
    """Return the caption of the surface of service levels."""
    surface, study = evidence.slo_surface, evidence.study
    wins, loses = surface["band_low"] > 0, surface["band_high"] < 0
    finding = f"The comparison keeps more requests good under {wins.sum()} of {len(surface)} bounds"
    if loses.any():
        finding += f" and fewer under {loses.sum()}, all with an ITL of at most "
        finding += f"{surface.loc[loses, 'itl_ms'].max():g} ms"
    others = " and ".join(f"{slo.ttft_ms:g}/{slo.itl_ms:g} ms" for slo in study.other_slos)
    dashed = f", dashed {others}" if others else ""
    return (
        f"{finding}. Difference of the good share in points; a question mark where the band that "
        f"holds for all bounds at once includes zero. Outlined: {study.slo.ttft_ms:g}/"
        f"{study.slo.itl_ms:g} ms, the study's bounds{dashed}."
    )
