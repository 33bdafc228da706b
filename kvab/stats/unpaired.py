"""Two arms without pairs: each resampled by itself, in blocks over its order of sending.

Input: the requests tables of two arms. Output: values and estimates of both, as if of one plan.

The arms are independent, so each has its own resamples and the variance of a difference is the sum
of theirs. The interval takes Student's t and the correction for few blocks of the arm with fewer
blocks: never narrower than Welch's, whose degrees of freedom lie between that arm's and the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kvab.requests.metrics import LATENCIES, METRICS, PERCENTILES, Slo, good, served, streamed
from kvab.stats.bootstrap import Design, Replicates, Sample, block_bursts, mean, replicate
from kvab.stats.contrasts import Method
from kvab.stats.percentiles import percentiles


def arm_values(tables: Sequence[pd.DataFrame], slo: Slo) -> dict[str, np.ndarray]:
    """Return every metric of an arm's requests in the order of sending, its runs in turn."""
    table = pd.concat([each.sort_values("arrival_ms", kind="stable") for each in tables])
    answered = served(table)
    result = {key: table[METRICS[key].column].where(answered).to_numpy(float) for key in LATENCIES}
    judged = good(table, slo).astype(float)
    return {**result, "good_share": judged if streamed(table) else np.full(len(table), np.nan)}


def arm_design(values: Mapping[str, np.ndarray], **settings: Any) -> Design:
    """Return the resampling plan of one arm: its unit is a request."""
    of = np.column_stack([_sample(each).influences() for each in values.values()])
    return Design(len(of), block_bursts(of), **settings)


def unpaired_method(designs: Sequence[Design], used: Design) -> Method:
    """Return the settings of the intervals, with the requests of each arm."""
    name = "stationary block bootstrap over the order of sending, each arm by itself, Student t"
    return Method.of(used, name, np.nan, [design.bursts for design in designs])


def both_arms(
    both: Sequence[Mapping[str, np.ndarray]], designs: Sequence[Design], names: Mapping
) -> dict[str, Replicates]:
    """Return by metric the statistics ``names`` of each arm: value (arms, names), draws."""
    estimates = [
        {key: _replicates(arm[key], design, names[key]) for key in arm}
        for arm, design in zip(both, designs, strict=True)
    ]
    fewest = min(designs, key=lambda design: design.blocks)
    return {
        key: Replicates(
            np.stack([each[key].value for each in estimates]),
            np.stack([each[key].draws for each in estimates], axis=1),
            fewest,
        )
        for key in both[0]
    }


def _replicates(values: np.ndarray, design: Design, names: Sequence[str]) -> Replicates:
    of = _sample(values)
    q = [PERCENTILES[name] for name in names if name != "mean"]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        return np.column_stack([mean(of, weights), percentiles(of, weights, q)])

    return replicate(design, evaluate)


def _sample(values: np.ndarray) -> Sample:
    return Sample.of(values, np.arange(len(values)), len(values))
