"""The paired comparison of two configurations: differences, intervals, verdicts.

Input: the requests tables of two arms, a list of repeats each. Output: the numbers of
``kvab compare`` and of the pages on the outcome. Differences are comparison minus baseline.
Two sources of variation stay apart: the workload (intervals ``ci_*``: block bootstrap over arrival
time, `kvab.stats.bootstrap`) and run to run (``run_to_run``: Student's t over repeats).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from kvab.console import counted
from kvab.requests.metrics import LATENCIES, METRICS, SCHEMA, Slo
from kvab.stats.bootstrap import Design, mean, replicate
from kvab.stats.contrasts import (
    POWER,
    contrasts,
    difference,
    method,
    number,
    statistics_of,
    two_arms,
    verdicts,
)
from kvab.stats.effects import effect_by_group, noise_floor, quantile_differences, terciles
from kvab.stats.pairing import BASELINE, COMPARISON, differences, pair, plan, sample, values
from kvab.stats.percentiles import percentiles
from kvab.stats.ranks import hodges_lehmann, hodges_lehmann_interval, mcnemar_p
from kvab.stats.unpaired import arm_design, arm_values, both_arms, unpaired_method

__all__ = [
    "Comparison",
    "compare",
    "compare_unpaired",
    "effect_by_group",
    "noise_floor",
    "pair",
    "quantile_differences",
    "terciles",
]

UNPAIRED = (
    "Unpaired: the runs replayed no schedule in common, so no request of one has its partner in "
    "the other. Each arm is resampled by itself, in blocks over its order of sending; whether both "
    "had the same load and prompts is not checked."
)
FEW_BLOCKS = 10  # below, a note says that the intervals are rough


@dataclass(frozen=True)
class Comparison:
    """What ``kvab compare --json`` prints; plain numbers, None where undefined.

    Attributes
    ----------
    pairs : int
        Pairs of requests, over all repeats.
    metrics : dict
        Latency metric -> statistic -> ``baseline``, ``comparison``, ``difference``, ``ratio``,
        ``ci_low`` and ``ci_high`` of the difference, ``ratio_ci_low`` and ``ratio_ci_high``.
    good_share : dict
        The same for the good share.
    faster_share, faster_share_ci : dict
        Latency metric -> share of pairs with a smaller value in the comparison; [low, high].
    paired_median_difference : dict
        Latency metric -> Hodges-Lehmann ``value``, ``ci_low``, ``ci_high``, and the plain
        ``median`` of the paired differences with ``median_ci_low``, ``median_ci_high``.
    verdict, verdict_basis : dict
        Metric -> verdict; the numbers it rests on, see `kvab.stats.contrasts.verdicts`.
    method, good_table, run_to_run, smallest_detectable : dict
        Settings; good and not good by pairs; differences by repeat; see `compare`.
    notes : list of str
        What limits the comparison, a sentence each.
    """

    pairs: int
    metrics: dict[str, dict]
    good_share: dict[str, float | None]
    faster_share: dict[str, float | None]
    faster_share_ci: dict[str, list[float | None]]
    paired_median_difference: dict[str, dict]
    verdict: dict[str, str]
    verdict_basis: dict[str, dict]
    method: dict[str, Any]
    good_table: dict[str, float | int]
    run_to_run: dict[str, dict]
    smallest_detectable: dict[str, float | None]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``kvab compare --json`` (schema 1)."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}


def compare(
    baseline_tables: Sequence[pd.DataFrame],
    comparison_tables: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
    statistic: str = "mean",
    block_bursts: int | None = None,
    one_token: bool = False,
) -> Comparison:
    """Return the paired comparison of two arms.

    Parameters
    ----------
    baseline_tables, comparison_tables : sequence of DataFrame
        Requests tables, one a repeat; repeats are pooled within bursts.
    slo : Slo
        Bounds of a good request, in milliseconds.
    level, resamples, seed
        Of the intervals.
    margins : mapping, optional
        Metric -> practical margin, see `kvab.stats.contrasts.verdicts`; 0 where missing.
    statistic : {'mean', 'p50', 'p90', 'p95', 'p99'}
        Which difference of a latency the verdict is about. The mean is what users wait in total;
        the shares of faster requests and the paired median stand beside it, for it hides them.
    block_bursts : int, optional
        Block length instead of the estimated one.
    one_token : bool
        Whether one-token answers are judged by their TTFT alone (`kvab.requests.metrics.good`).

    Returns
    -------
    Comparison
        Latency statistics are over the served rows of each arm, paired ones over rows served in
        both, the good share over all rows. ``smallest_detectable``: the true difference that such
        a comparison would call different from zero four times in five.

    Raises
    ------
    InputError
        If the arms cannot be paired, see `kvab.stats.pairing.join`.
    """
    pairs = pair(baseline_tables, comparison_tables)
    both = [values(pairs, arm, slo, one_token) for arm in (BASELINE, COMPARISON)]
    paired = differences(*both)
    settings = {"level": level, "resamples": resamples, "seed": seed}
    design = plan(pairs, paired.values(), block_bursts, **settings)
    arms = {
        key: two_arms(pairs, [arm[key] for arm in both], design, statistics_of(key))
        for key in METRICS
    }
    entries = {key: contrasts(arms[key], statistics_of(key)) for key in METRICS}
    at = {key: statistics_of(key).index(statistic if key in LATENCIES else "mean") for key in arms}
    judged = {key: difference(arms[key]).map(itemgetter((..., at[key]))) for key in arms}
    baselines = {key: arms[key].value[0, at[key]] for key in arms}
    basis = verdicts(judged, baselines, margins or {})
    by_pair = {key: paired_statistics(pairs, paired[key], design) for key in LATENCIES}
    detectable = design.critical() + design.critical(POWER)
    return Comparison(
        pairs=len(pairs),
        metrics={key: entries[key] for key in LATENCIES},
        good_share=entries["good_share"]["mean"],
        faster_share={key: by_pair[key].pop("faster") for key in LATENCIES},
        faster_share_ci={key: by_pair[key].pop("faster_ci") for key in LATENCIES},
        paired_median_difference=by_pair,
        verdict={key: each["verdict"] for key, each in basis.items()},
        verdict_basis={key: {"statistic": statistic, **each} for key, each in basis.items()},
        method=method(pairs, design),
        good_table=_good_table(pairs, both),
        run_to_run={key: _run_to_run(pairs, both, key, level) for key in METRICS},
        smallest_detectable={key: number(detectable * judged[key].error) for key in METRICS},
        notes=_notes(both, design, [len(baseline_tables), len(comparison_tables)]),
    )


def compare_unpaired(
    baseline_tables: Sequence[pd.DataFrame],
    comparison_tables: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    margins: Mapping[str, float] | None = None,
) -> Comparison:
    """Return the comparison of two arms whose requests have no partners; as `compare`.

    What rests on pairs is None, and the intervals are those of `kvab.stats.unpaired`.
    """
    both = [arm_values(tables, slo) for tables in (baseline_tables, comparison_tables)]
    settings = {"level": level, "resamples": resamples}
    designs = [arm_design(arm, seed=seed + at, **settings) for at, arm in enumerate(both)]
    arms = both_arms(both, designs, {key: statistics_of(key) for key in METRICS})
    entries = {key: contrasts(arms[key], statistics_of(key)) for key in METRICS}
    judged = {key: difference(arms[key]).map(itemgetter((..., 0))) for key in METRICS}
    baselines = {key: arms[key].value[0, 0] for key in METRICS}
    basis = verdicts(judged, baselines, margins or {})
    design = arms["latency_ms"].design
    detectable = design.critical() + design.critical(POWER)
    repeats = [len(baseline_tables), len(comparison_tables)]
    none = dict.fromkeys(
        ("value", "ci_low", "ci_high", "median", "median_ci_low", "median_ci_high")
    )
    unknown: dict[str, Any] = {"differences": [], "mean": None, "ci_low": None, "ci_high": None}
    return Comparison(
        pairs=0,
        metrics={key: entries[key] for key in LATENCIES},
        good_share=entries["good_share"]["mean"],
        faster_share=dict.fromkeys(LATENCIES),
        faster_share_ci={key: [None, None] for key in LATENCIES},
        paired_median_difference={key: none for key in LATENCIES},
        verdict={key: each["verdict"] for key, each in basis.items()},
        verdict_basis={key: {"statistic": "mean", **each} for key, each in basis.items()},
        method=unpaired_method(designs, design),
        good_table={},
        run_to_run={key: {**unknown, "reason": "unpaired"} for key in METRICS},
        smallest_detectable={key: number(detectable * judged[key].error) for key in METRICS},
        notes=[UNPAIRED, *_notes(both, design, repeats)],
    )


def paired_statistics(pairs: pd.DataFrame, paired: np.ndarray, design: Design) -> dict[str, Any]:
    """Return share faster, Hodges-Lehmann and median of one metric's paired differences."""
    unknown = np.isnan(paired)
    faster = sample(pairs, np.where(unknown, np.nan, paired < 0))
    apart = sample(pairs, paired)
    both = replicate(
        design,
        lambda weights: np.column_stack([mean(faster, weights), percentiles(apart, weights, [50])]),
    )
    low, high = both.interval
    center = hodges_lehmann(apart.values)
    hl_low, hl_high = hodges_lehmann_interval(apart, center, design)
    return {
        "value": number(center),
        "ci_low": number(hl_low),
        "ci_high": number(hl_high),
        "median": number(both.value[1]),
        "median_ci_low": number(low[1]),
        "median_ci_high": number(high[1]),
        "faster": number(both.value[0]),
        "faster_ci": [number(max(low[0], 0.0)), number(min(high[0], 1.0))],
    }


def _good_table(pairs: pd.DataFrame, both: Sequence[Mapping]) -> dict[str, float | int]:
    before, after = (arm["good_share"] > 0 for arm in both)
    lost, won = before & ~after, after & ~before
    by_repeat = [
        mcnemar_p(int(lost[of].sum()), int(won[of].sum()))
        for of in (pairs["repeat"].to_numpy() == repeat for repeat in pairs["repeat"].unique())
    ]
    return {
        "both": int((before & after).sum()),
        "only_baseline": int(lost.sum()),
        "only_comparison": int(won.sum()),
        "neither": int((~before & ~after).sum()),
        "mcnemar_p": max(by_repeat),  # each repeat by itself: pooled, it would count pairs twice
    }


def _run_to_run(pairs: pd.DataFrame, both: Sequence[Mapping], key: str, level: float) -> dict:
    repeat = pairs["repeat"].to_numpy()
    means = [pd.Series(arm[key]).groupby(repeat).mean() for arm in both]
    apart = (means[1] - means[0]).dropna().to_numpy()
    result = {"differences": [*map(float, apart)], "mean": None, "ci_low": None, "ci_high": None}
    if len(apart) < 2:
        reason = f"{len(apart)} repeat: variation from run to run needs at least two"
        return {**result, "mean": number(apart.mean()) if len(apart) else None, "reason": reason}
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    half = special.stdtrit(len(apart) - 1, (1 + level) / 2) * error
    ends = {"ci_low": float(apart.mean() - half), "ci_high": float(apart.mean() + half)}
    return {**result, "mean": float(apart.mean()), **ends, "reason": None}


def _notes(both: Sequence[Mapping], design: Design, repeats: Sequence[int]) -> list[str]:
    notes = []
    for arm, each in zip((BASELINE, COMPARISON), both, strict=True):
        if np.isnan(each["latency_ms"]).all():
            notes.append(f"The {arm} served no request: only the good share can be compared.")
        elif np.isnan(each["good_share"]).all():
            notes.append(f"The {arm} was not streamed: only its latency can be compared.")
    if len(set(repeats)) > 1:
        notes.append(
            f"The baseline has {counted(repeats[0], 'repeat')} and the comparison {repeats[1]}: "
            f"the first {min(repeats)} of each are compared."
        )
    if min(repeats) == 1:
        notes.append("One repeat: variation from run to run is unknown.")
    if design.blocks <= 2:
        notes.append(
            f"{counted(design.bursts, 'burst')} in blocks of {design.block_bursts} are too few for "
            "an interval: the estimates stand without one and no verdict is possible."
        )
    elif design.blocks < FEW_BLOCKS:
        notes.append(f"Only {design.blocks:.1f} blocks: the intervals are wide and rough.")
    return notes
