"""What brings the difference, and whether it stands, in sentences.

Input: the evidence. Output: Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from kvab.console import interval, number, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.wording.outcomes import NO_VERDICT
from kvab.requests.metrics import METRICS
from kvab.runs.sweep import Sweep

FACTORS = {"split": "how prefill and decode share the GPUs", "routing": "how requests are routed"}


def _differ(evidence: Evidence, names: Iterable[str]) -> list[str]:
    """Return in which factors some configurations differ."""
    placed = [evidence.study.configurations[name].factors for name in names]
    return [text for key, text in FACTORS.items() if len({getattr(at, key) for at in placed}) > 1]


def factors(evidence: Evidence) -> str:
    """Return in which factors baseline and comparison differ, and what tells them apart."""
    differ = _differ(evidence, (evidence.study.baseline, evidence.study.comparison))
    if not differ:
        return "Baseline and comparison have the same split and the same routing."
    if len(differ) == 1:
        return f"Baseline and comparison differ in one factor: {differ[0]}."
    apart = (
        f"What would tell them apart has no run: {plain(evidence.missing)}."
        if evidence.missing
        else "Configurations that have one factor without the other tell them apart."
    )
    return f"Baseline and comparison differ in two factors at once: {' and '.join(differ)}. {apart}"


def all_factors(evidence: Evidence) -> str:
    """Return in which factors any two configurations differ."""
    differ = _differ(evidence, evidence.arms)
    what = f"in {' and in '.join(differ)}, and in what follows from that" if differ else (
        "only in the fields listed above"
    )  # fmt: skip
    return f"The configurations differ {what}."


def attribution(evidence: Evidence, judged: Gate) -> str:
    """Return in one paragraph which factor brings what."""
    if not judged.green:
        return NO_VERDICT
    if evidence.missing:
        return (
            f"What routing brings and what the split brings cannot be told apart on "
            f"{plain(evidence.cluster)}: there is no run of {evidence.missing}."
        )
    table = evidence.attribution.table.set_index(["metric", "statistic", "effect"])

    def said(metric: str, statistic: str, effect: str) -> str:
        row, factor = table.loc[(metric, statistic, effect)], METRICS[metric].factor
        unit = " points" if metric == "good_share" else " ms"
        text = signed(factor * row["value"], 1 if factor != 1 else None) + unit
        return f"{text} ({interval(row['ci_low'], row['ci_high'], factor)})"

    def larger(metric: str, statistic: str) -> str:
        sizes = {e: abs(table.loc[(metric, statistic, e), "value"]) for e in ("routing", "split")}
        return max(sizes, key=lambda effect: sizes[effect])

    row = table.loc[("good_share", "share", "interaction")]
    depends = (
        "what one factor brings depends on the other, because a good request needs both a first "
        "token and a pace within bounds"
        if row["ci_low"] > 0 or row["ci_high"] < 0
        else "these runs do not show that what one factor brings depends on the other"
    )
    shares = evidence.good_shares["share"]
    base = shares[evidence.study.baseline]
    steps = ", ".join(
        f"{arm.label} {signed(100 * (shares[name] - base), 1)}"
        for name, arm in evidence.arms.items()
        if name != evidence.study.baseline
    )
    return (
        f"Mean TTFT moves mostly with the **{larger('ttft_ms', 'mean')}**: routing "
        f"{said('ttft_ms', 'mean', 'routing')}, split {said('ttft_ms', 'mean', 'split')}. The tail "
        f"of ITL (p99) moves mostly with the **{larger('itl_ms', 'p99')}**: routing "
        f"{said('itl_ms', 'p99', 'routing')}, split {said('itl_ms', 'p99', 'split')}. Against the "
        f"baseline the good share changes by these points: {steps}. The interaction is "
        f"{said('good_share', 'share', 'interaction')}: {depends}."
    )


def variation(evidence: Evidence) -> str:
    """Return whether the difference stands clear of the noise of a run."""
    floor = evidence.noise_floor.set_index("metric")
    noise = floor.loc["good_share", "largest_difference"]
    difference = evidence.comparison.good.mean.difference.value
    if np.isnan(noise):
        return "With one repeat there is no comparison of the baseline with itself."
    return (
        f"The baseline replayed again differs from itself by at most {number(100 * noise, 1)} "
        "points of good share; the comparison differs from it by "
        f"{signed(100 * difference, 1)}. The "
        "two intervals answer different questions: other minutes of this workload, and another "
        "run of the same minutes."
    )


def robustness(evidence: Evidence, judged: Gate, sweep: Sweep | None) -> str:
    """Return which verdicts survive the other choices, and which do not."""
    if not judged.green:
        return NO_VERDICT
    found = evidence.robustness
    if sweep:
        found = pd.concat([found, sweep.spread_verdicts])
    declared = found[found["choice"] == found["choice"].iloc[0]].set_index("metric")["verdict"]
    changed = found[found["verdict"] != found["metric"].map(declared)]
    total = found["choice"].nunique() - 1
    same = total - changed["choice"].nunique()
    said = (
        f"All {total} other choices leave every verdict as declared."
        if same == total
        else f"Of {total} other choices {same} leave every verdict as declared."
    )
    for choice, rows in changed.groupby("choice", sort=False):
        turned = ", ".join(
            f"{METRICS[row.metric].label} from {declared[row.metric]} to {row.verdict}"
            for row in rows.itertuples()
        )
        said += f" With {choice}: {turned}."
    return f"{said} {_surface(evidence)}"


def _surface(evidence: Evidence) -> str:
    surface = evidence.slo_surface
    wins, loses = surface[surface["band_low"] > 0], surface[surface["band_high"] < 0]
    if loses.empty or wins.empty:
        return "No pair of bounds on the grid turns the difference of the good share around."
    said = (
        f"The bounds matter more: under {len(loses)} of {len(surface)} pairs of bounds the "
        f"comparison keeps **fewer** requests good, under {len(wins)} more."
    )
    slowest_ms, fastest_ms = loses["itl_ms"].max(), wins["itl_ms"].min()
    if slowest_ms < fastest_ms:
        said += (
            f" It loses only where the ITL bound is {slowest_ms:g} ms or less and wins only where "
            f"it is {fastest_ms:g} ms or more: the ITL bound decides who wins, the TTFT bound by "
            "how much."
        )
    return said
