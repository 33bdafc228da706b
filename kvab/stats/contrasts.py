"""Arms joined on the trace row -> their statistics, differences, ratios, intervals, verdicts.

Input: requests tables, a list of repeats an arm. Output: the paired table with its values, samples
and resampling plan; from these plain numbers, NaN where undefined. Role: what `compare`, `effects`,
`attribution` and `robustness` share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.metrics import COMPARED, LATENCIES, METRICS, Slo, good, served, streamed, unlike
from kvab.stats import bootstrap
from kvab.stats.bootstrap import Design, Replicates, Sample, Settings

BASELINE, COMPARISON = ARMS = ("baseline", "comparison")
CARRIED = ("output_tokens", *LATENCIES, "error")
ARRIVAL_TOLERANCE_MS = 0.01  # published tables round times to this
POWER = 0.8  # at which a difference counts as detectable


def pair(
    baseline_tables: Sequence[pd.DataFrame], comparison_tables: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Return two arms joined on the trace row, repeat i with repeat i; see `join`."""
    return join({BASELINE: baseline_tables, COMPARISON: comparison_tables})


def join(arms: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Return arms joined on the trace row, repeat by repeat.

    Parameters
    ----------
    arms : mapping of str to sequence of DataFrame
        Requests tables of each arm, one a repeat; the smallest number of repeats is used.

    Returns
    -------
    DataFrame
        A row for each repeat and trace row: ``repeat`` (from 1), ``row``, ``arrival_ms``,
        ``burst`` (index of the distinct arrival), ``input_tokens``, and for each arm
        ``<column>_<arm>`` of output_tokens, ttft_ms, itl_ms, latency_ms (NaN unless served) and
        error. Failed rows stay.

    Raises
    ------
    InputError
        If an arm has no table; if arms or repeats differ in their rows, or in the arrival or input
        length of a row. The text names the arm and the row.
    """
    first, repeats = next(iter(arms)), min(map(len, arms.values()))
    if not repeats:
        empty = next(name for name, tables in arms.items() if not tables)
        raise InputError(f"{empty}: expected at least one run to compare, got none")
    reference, parts = arms[first][0].sort_values("row", ignore_index=True), []
    for repeat in range(1, repeats + 1):
        part = reference[["row", "arrival_ms", "input_tokens"]].assign(repeat=repeat)
        for arm, tables in arms.items():
            table = tables[repeat - 1].sort_values("row", ignore_index=True)
            _check_same(reference, table, f"{arm}, repeat {repeat}", first)
            for column in CARRIED:
                known = served(table) | (column not in LATENCIES)
                part[f"{column}_{arm}"] = table[column].where(known)
        parts.append(part)
    pairs = pd.concat(parts, ignore_index=True)
    burst = np.unique(pairs["arrival_ms"], return_inverse=True)[1]
    return pairs.assign(burst=burst)


def _check_same(reference: pd.DataFrame, table: pd.DataFrame, where: str, first: str) -> None:
    """Reject a table of other requests than the first arm's first."""
    known, rows = reference["row"].to_numpy(), table["row"].to_numpy()
    fix = "compare runs of the same trace and slice"
    if not np.array_equal(known, rows):
        if not np.isin(rows, known).any():
            raise InputError(f"{where}: has no trace row in common with {first}; {fix}")
        odd = np.setxor1d(known, rows)
        has = "is missing" if odd[0] in known else f"is not in {first}, repeat 1"
        raise InputError(f"{where}: row {odd[0]} {has} (rows that differ: {len(odd)}); {fix}")
    shift_ms = np.abs(table["arrival_ms"] - reference["arrival_ms"]).to_numpy()
    other_prompt = unlike(*(of["input_tokens"].to_numpy() for of in (table, reference)))
    for column, wrong in {
        "arrival_ms": ~(shift_ms <= ARRIVAL_TOLERANCE_MS),
        "input_tokens": other_prompt & served(table) & served(reference),
    }.items():
        if wrong.any():
            at = int(wrong.argmax())
            got, expected = (f"{of[column].iloc[at]:g}" for of in (table, reference))
            raise InputError(
                f"{where}: row {rows[at]} has {column} {got}, in {first}, repeat 1 {expected} "
                f"(rows that differ: {wrong.sum()}); {fix}"
            )


def arm_table(pairs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return one arm of a paired table under the column names of the requests table."""
    renamed = {f"{column}_{arm}": column for column in CARRIED}
    return pairs[["row", "burst", *renamed]].rename(columns=renamed)


def values(
    pairs: pd.DataFrame, slo: Slo, arms: Sequence[str] = ARMS, one_token: bool = False
) -> dict[str, np.ndarray]:
    """Return the values of every metric, float arrays of shape (arms, rows of ``pairs``)."""
    by_arm = [metric_values(arm_table(pairs, arm), slo, one_token) for arm in arms]
    return {key: np.stack([of[key] for of in by_arm]) for key in METRICS}


def metric_values(table: pd.DataFrame, slo: Slo, one_token: bool = False) -> dict[str, np.ndarray]:
    """Return the values of every metric, float arrays along the rows of a requests table.

    Latencies are NaN unless served; ``good_share`` is 0 or 1 on every row, failed ones too, and
    NaN on all where answers were not streamed.
    """
    answered = served(table)
    result = {key: table[key].where(answered).to_numpy(float) for key in LATENCIES}
    judged = good(table, slo, one_token).astype(float)
    return {**result, "good_share": judged if streamed(table) else np.full(len(table), np.nan)}


def paired(both: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return comparison minus baseline of every metric's `values`; NaN where either is."""
    return {key: comparison - baseline for key, (baseline, comparison) in both.items()}


def sample(pairs: pd.DataFrame, of: np.ndarray) -> Sample:
    """Return values along the rows of ``pairs`` as a sample over its bursts."""
    return Sample.of(of, pairs["burst"].to_numpy(), int(pairs["burst"].max()) + 1)


def plan(
    pairs: pd.DataFrame, effects: Iterable[np.ndarray], **settings: Unpack[Settings]
) -> Design:
    """Return the resampling plan of a paired table.

    Parameters
    ----------
    pairs : DataFrame
        As `join` returns it.
    effects : iterable of ndarray
        Paired differences along its rows, one or several each; the block length suits the size and
        the sign of all.
    **settings
        ``level``, ``resamples`` and ``seed`` of `kvab.stats.bootstrap.Design`.
    """
    series = np.vstack([*effects])
    samples = [sample(pairs, of) for of in (*series, *np.sign(series))]
    block = bootstrap.block_bursts(np.column_stack([of.influences() for of in samples]))
    return Design(len(samples[0].counts), block, **settings)


# --- statistics and verdicts ---------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its interval; NaN where undefined."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan

    @classmethod
    def each(cls, *ends: np.ndarray) -> list[Estimate]:
        """Return estimates from arrays of numbers and of both ends of their intervals."""
        return [cls(*of) for of in zip(*(np.ravel(end).tolist() for end in ends), strict=True)]


@dataclass(frozen=True)
class Contrast:
    """One statistic of both arms: comparison minus baseline, and comparison over baseline."""

    baseline: float
    comparison: float
    difference: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on, in the metric's unit; see `verdicts`."""

    verdict: str
    p: float
    p_holm: float
    margin: float
    difference: Estimate


@dataclass(frozen=True)
class Method:
    """Settings of the intervals, as shown and as ``compare --json`` has them.

    ``block_s`` is the block length in seconds, NaN where blocks lie over the order of sending;
    there ``requests`` counts the requests of each arm.
    """

    name: str
    level: float
    resamples: int
    seed: int
    block_bursts: int
    block_s: float
    bursts: int
    blocks: float
    requests: list[int] | None = None


def statistics_of(key: str) -> tuple[str, ...]:
    """Return the statistics that are compared of a metric; of the good share only the mean."""
    return COMPARED if key in LATENCIES else ("mean",)


def resampled(
    pairs: pd.DataFrame, arms: Iterable[np.ndarray], design: Design, names: Sequence[str]
) -> Replicates:
    """Return the statistics ``names`` of each arm: value (arms, names), draws (n, arms, names).

    ``arms`` holds the values of each, one or more, along the rows of ``pairs``.
    """
    samples = [sample(pairs, arm) for arm in arms]
    return bootstrap.replicate(
        design, lambda weights: np.stack([statistics(of, weights, names) for of in samples], axis=1)
    )


def compared(
    pairs: pd.DataFrame, both: Mapping[str, Iterable[np.ndarray]], design: Design
) -> dict[str, Replicates]:
    """Return the statistics of every metric that are compared, from `values`; see `resampled`."""
    return {key: resampled(pairs, of, design, statistics_of(key)) for key, of in both.items()}


def statistics(of: Sample, weights: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return the weighted statistics of a sample, shape (n, names); the mean stands first."""
    q = [float(name.removeprefix("p")) for name in names if name != "mean"]
    means = [bootstrap.mean(of, weights)] if "mean" in names else []
    return np.column_stack([*means, bootstrap.percentiles(of, weights, q)])


def difference(arms: Replicates) -> Replicates:
    """Return comparison minus baseline of `resampled`."""
    return arms.map(lambda x: x[..., 1, :] - x[..., 0, :])


def difference_columns(arms: Replicates) -> dict[str, np.ndarray]:
    """Return both arms, their differences, each one's interval and the band of all, as columns."""
    differences = difference(arms)
    names = (*ARMS, "difference", "ci_low", "ci_high", "band_low", "band_high")
    ends = (differences.value, *differences.interval, *differences.band)
    return dict(zip(names, (*arms.value, *ends), strict=True))


def by_statistic(arms: Replicates, names: Sequence[str]) -> dict[str, Contrast]:
    """Return statistic -> both arms, difference and ratio, each of the two with its interval.

    Notes
    -----
    The ratio's interval is that of its logarithm; next to no difference it may include 1 where
    the difference's excludes 0, or the other way. NaN if a value is not positive.
    """
    differences = difference(arms)
    logs = difference(arms.map(lambda x: np.log(np.where(x > 0, x, np.nan))))
    rows = zip(
        names,
        *arms.value.tolist(),
        Estimate.each(differences.value, *differences.interval),
        Estimate.each(*(np.exp(ends) for ends in (logs.value, *logs.interval))),
        strict=True,
    )
    return {name: Contrast(*row) for name, *row in rows}


def method(pairs: pd.DataFrame, design: Design) -> Method:
    """Return the settings of the intervals of a paired table."""
    arrivals_ms = pairs["arrival_ms"]
    gap_s = (arrivals_ms.max() - arrivals_ms.min()) / 1000 / max(design.bursts - 1, 1)
    name = "stationary block bootstrap over arrival time, Student t"
    block_s = float(design.block_bursts * gap_s)
    return Method(name, block_s=block_s, blocks=design.blocks, **asdict(design))


def verdicts(arms: Mapping[str, Replicates], margins: Mapping[str, float]) -> dict[str, Judgement]:
    """Return the verdict on each metric, with what it rests on.

    Parameters
    ----------
    arms : mapping of str to Replicates
        Metric -> its statistics of both arms, of which the first is judged.
    margins : mapping of str to float
        Metric -> smallest difference that matters in practice: a share of the baseline's value
        for latencies, absolute for the good share; 0 where missing.

    Returns
    -------
    dict of str to Judgement

    Notes
    -----
    The rule, first match wins:

    1. *no difference*: the whole interval lies within +- the margin. A difference may exist; it
       does not matter.
    2. *better* or *worse*: Holm-adjusted over the metrics, p is below 1 - level, and the estimate
       is beyond the margin. There is a difference, and at best estimate it matters.
    3. *inconclusive*: otherwise, and wherever there is no interval.

    S. Holm, Scandinavian Journal of Statistics 6 (1979). An interval at the same level asks more
    of rule 1 than two one-sided tests would (D. J. Schuirmann, 1987, DOI 10.1007/BF01068419).
    """
    from statsmodels.stats.multitest import multipletests  # imports for a second

    judged = {key: difference(of).map(lambda x: x[..., 0]) for key, of in arms.items()}
    p = {key: float(of.p_value) for key, of in judged.items()}
    finite = [1.0 if np.isnan(value) else value for value in p.values()]
    adjusted = dict(zip(p, multipletests(finite, method="holm")[1], strict=True))
    result = {}
    for key, of in judged.items():
        margin = margins.get(key, 0.0) * (abs(arms[key].value[0, 0]) if key in LATENCIES else 1.0)
        low, high = of.interval
        lower = of.value < 0
        if -margin <= low and high <= margin:
            verdict = "no difference"
        elif adjusted[key] < 1 - of.design.level and abs(of.value) > margin:
            verdict = "better" if lower == (METRICS[key].better == "lower") else "worse"
        else:
            verdict = "inconclusive"
        result[key] = Judgement(
            verdict=verdict,
            p=p[key],
            p_holm=np.nan if np.isnan(p[key]) else float(adjusted[key]),
            margin=float(margin),
            difference=Estimate(*map(float, (of.value, low, high))),
        )
    return result
