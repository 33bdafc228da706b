"""Whether runs elsewhere show the published effect: the difference of two differences.

Input: the requests tables of both configurations, published and a reader's. Output: per metric
both effects, their gap with a workload interval, and a verdict by a stated rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from kvab.requests.metrics import LATENCIES, METRICS, Slo
from kvab.stats.bootstrap import Settings
from kvab.stats.contrasts import two_arms
from kvab.stats.pairing import join, plan, values

ARMS = ("published baseline", "published comparison", "your baseline", "your comparison")
PUBLISHED, YOURS = np.array([-1.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, -1.0, 1.0])
EFFECTS = np.stack([PUBLISHED, YOURS, YOURS - PUBLISHED])
AGREE, DIFFER, UNKNOWN = "agree", "differ", "cannot tell"

Tables = Sequence[pd.DataFrame]


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
    rows = _common(published, yours)
    arms = dict(zip(ARMS, (*published, *yours), strict=True))
    pairs = join({
        name: [table[table["row"].isin(rows)] for table in tables] for name, tables in arms.items()
    })  # fmt: skip
    by_arm = [values(pairs, name, slo) for name in ARMS]
    gaps = [EFFECTS[2] @ np.stack([arm[key] for arm in by_arm]) for key in METRICS]
    design = plan(pairs, gaps, **settings)
    lines = {}
    for key in METRICS:
        means = two_arms(pairs, [arm[key] for arm in by_arm], design, ["mean"])
        effects = means.map(lambda x: EFFECTS @ x)
        low, high = (end[:, 0] for end in effects.interval)
        scale = abs(float(means.value[0, 0])) if key in LATENCIES else 1.0
        line = {"rows": len(rows), "repeats": int(pairs["repeat"].max())}
        for at, name in enumerate(("published", "yours", "gap")):
            line |= {name: effects.value[at, 0], f"{name}_low": low[at], f"{name}_high": high[at]}
        margin = margins.get(key, 0.0) * scale
        lines[key] = line | {"margin": margin, "verdict": _verdict(line, margin)}
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("metric")


def _common(published: tuple[Tables, Tables], yours: tuple[Tables, Tables]) -> np.ndarray:
    first, second = (arms[0][0]["row"].to_numpy() for arms in (published, yours))
    common = np.intersect1d(first, second)
    return common if len(common) else second  # without any, pairing says what is wrong


def _verdict(line: Mapping[str, float], margin: float) -> str:
    gap, low, high = line["gap"], line["gap_low"], line["gap_high"]
    if -margin <= low and high <= margin:
        return AGREE
    if (low > 0 or high < 0) and abs(gap) > margin:
        return DIFFER
    return UNKNOWN
