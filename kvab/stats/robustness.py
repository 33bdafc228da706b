"""Whether the verdicts survive other choices than those declared, and show elsewhere.

Input: requests tables of two arms, here and elsewhere. Output: the verdicts under each choice, the
difference of the good share by bound, and whether two places agree: the difference of their
differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.requests.metrics import LATENCIES, METRICS, Bounds, Slo, good
from kvab.stats import contrasts
from kvab.stats.bootstrap import Design, Replicates, Settings
from kvab.stats.contrasts import ARMS
from kvab.stats.crossings import shares

BLOCK_FACTORS = (0.25, 0.5, 2.0)
OTHER_STATISTICS = ("p50", "p99")
TRIM_SHARE = 0.05
ALONE = 3  # repeats that are judged by themselves; more would count one choice many times
ITL_GRID_MS = (10, 12.5, 15, 17.5, 20, 25, 30, 35, 40, 50)
PLACES = ("published baseline", "published comparison", "your baseline", "your comparison")
PUBLISHED, YOURS = np.array([-1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0, 1.0])
EFFECTS = np.stack([PUBLISHED, YOURS, YOURS - PUBLISHED])
AGREE, DIFFER, UNKNOWN = "agree", "differ", "cannot tell"

Tables = Sequence[pd.DataFrame]


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
        A row for each choice and each metric that it can affect, the declared choice first:
        ``choice``, ``metric``, ``verdict``, ``baseline``, ``comparison``, ``difference``,
        ``ci_low``, ``ci_high`` (in the metric's unit). The p values are adjusted over all metrics,
        of which those not affected are judged as declared.
    """
    pairs = contrasts.pair(baseline, comparison)
    bursts = int(pairs["burst"].max()) + 1
    design = Design(bursts, block_bursts, **settings)
    declared = _statistic(pairs, design, slo)
    changed = {"as declared": declared}
    for block in dict.fromkeys([1, *(round(block_bursts * factor) for factor in BLOCK_FACTORS)]):
        if block != block_bursts and 1 <= block < bursts:
            length = "one burst" if block == 1 else f"{block} bursts"
            other = replace(design, block_bursts=block)
            changed[f"blocks of {length}"] = _statistic(pairs, other, slo)
    for name in OTHER_STATISTICS:
        changed[f"latencies by their {name}"] = _statistic(pairs, design, slo, name)
    changed["latencies by the median paired difference"] = _paired_medians(pairs, design)
    good_alone = {
        f"TTFT {other.ttft_ms:,g} ms, ITL {other.itl_ms:g} ms": _statistic(pairs, design, other)
        for other in other_slos
    }
    good_alone["one-token answers judged by TTFT"] = _statistic(pairs, design, slo, one_token=True)
    for choice, arms in good_alone.items():
        changed[choice] = {"good_share": arms["good_share"]}
    for choice, part in _parts(pairs):
        left = np.unique(part["burst"], return_inverse=True)[1]
        of_part = replace(design, bursts=int(left.max()) + 1)
        changed[choice] = _statistic(part.assign(burst=left), of_part, slo)
    return pd.DataFrame(
        row
        for choice, arms in changed.items()
        for row in _judged(choice, {**declared, **arms}, margins)
        if row["metric"] in arms
    )


def _statistic(
    pairs: pd.DataFrame, design: Design, slo: Slo, name: str = "mean", one_token: bool = False
) -> dict[str, Replicates]:
    """Return a statistic of each metric in both arms; of the good share there is only the mean."""
    both = contrasts.values(pairs, slo, one_token=one_token)
    keys = METRICS if name == "mean" else LATENCIES
    return {key: contrasts.resampled(pairs, both[key], design, [name]) for key in keys}


def _paired_medians(pairs: pd.DataFrame, design: Design) -> dict[str, Replicates]:
    """Return of each latency the baseline's median, and that plus the median paired difference."""
    result = {}
    for key in LATENCIES:
        before, after = (pairs[f"{key}_{arm}"].to_numpy(float) for arm in ARMS)
        medians = contrasts.resampled(pairs, [before, after - before], design, ["p50"])
        result[key] = medians.map(lambda x: x.cumsum(axis=-2))
    return result


def judge(
    choice: str,
    tables: Sequence[pd.DataFrame],
    slo: Slo,
    margins: Mapping[str, float],
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the verdicts on the means of one run of each arm, as rows of `choices`."""
    baseline, comparison = tables
    pairs = contrasts.pair([baseline], [comparison])
    by_pair = contrasts.paired(contrasts.values(pairs, slo))
    design = contrasts.plan(pairs, by_pair.values(), **settings)
    return pd.DataFrame(_judged(choice, _statistic(pairs, design, slo), margins))


def _judged(
    choice: str, arms: Mapping[str, Replicates], margins: Mapping[str, float]
) -> Iterator[dict[str, str | float]]:
    """Yield a row of `choices` for each metric, from one statistic's `contrasts.resampled`."""
    for key, of in contrasts.verdicts(arms, margins).items():
        baseline, comparison = map(float, arms[key].value[:, 0])
        ends = of.difference
        yield {"choice": choice, "metric": key, "verdict": of.verdict, "baseline": baseline,
               "comparison": comparison, "difference": ends.value, "ci_low": ends.low,
               "ci_high": ends.high}  # fmt: skip


def _parts(pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    at_ms = pairs["arrival_ms"]
    span_ms = at_ms.max() - at_ms.min()
    trim_ms = TRIM_SHARE * span_ms
    inside = (at_ms >= at_ms.min() + trim_ms) & (at_ms <= at_ms.max() - trim_ms)
    length = f"{trim_ms / 60_000:.0f} minutes" if trim_ms >= 120_000 else f"{trim_ms / 1000:.0f} s"
    if inside.any():
        yield f"first and last {length} dropped", pairs[inside]
    repeats = pairs["repeat"].unique()
    for repeat in repeats[:ALONE] if len(repeats) > 1 else []:
        yield f"repeat {repeat} alone", pairs[pairs["repeat"] == repeat]


def by_itl_bound(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    slo: Slo,
    *,
    block_bursts: int,
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return the difference of the good share by ITL bound, at the declared TTFT bound.

    Parameters
    ----------
    baseline, comparison : sequence of DataFrame
        Requests tables, one a repeat.
    slo : Slo
        The declared bounds; that of the ITL is part of the grid.
    block_bursts : int
        Block length of the declared comparison.
    **settings
        ``level``, ``resamples``, ``seed``.

    Returns
    -------
    DataFrame
        Indexed by ``itl_ms``: ``baseline``, ``comparison``, ``difference`` (shares of 1),
        ``ci_low``, ``ci_high`` (each bound by itself) and ``band_low``, ``band_high`` (all at
        once, see `kvab.stats.bootstrap.Replicates.band`).
    """
    pairs = contrasts.pair(baseline, comparison)
    design = Design(int(pairs["burst"].max()) + 1, block_bursts, **settings)
    grid_ms = sorted({*ITL_GRID_MS, slo.itl_ms})
    bounds = [Bounds(slo.ttft_ms, itl_ms) for itl_ms in grid_ms]
    tables = [contrasts.arm_table(pairs, arm) for arm in ARMS]
    kept = np.stack(
        [[contrasts.sample(pairs, good(table, of)).sums for of in bounds] for table in tables]
    )
    both = shares(np.bincount(pairs["burst"]), kept, design)
    return pd.DataFrame(contrasts.difference_columns(both), pd.Index(grid_ms, name="itl_ms"))


# --- elsewhere ------------------------------------------------------------------------------------


def agreement(
    published: tuple[Tables, Tables],
    yours: tuple[Tables, Tables],
    slo: Slo,
    margins: Mapping[str, float],
    **settings: Unpack[Settings],
) -> pd.DataFrame:
    """Return whether two places agree on what the comparison gains over the baseline.

    Parameters
    ----------
    published, yours : (sequence of DataFrame, sequence of DataFrame)
        Requests tables of baseline and comparison, one a repeat. Of rows and repeats that only one
        place has, nothing is used: like is compared with like.
    slo : Slo
        Bounds of a good request, the same for both places.
    margins : mapping of str to float
        Metric -> smallest difference that matters: a share of the published baseline's mean for
        latencies, absolute for the good share.
    **settings
        ``level``, ``resamples``, ``seed``, as in `kvab.stats.compare.compare`.

    Returns
    -------
    DataFrame
        Indexed by metric: ``rows`` and ``repeats`` used; ``published``, ``yours`` and ``gap``
        (yours minus published), each with ``_low`` and ``_high`` of its workload interval, in the
        metric's unit; ``margin``; ``verdict``.

    Raises
    ------
    InputError
        If the places have no row in common, or differ in the arrival or prompt length of one.

    Notes
    -----
    The rule, first match wins, on the mean of each latency and on the good share:

    1. *agree*: the whole interval of the gap lies within +- the margin.
    2. *differ*: the interval excludes zero, and the gap is beyond the margin.
    3. *cannot tell*: otherwise, and wherever there is no interval.

    The same bursts are drawn in all four sets of runs, so what the workload does to all of them
    cancels. What varies from run to run is not in the interval.
    """
    first, second = (place[0][0]["row"].to_numpy() for place in (published, yours))
    rows = np.intersect1d(first, second)
    rows = rows if len(rows) else second  # without any, pairing says what is wrong
    arms = dict(zip(PLACES, (*published, *yours), strict=True))
    pairs = contrasts.join({
        name: [table[table["row"].isin(rows)] for table in tables] for name, tables in arms.items()
    })  # fmt: skip
    by_arm = contrasts.values(pairs, slo, PLACES)
    design = contrasts.plan(pairs, [EFFECTS[2] @ of for of in by_arm.values()], **settings)
    lines = {}
    for key, of in by_arm.items():
        means = contrasts.resampled(pairs, of, design, ["mean"])
        effects = means.map(lambda x: EFFECTS @ x)
        low, high = (end[:, 0] for end in effects.interval)
        scale = abs(float(means.value[0, 0])) if key in LATENCIES else 1.0
        line = {"rows": len(rows), "repeats": int(pairs["repeat"].max())}
        for at, name in enumerate(("published", "yours", "gap")):
            line |= {name: effects.value[at, 0], f"{name}_low": low[at], f"{name}_high": high[at]}
        margin = margins.get(key, 0.0) * scale
        lines[key] = line | {"margin": margin, "verdict": _verdict(line, margin)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("metric")


def _verdict(line: Mapping[str, float], margin: float) -> str:
    gap, low, high = line["gap"], line["gap_low"], line["gap_high"]
    if -margin <= low and high <= margin:
        return AGREE
    if (low > 0 or high < 0) and abs(gap) > margin:
        return DIFFER
    return UNKNOWN
