"""The metric registry and the summary of one run."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kvab.requests.metrics import (
    LATENCIES,
    METRICS,
    STATISTICS,
    good,
    overloaded,
    percentile,
    statistics,
    summarize,
)

SLO = SimpleNamespace(ttft_ms=2000.0, itl_ms=25.0)


def table(**columns):
    """A requests table; by default every row is served and good."""
    rows = max((len(values) for values in columns.values()), default=4)
    defaults = {
        "row": np.arange(rows),
        "arrival_ms": 3000.0 * np.arange(rows),
        "input_tokens": [1000] * rows,
        "output_tokens": [11] * rows,
        "requested_output_tokens": [11] * rows,
        "ttft_ms": [500.0] * rows,
        "itl_ms": [20.0] * rows,
        "latency_ms": [700.0] * rows,
        "cached_tokens": pd.array([100] * rows, dtype="Int32"),
        "send_lag_ms": [0.0] * rows,
        "error": pd.array([None] * rows, dtype="string"),
    }
    return pd.DataFrame({**defaults, **columns})


def test_the_registry_is_in_display_order_and_knows_its_directions():
    assert list(METRICS) == ["ttft_ms", "itl_ms", "latency_ms", "good_share"]
    assert LATENCIES == ("ttft_ms", "itl_ms", "latency_ms")
    assert [metric.better for metric in METRICS.values()] == ["lower"] * 3 + ["higher"]


def test_requests_rejected_for_overload_are_counted_by_their_status():
    texts = ["503 Service Unavailable all workers are busy", "529 overloaded", "500 5290 tokens",
             "5031", "no record", None]  # fmt: skip
    shed = table(error=pd.array(texts, dtype="string"))
    assert overloaded(shed).tolist() == [True, True, False, False, False, False]
    assert summarize(shed, SLO)["requests"]["overload"] == 2
    assert summarize(table(), SLO)["requests"]["overload"] == 0


def test_good_includes_the_bounds():
    assert good(table(ttft_ms=[2000.0, 2000.1], itl_ms=[25.0, 25.0]), SLO).tolist() == [True, False]
    assert good(table(ttft_ms=[10.0, 10.0], itl_ms=[25.0, 25.1]), SLO).tolist() == [True, False]


def test_undefined_values_and_failures_are_not_good():
    rows = table(
        ttft_ms=[np.nan, 10.0, 10.0, 10.0],
        itl_ms=[10.0, np.nan, 10.0, 10.0],
        error=pd.array([None, None, "HTTP 500", None], dtype="string"),
    )
    assert good(rows, SLO).tolist() == [False, False, False, True]


def test_one_token_answers_are_good_only_on_request():
    rows = table(output_tokens=[1, 1, 2], itl_ms=[np.nan] * 3, ttft_ms=[10.0, 9999.0, 10.0])
    assert not good(rows, SLO).any()
    assert good(rows, SLO, one_token=True).tolist() == [True, False, False]


def test_percentile_leaves_out_what_is_undefined():
    assert percentile([1.0, np.nan, 3.0], 50) == 2.0
    assert np.isnan(percentile([np.nan], 50))
    assert np.isnan(percentile([], [10, 90])).all()


def test_statistics_divide_the_variance_by_n_as_aiperf_does():
    found = statistics(np.array([1.0, 3.0, np.nan]))
    assert found["std"] == 1.0
    assert list(found) == list(STATISTICS)


def test_statistics_of_one_value_and_of_none():
    assert statistics([5.0])["p99"] == 5.0
    assert set(statistics([np.nan]).values()) == {None}


def test_summary_counts_expected_received_errors_and_one_token():
    rows = table(
        output_tokens=[1, 5, 5, 1],
        error=pd.array([None, None, "lost", "HTTP 500"], dtype="string"),
    )
    summary = summarize(rows, SLO)
    counts = {"expected": 4, "received": 2, "errors": 2, "overload": 0, "one_token": 1}
    assert summary["requests"] == counts
    assert summary["good"]["count"] == 2
    assert summary["good"]["share"] == 0.5


def test_rates_run_from_the_first_send_to_the_last_end():
    rows = table(arrival_ms=[0.0, 3000.0], send_lag_ms=[100.0, np.nan], latency_ms=[500.0, 2100.0])
    summary = summarize(rows, SLO)
    assert summary["duration_s"] == 5.0
    assert summary["good"]["rps"] == 0.4
    assert summary["output_tokens_per_s"] == 4.4


def test_cached_share_is_over_served_rows_where_it_is_known():
    rows = table(
        cached_tokens=pd.array([100, None, 500], dtype="Int32"),
        error=pd.array([None, None, "HTTP 500"], dtype="string"),
    )
    assert summarize(rows, SLO)["cached_share"] == 0.1
    unknown = table(cached_tokens=pd.array([None] * 4, dtype="Int32"))
    assert summarize(unknown, SLO)["cached_share"] is None


@pytest.mark.parametrize("rows", [table().iloc[:0], table(error=["lost"] * 4)])
def test_without_an_answer_the_summary_has_nulls_and_no_nan(rows):
    summary = summarize(rows, SLO)
    assert set(summary["latency_ms"].values()) == {None}
    assert summary["duration_s"] is None
    assert summary["good"]["rps"] is None
    json.dumps(summary, allow_nan=False)


def test_the_summary_has_the_keys_of_schema_1_and_plain_numbers():
    summary = json.loads(json.dumps(summarize(table(), SLO), allow_nan=False))
    assert summary["schema"] == 1
    assert set(summary) == {
        "schema", "requests", *LATENCIES, "good", "output_tokens_per_s", "duration_s",
        "cached_share",
    }  # fmt: skip
    assert set(summary["good"]) == {"count", "share", "rps", "ttft_ms", "itl_ms"}
    assert (summary["good"]["ttft_ms"], summary["good"]["itl_ms"]) == (2000.0, 25.0)
