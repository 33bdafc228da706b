"""The metric registry and the summary of one run: pure functions of the requests table.

Input: the requests table (``requests.parquet``, see design.md). Output: the numbers of
``kvab summarize``. Everything that shows a metric takes its label, unit and direction from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

from kvab.declarations import Json

SCHEMA = 1
SLACK_TOKENS, SLACK = 64, 0.1  # a chat template and a second tokenizer change a prompt this much


class Bounds(NamedTuple):
    """Two bounds of a good request, in milliseconds."""

    ttft_ms: float
    itl_ms: float


class Slo(Protocol):
    """Whatever carries these two bounds: those of a study, or any others."""

    @property
    def ttft_ms(self) -> float:
        """Largest time to first token of a good request."""

    @property
    def itl_ms(self) -> float:
        """Largest inter-token latency of a good request."""


@dataclass(frozen=True)
class Metric:
    """How a metric is named, shown and judged.

    Attributes
    ----------
    key : str
        Name in tables and JSON.
    label, short : str
        Name in full and as abbreviation, for axes and text.
    unit : str
        Unit as shown; shown value = stored value x ``factor``.
    better : {'lower', 'higher'}
        Direction of improvement.
    factor : float
        From the stored to the shown value (100 turns a share into per cent).
    """

    key: str
    label: str
    short: str
    unit: str
    better: Literal["lower", "higher"]
    factor: float = 1.0


METRICS = {
    metric.key: metric
    for metric in (
        Metric("ttft_ms", "Time to first token", "TTFT", "ms", "lower"),
        Metric("itl_ms", "Inter-token latency", "ITL", "ms", "lower"),
        Metric("latency_ms", "Request latency", "latency", "ms", "lower"),
        Metric("good_share", "Good requests", "good", "%", "higher", 100.0),
    )
}
"""All metrics in display order; `LATENCIES`, measured on each request, are columns of its table."""

LATENCIES = tuple(key for key in METRICS if key != "good_share")

PERCENTILES = {"p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99}
STATISTICS = ("mean", *PERCENTILES, "min", "max", "std")
OVERLOAD = (503, 529)  # Dynamo's frontend to 1.2, and from 1.3 on
COMPARED = ("mean", "p50", "p90", "p95", "p99")


def served(table: pd.DataFrame) -> np.ndarray:
    """Return which rows have an answer: a bool array, true where ``error`` is null."""
    return table["error"].isna().to_numpy()


def overloaded(table: pd.DataFrame) -> np.ndarray:
    """Return which rows were rejected for overload: a bool array.

    An error begins with the HTTP status, as AIPerf's records have it.
    """
    status = table["error"].astype("string").str.split(n=1).str[0]
    return status.isin([str(code) for code in OVERLOAD]).to_numpy(bool)


def good(table: pd.DataFrame, slo: Slo, one_token: bool = False) -> np.ndarray:
    """Return which rows are good: served, with TTFT and ITL defined and within the SLO.

    Parameters
    ----------
    table : DataFrame
        Columns ``error``, ``ttft_ms``, ``itl_ms`` and, for `one_token`, ``output_tokens``.
    slo : Slo
        The two bounds in milliseconds; a value equal to its bound is within.
    one_token : bool
        Whether a one-token answer, which has no ITL, is judged by its TTFT alone. AIPerf's rule
        is False: it is never good.

    Returns
    -------
    ndarray of bool, shape (len(table),)
    """
    ttft_ok = (table["ttft_ms"] <= slo.ttft_ms).to_numpy(bool, na_value=False)
    itl_ok = (table["itl_ms"] <= slo.itl_ms).to_numpy(bool, na_value=False)
    if one_token:
        itl_ok |= (table["output_tokens"] == 1).to_numpy(bool, na_value=False)
    return served(table) & ttft_ok & itl_ok


def streamed(table: pd.DataFrame) -> bool:
    """Return whether answers came token by token, so that TTFT and ITL were measured."""
    answered = served(table)
    return not answered.any() or bool(table["ttft_ms"][answered].notna().any())


def unlike(counted: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return which prompts are not those expected, by their lengths; a mask along both.

    A chat template and a second tokenizer change a length by up to `SLACK_TOKENS` and `SLACK`.
    """
    return np.abs(counted - expected) > SLACK_TOKENS + SLACK * expected


def percentile(values: np.ndarray, q: float | Sequence[float]) -> Any:
    r"""Return percentiles of the defined values by linear interpolation, as AIPerf has them.

    Parameters
    ----------
    values : array_like
        NaN means undefined and is left out.
    q : float or sequence of float
        From 0 to 100.

    Returns
    -------
    float or ndarray
        NaN where no value is defined.

    Notes
    -----
    With :math:`x_0 \le \dots \le x_{n-1}` and :math:`h = (n - 1) q / 100` it is
    :math:`x_{\lfloor h \rfloor} + (h - \lfloor h \rfloor)
    (x_{\lfloor h \rfloor + 1} - x_{\lfloor h \rfloor})`, type 7 of [1]_.

    References
    ----------
    .. [1] R. J. Hyndman and Y. Fan, Sample quantiles in statistical packages,
       The American Statistician 50:4 (1996), DOI 10.2307/2684934.

    Examples
    --------
    >>> float(percentile([1.0, 2.0, 4.0], 75))
    3.0
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if values.size:
        return np.percentile(values, q)
    return np.full(np.shape(q), np.nan)[()]


def statistics(values: np.ndarray) -> dict[str, float | None]:
    """Return `STATISTICS` of the defined values; all None where there are none.

    Notes
    -----
    The standard deviation divides by n, as AIPerf's does
    (``aiperf/metrics/metric_dicts.py``, 0.13.0).
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if not values.size:
        return dict.fromkeys(STATISTICS)
    percentiles = zip(PERCENTILES, np.percentile(values, [*PERCENTILES.values()]), strict=True)
    result = {"mean": values.mean(), **dict(percentiles)}
    result |= {"min": values.min(), "max": values.max(), "std": values.std()}
    return {name: float(value) for name, value in result.items()}


def duration_s(table: pd.DataFrame) -> float | None:
    """Return seconds from the first send to the last end; None if nothing was served.

    Notes
    -----
    A row is sent at ``arrival_ms`` + ``send_lag_ms`` (at ``arrival_ms`` where the lag is not
    known) and ends ``latency_ms`` later. Failed rows were sent but have no end that counts.
    """
    sent_ms = (table["arrival_ms"] + table["send_lag_ms"].fillna(0.0)).to_numpy(float)
    end_ms = sent_ms + table["latency_ms"].to_numpy(float)
    end_ms = end_ms[served(table) & ~np.isnan(end_ms)]
    return float(end_ms.max() - sent_ms.min()) / 1000 if end_ms.size else None


def cached_share(table: pd.DataFrame) -> float | None:
    """Return the share of prompt tokens served from cache, over served rows where it is known."""
    rows = table[served(table) & table["cached_tokens"].notna().to_numpy()]
    prompt_tokens = int(rows["input_tokens"].sum())
    return int(rows["cached_tokens"].sum()) / prompt_tokens if prompt_tokens else None


def summarize(table: pd.DataFrame, slo: Slo) -> Json:
    """Return the summary of one run, the document of ``kvab summarize --json`` (schema 1).

    Parameters
    ----------
    table : DataFrame
        The requests table, one row a trace row that should have been served; a lost one stands
        with an error.
    slo : Slo
        Bounds of a good request, in milliseconds.

    Returns
    -------
    dict
        Plain numbers; None where a number is undefined, never NaN (the good share too where
        answers were not streamed, see `streamed`). Latency statistics are over
        served rows, ``good.share`` over expected rows, rates over `duration_s`.
    """
    n_good = int(good(table, slo).sum()) if streamed(table) else None
    seconds = duration_s(table)
    rows, expected = table[served(table)], len(table)
    received, output_tokens = len(rows), int(rows["output_tokens"].sum())
    return {
        "schema": SCHEMA,
        "requests": {
            "expected": expected,
            "received": received,
            "errors": expected - received,
            "overload": int(overloaded(table).sum()),
            "one_token": int((rows["output_tokens"] == 1).sum()),
        },
        **{key: statistics(rows[key]) for key in LATENCIES},
        "good": {
            "count": n_good,
            "share": n_good / expected if expected and n_good is not None else None,
            "rps": n_good / seconds if seconds and n_good is not None else None,
            "ttft_ms": float(slo.ttft_ms),
            "itl_ms": float(slo.itl_ms),
        },
        "output_tokens_per_s": output_tokens / seconds if seconds else None,
        "duration_s": seconds,
        "cached_share": cached_share(table),
    }
