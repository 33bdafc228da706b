"""Good requests at many bounds at once: the share of each configuration, and which one leads.

Input: requests tables of one load. Output: two tables over a grid of bounds. The same bursts are
drawn at every pair of bounds and in all configurations (`kvab.stats.bootstrap`), so that a lead is
paired; shares have the interval of `kvab.stats.crossings`, and equal those of the load curves where
the design is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kvab.requests.metrics import Bounds, good
from kvab.stats.bootstrap import Design
from kvab.stats.crossings import shares


def good_within(
    table: pd.DataFrame, burst: np.ndarray, ttft_ms: Sequence[float], itl_ms: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return good requests of each burst, and output tokens of all good ones, at every two bounds.

    Parameters
    ----------
    table : DataFrame
        A requests table.
    burst : ndarray of int, shape (len(table),)
        The burst of each request, from 0.
    ttft_ms, itl_ms : sequence of float
        Bounds, rising.

    Returns
    -------
    tuple of ndarray
        Counts of shape (TTFTs, ITLs, bursts), tokens of shape (TTFTs, ITLs); what is good is
        decided as in `kvab.requests.metrics.good`.
    """
    measured = good(table, Bounds(np.inf, np.inf))
    rows = table[measured]
    first = np.searchsorted(ttft_ms, rows["ttft_ms"].to_numpy(float))  # the strictest it meets
    second = np.searchsorted(itl_ms, rows["itl_ms"].to_numpy(float))
    counts = np.zeros((len(ttft_ms) + 1, len(itl_ms) + 1, burst.max() + 1), "int32")
    tokens = np.zeros(counts.shape[:2], "int64")
    np.add.at(counts, (first, second, burst[measured]), 1)
    np.add.at(tokens, (first, second), rows["output_tokens"].to_numpy("int64"))
    within = (of.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] for of in (counts, tokens))
    return next(within), next(within)


def at_bounds(
    tables: Mapping[str, pd.DataFrame], burst: np.ndarray, ttft_ms: Sequence[float],
    itl_ms: Sequence[float], design: Design,
) -> tuple[pd.DataFrame, pd.DataFrame]:  # fmt: skip
    """Return the share of good requests of every configuration, and who leads, at every two bounds.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Requests tables of the same rows, in the same order, by configuration: two or more.
    burst : ndarray of int
        The burst of each request, from 0.
    ttft_ms, itl_ms : sequence of float
        Bounds, rising.
    design : Design
        The resampling plan.

    Returns
    -------
    tuple of DataFrame
        Columns ``configuration``, ``ttft_ms``, ``itl_ms``, ``requests``, ``good``, ``low``,
        ``high`` (workload interval of the share), ``good_output_tokens``; and ``ttft_ms``,
        ``itl_ms``, ``best``, ``next`` (the first two configurations by share), ``margin``,
        ``low``, ``high`` (best minus next, paired). Equal shares stand in the order of ``tables``.
    """
    names, requests = np.array([*tables]), np.bincount(burst)
    pairs = (good_within(of, burst, ttft_ms, itl_ms) for of in tables.values())
    counts, tokens = map(np.stack, zip(*pairs, strict=True))
    share = shares(requests, counts, design)
    low, high = share.share_interval
    grid = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
    index = pd.MultiIndex.from_product([names, *grid.values()], names=["configuration", *grid])
    every = pd.DataFrame(
        {
            "requests": np.int32(requests.sum()),
            "good": counts.sum(axis=-1, dtype="int32").ravel(),
            "low": low.ravel().astype("float32"),
            "high": high.ravel().astype("float32"),
            "good_output_tokens": tokens.ravel(),
        },
        index,
    )
    first, second = np.argsort(-share.value, axis=0, kind="stable")[:2]
    at = np.ogrid[: len(ttft_ms), : len(itl_ms)]
    lead = share.map(lambda of: of[(..., first, *at)] - of[(..., second, *at)])
    low, high = lead.interval
    leading = pd.DataFrame(
        {
            "best": names[first].ravel(),
            "next": names[second].ravel(),
            "margin": lead.value.ravel(),
            "low": low.ravel(),
            "high": high.ravel(),
        },
        pd.MultiIndex.from_product(grid.values(), names=[*grid]),
    )
    return every.reset_index(), leading.reset_index()
