"""Pairing: the requests tables of two or more arms -> one table, joined on the trace row.

Input: requests tables, a list of repeats an arm. Output: the paired table, and from it the samples
and the resampling plan that `compare`, `effects` and `attribution` share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests.metrics import LATENCIES, METRICS, Slo, good, served, streamed, unlike
from kvab.stats.bootstrap import Design, Sample, Settings, block_bursts

BASELINE, COMPARISON = "baseline", "comparison"
CARRIED = ("output_tokens", *(METRICS[key].column for key in LATENCIES), "error")
ARRIVAL_TOLERANCE_MS = 0.01  # published tables round times to this


def pair(
    baseline_tables: Sequence[pd.DataFrame], comparison_tables: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Return two arms joined on the trace row, repeat i with repeat i.

    Parameters
    ----------
    baseline_tables, comparison_tables : sequence of DataFrame
        Requests tables, one a repeat. Of different numbers the smaller counts.

    Returns
    -------
    DataFrame
        See `join`, with the arms ``baseline`` and ``comparison``.

    Raises
    ------
    InputError
        See `join`.
    """
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
        If an arm has no table; if a row stands twice; if arms or repeats differ in their rows, or
        in the arrival or input length of a row. The text names the arm and the row.
    """
    repeats = min(len(tables) for tables in arms.values())
    if repeats == 0:
        empty = next(name for name, tables in arms.items() if not tables)
        raise InputError(f"{empty}: expected at least one run to compare, got none")
    reference, parts = None, []
    for repeat in range(1, repeats + 1):
        part = None
        for arm, tables in arms.items():
            table = _sorted(tables[repeat - 1], f"{arm}, repeat {repeat}")
            reference = table if reference is None else reference
            _check_same(reference, table, f"{arm}, repeat {repeat}", next(iter(arms)))
            if part is None:
                part = reference[["row", "arrival_ms", "input_tokens"]].assign(repeat=repeat)
            for column in CARRIED:
                known = served(table) | (column not in LATENCIES)
                part[f"{column}_{arm}"] = table[column].where(known)
        parts.append(part)
    pairs = pd.concat(parts, ignore_index=True)
    burst = np.unique(pairs["arrival_ms"], return_inverse=True)[1]
    return pairs.assign(burst=burst)


def _sorted(table: pd.DataFrame, where: str) -> pd.DataFrame:
    twice = table["row"].duplicated()
    if twice.any():
        raise InputError(
            f"{where}: row {table['row'][twice].iloc[0]} stands twice; every trace row stands once"
        )
    if table.empty:
        raise InputError(f"{where}: the table has no rows; replay it again")
    return table.sort_values("row", ignore_index=True)


def _check_same(reference: pd.DataFrame, table: pd.DataFrame, where: str, first: str) -> None:
    known, rows = reference["row"].to_numpy(), table["row"].to_numpy()
    fix = "compare runs of the same trace and slice"
    if not np.array_equal(known, rows):
        if not np.isin(rows, known).any():
            raise InputError(f"{where}: has no trace row in common with {first}; {fix}")
        odd = np.setxor1d(known, rows)
        has = "is missing" if odd[0] in known else f"is not in {first}, repeat 1"
        raise InputError(f"{where}: row {odd[0]} {has} ({len(odd)} rows differ); {fix}")
    shift_ms = np.abs(table["arrival_ms"] - reference["arrival_ms"]).to_numpy()
    _refuse(~(shift_ms <= ARRIVAL_TOLERANCE_MS), "arrival_ms", reference, table, where, first)
    both = served(table) & served(reference)
    wrong = np.zeros(len(both), bool)
    lengths = (of["input_tokens"].to_numpy()[both] for of in (table, reference))
    wrong[both] = unlike(*lengths)
    _refuse(wrong, "input_tokens", reference, table, where, first)


def _refuse(
    wrong: np.ndarray, column: str, reference: pd.DataFrame, table: pd.DataFrame, where: str,
    first: str,
) -> None:  # fmt: skip
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise InputError(
            f"{where}: row {table['row'].iloc[at]} has {column} {table[column].iloc[at]:g}, in "
            f"{first}, repeat 1 {reference[column].iloc[at]:g} ({wrong.sum()} rows differ); "
            "compare runs of the same trace and slice"
        )


def arm_table(pairs: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Return one arm of a paired table under the column names of the requests table."""
    renamed = {f"{column}_{arm}": column for column in CARRIED}
    return pairs[["row", "burst", *renamed]].rename(columns=renamed)


def values(
    pairs: pd.DataFrame, arm: str, slo: Slo, one_token: bool = False
) -> dict[str, np.ndarray]:
    """Return the values of every metric in one arm, along the rows of ``pairs``."""
    return metric_values(arm_table(pairs, arm), slo, one_token)


def metric_values(table: pd.DataFrame, slo: Slo, one_token: bool = False) -> dict[str, np.ndarray]:
    """Return the values of every metric, float arrays along the rows of a requests table.

    Latencies are NaN unless served; ``good_share`` is 0 or 1 on every row, failed ones too, and
    NaN on all where answers were not streamed.
    """
    answered = served(table)
    result = {key: table[METRICS[key].column].where(answered).to_numpy(float) for key in LATENCIES}
    judged = good(table, slo, one_token).astype(float)
    return {**result, "good_share": judged if streamed(table) else np.full(len(table), np.nan)}


def differences(first: Mapping, second: Mapping) -> dict[str, np.ndarray]:
    """Return second minus first for every metric; NaN where either is undefined."""
    return {key: second[key] - first[key] for key in first}


def sample(pairs: pd.DataFrame, of: np.ndarray) -> Sample:
    """Return values along the rows of ``pairs`` as a sample over its bursts."""
    return Sample.of(of, pairs["burst"].to_numpy(), int(pairs["burst"].max()) + 1)


def plan(
    pairs: pd.DataFrame,
    paired: Iterable[np.ndarray],
    block: int | None = None,
    **settings: Unpack[Settings],
) -> Design:
    """Return the resampling plan of a paired table.

    Parameters
    ----------
    pairs : DataFrame
        As `join` returns it.
    paired : iterable of ndarray
        Paired differences along its rows; the block length suits the size and the sign of all.
    block : int, optional
        Block length in bursts instead of the estimated one.
    **settings
        ``level``, ``resamples`` and ``seed`` of `kvab.stats.bootstrap.Design`.
    """
    bursts = int(pairs["burst"].max()) + 1
    if block is None:
        series = [part for column in paired for part in (column, np.sign(column))]
        block = block_bursts(np.column_stack([sample(pairs, s).influences() for s in series]))
    if not 1 <= block <= bursts:
        raise InputError(f"block_bursts: expected 1 to {bursts} (the bursts), got {block}")
    return Design(bursts, int(block), **settings)
