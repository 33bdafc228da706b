"""Tables with workload intervals for the figures: good shares, and effects by group of requests.

Input: requests tables. Output: tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from kvab.requests import metrics
from kvab.requests.metrics import Slo
from kvab.stats.bootstrap import mean, replicate
from kvab.stats.effects import effect_by_group, spans, terciles
from kvab.stats.pairing import join, pair, plan, sample, values


def good_shares(
    tables: Mapping[str, Sequence[pd.DataFrame]], slo: Slo, **settings: Any
) -> pd.DataFrame:
    """Return the share of good requests of each configuration.

    Returns
    -------
    DataFrame
        Indexed by configuration: ``share`` over the repeats, ``low`` and ``high`` of its workload
        interval (NaN where there are too few blocks), ``repeats`` the share of each repeat.
    """
    rows = {}
    for name, repeats in tables.items():
        rows_of_arm = join({name: repeats})
        good = values(rows_of_arm, name, slo)["good_share"]
        design = plan(rows_of_arm, [good], **settings)
        each = sample(rows_of_arm, good)
        found = replicate(design, partial(mean, each))
        low, high = np.clip([float(end) for end in found.interval], 0, 1)
        shares = [float(metrics.good(table, slo).mean()) for table in repeats]
        rows[name] = {"share": float(good.mean()), "low": low, "high": high, "repeats": shares}
    return pd.DataFrame.from_dict(rows, orient="index")


def groups(
    baseline: Sequence[pd.DataFrame],
    comparison: Sequence[pd.DataFrame],
    workload: pd.DataFrame,
    slo: Slo,
    **settings: Any,
) -> pd.DataFrame:
    """Return the effect by prompt length, by reusable prefix (in thirds) and along the trace.

    Returns
    -------
    DataFrame
        ``by`` (what the groups are of) and the columns of
        `kvab.stats.effects.effect_by_group`.
    """
    pairs = pair(baseline, comparison)
    rows = workload.set_index("row").loc[np.unique(pairs["row"])]
    groups_by = {
        "prompt": terciles(rows["input_tokens"], "tokens"),
        "reusable prefix": terciles(rows["reusable_tokens"], "tokens"),
        "arrival": spans(rows["arrival_ms"]),
    }
    parts = []
    for by, thirds in groups_by.items():
        effect = effect_by_group(pairs, thirds, slo, **settings)
        parts.append(effect.astype({"group": str}).assign(by=by))
    return pd.concat(parts, ignore_index=True)
