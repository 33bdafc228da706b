"""Whether the verdicts survive other choices than those declared.

Input: requests tables of two arms. Output: the verdicts under each choice, and the difference of
the good share over a surface of service levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.requests.metrics import LATENCIES, METRICS, Bounds, Slo, good
from kvab.stats.bootstrap import (
    Design,
    Replicates,
    Sample,
    Settings,
    block_bursts,
    mean,
    replicate,
)
from kvab.stats.contrasts import difference, statistics_of, two_arms, verdicts
from kvab.stats.pairing import BASELINE, COMPARISON, arm_table, pair, sample, values

ARMS = (BASELINE, COMPARISON)
BLOCK_FACTORS = (0.25, 0.5, 2.0)
TRIM_SHARE = 0.05
TTFT_GRID_MS = (500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000)
ITL_GRID_MS = (10, 12.5, 15, 17.5, 20, 25, 30, 35, 40, 50)


def choices(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    margins: Mapping[str, float],
    block_bursts: int,
    other_slos: Sequence[Slo] = (),
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the verdicts under the declared choices and under each other one.

    Parameters
    ----------
    baseline, comparison : sequence of DataFrame
        Requests tables, one a repeat.
    slo : Slo
        The declared bounds of a good request.
    margins : mapping
        Practical margins, see `kvab.stats.contrasts.verdicts`.
    block_bursts : int
        Block length of the declared comparison.
    other_slos : sequence of Slo
        Other bounds to judge by.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        A row for each choice and metric, the declared choice first: ``choice``, ``metric``,
        ``verdict``, ``difference``, ``ci_low``, ``ci_high`` (in the metric's unit).
    """
    pairs = pair(baseline, comparison)
    bursts = int(pairs["burst"].max()) + 1
    declared = Design(bursts, block_bursts, **settings)
    rows: list[dict[str, str | float]] = []

    def judge(choice: str, pairs: pd.DataFrame, design: Design, slo: Slo, *,
              one_token: bool = False, statistic: str = "mean") -> None:  # fmt: skip
        both = [values(pairs, arm, slo, one_token) for arm in ARMS]
        arms = {
            key: two_arms(pairs, [arm[key] for arm in both], design,
                          [statistic if key in LATENCIES else "mean"])
            for key in METRICS
        }  # fmt: skip
        rows.extend(_judged(choice, arms, margins))

    judge("as declared", pairs, declared, slo)
    for block in _other_blocks(block_bursts, bursts):
        judge(f"blocks of {_bursts(block)}", pairs, replace(declared, block_bursts=block), slo)
    for statistic in statistics_of(LATENCIES[0])[1::3]:
        judge(f"latencies by their {statistic}", pairs, declared, slo, statistic=statistic)
    for other in other_slos:
        judge(f"SLO {other.ttft_ms:g} ms and {other.itl_ms:g} ms", pairs, declared, other)
    judge("one-token answers judged by TTFT", pairs, declared, slo, one_token=True)
    for choice, part in _parts(pairs):
        left = np.unique(part["burst"], return_inverse=True)[1]
        judge(choice, part.assign(burst=left), replace(declared, bursts=left.max() + 1), slo)
    return pd.DataFrame(rows)


def judge_totals(
    choice: str,
    arms: Sequence[pd.DataFrame],
    margins: Mapping[str, float],
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the verdicts on the means from totals of every burst, as rows of `choices`.

    Parameters
    ----------
    choice : str
        What was chosen, as shown.
    arms : sequence of DataFrame
        Baseline and comparison: ``burst`` and, for each metric, ``<metric>_sum`` and
        ``<metric>_count``.
    margins, **settings
        As in `choices`.
    """
    ordered = [arm.sort_values("burst") for arm in arms]
    samples = {
        key: [Sample.of_totals(arm[f"{key}_sum"], arm[f"{key}_count"]) for arm in ordered]
        for key in METRICS
    }
    differences = [after.influences() - before.influences() for before, after in samples.values()]
    design = Design(len(arms[0]), block_bursts(np.column_stack(differences)), **settings)

    def means(both: Sequence[Sample]) -> Replicates:
        return replicate(
            design,
            lambda weights: np.stack([mean(arm, weights) for arm in both], axis=1)[..., None],
        )

    means_of = {key: means(both) for key, both in samples.items()}
    return pd.DataFrame(_judged(choice, means_of, margins))


def _judged(
    choice: str, arms: Mapping[str, Replicates], margins: Mapping[str, float]
) -> Iterator[dict[str, str | float]]:
    """Yield a row of `choices` for each metric, from one statistic's `contrasts.two_arms`."""
    differences = {key: difference(each).map(lambda x: x[..., 0]) for key, each in arms.items()}
    basis = verdicts(differences, {key: each.value[0, 0] for key, each in arms.items()}, margins)
    for key, each in basis.items():
        apart = each.difference
        yield {"choice": choice, "metric": key, "verdict": each.verdict,
               "difference": apart.value, "ci_low": apart.low, "ci_high": apart.high}  # fmt: skip


def _bursts(number: int) -> str:
    return f"{number} bursts" if number > 1 else "one burst"


def _other_blocks(block: int, bursts: int) -> list[int]:
    scaled = [round(block * factor) for factor in BLOCK_FACTORS]
    return [each for each in dict.fromkeys([1, *scaled]) if each != block and 1 <= each < bursts]


def _parts(pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    at_ms = pairs["arrival_ms"]
    span_ms = at_ms.max() - at_ms.min()
    trim_ms = TRIM_SHARE * span_ms
    inside = (at_ms >= at_ms.min() + trim_ms) & (at_ms <= at_ms.max() - trim_ms)
    length = f"{trim_ms / 60_000:.0f} minutes" if trim_ms >= 120_000 else f"{trim_ms / 1000:.0f} s"
    if inside.any():
        yield f"first and last {length} dropped", pairs[inside]
    repeats = pairs["repeat"].unique()
    for repeat in repeats if len(repeats) > 1 else []:
        yield f"repeat {repeat} alone", pairs[pairs["repeat"] == repeat]


def slo_surface(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    block_bursts: int,
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the difference of the good share for every pair of bounds on a grid.

    Parameters
    ----------
    baseline, comparison : sequence of DataFrame
        Requests tables, one a repeat.
    slo : Slo
        The declared bounds, part of the grid.
    block_bursts : int
        Block length of the declared comparison.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        ``ttft_ms``, ``itl_ms``, ``baseline``, ``comparison``, ``difference`` (shares of 1),
        ``ci_low``, ``ci_high`` (each pair of bounds by itself) and ``band_low``, ``band_high``
        (all at once, see `kvab.stats.bootstrap.Replicates.band`).
    """
    pairs = pair(baseline, comparison)
    design = Design(int(pairs["burst"].max()) + 1, block_bursts, **settings)
    grid = [
        (ttft_ms, itl_ms)
        for ttft_ms in sorted({*TTFT_GRID_MS, slo.ttft_ms})
        for itl_ms in sorted({*ITL_GRID_MS, slo.itl_ms})
    ]
    tables = [arm_table(pairs, arm) for arm in ARMS]
    bounds = [Bounds(ttft_ms=ttft_ms, itl_ms=itl_ms) for ttft_ms, itl_ms in grid]
    sums = np.stack(
        [[sample(pairs, good(table, each)).sums for each in bounds] for table in tables]
    )
    counts = sample(pairs, np.ones(len(pairs))).counts
    shares = replicate(
        design,
        lambda weights: np.moveaxis(sums @ weights.T, -1, 0) / (weights @ counts)[:, None, None],
    )
    apart = difference(shares)
    ends = dict(zip(("ci_low", "ci_high", "band_low", "band_high"), [*apart.interval, *apart.band],
                    strict=True))  # fmt: skip
    table = pd.DataFrame(grid, columns=["ttft_ms", "itl_ms"])
    return table.assign(
        baseline=shares.value[0], comparison=shares.value[1], difference=apart.value, **ends
    )
