"""The 2x2: effects with a known answer, and why made-up requests miss."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kvab.errors import InputError
from kvab.pages.attribution import burst_figure, request_figure, waiting
from kvab.stats.attribution import (
    ATTRIBUTED,
    CELLS,
    ITL_KEPT,
    KEPT,
    KINDS,
    NONE_KEPT,
    TTFT_KEPT,
    attribute,
    misses,
)
from kvab.study import load_study
from kvab.study.manifests import read_configuration
from kvab.study.topology import read_topology

SLO = SimpleNamespace(ttft_ms=2000.0, itl_ms=25.0)
FEW = {"resamples": 100, "seed": 3}


def requests(shift_ms, good_rows=100, rows=120):
    """A table whose every TTFT is shifted and whose first rows alone are good."""
    shape = np.random.default_rng(5)
    itl_ms = np.where(np.arange(rows) < good_rows, 10.0, 40.0)
    ttft_ms = shape.uniform(500, 900, rows) + shift_ms
    return pd.DataFrame(
        {
            "row": np.arange(rows),
            "arrival_ms": 3000.0 * (np.arange(rows) // 3),
            "input_tokens": shape.integers(100, 9000, rows),
            "output_tokens": np.full(rows, 11),
            "ttft_ms": ttft_ms,
            "itl_ms": itl_ms,
            "latency_ms": ttft_ms + 10 * itl_ms,
            "error": pd.array([None] * rows, dtype="string"),
        }
    )


@pytest.fixture(scope="module")
def result():
    # routing takes 100 ms aggregated and 300 ms disaggregated; the split adds 50 ms before that
    shifts = {("aggregated", "round-robin"): 0, ("aggregated", "kv"): -100,
              ("disaggregated", "round-robin"): 50, ("disaggregated", "kv"): -250}  # fmt: skip
    good = dict(zip(shifts, (60, 66, 66, 108), strict=True))
    return attribute({c: [requests(shifts[c], good[c])] for c in CELLS}, SLO, **FEW)


def effect(result, metric, statistic):
    rows = result.query("metric == @metric and statistic == @statistic")
    return rows.set_index("effect")["value"].to_dict()


def test_main_effects_are_averages_and_the_interaction_is_not_halved(result):
    expected = {"routing": -200.0, "split": -50.0, "interaction": -200.0}
    assert effect(result, "ttft_ms", "mean") == pytest.approx(expected)
    assert effect(result, "ttft_ms", "p99") == pytest.approx(expected)
    shares = {"routing": 0.2, "split": 0.2, "interaction": 0.3}
    assert effect(result, "good_share", "share") == pytest.approx(shares)


def test_the_table_has_every_metric_statistic_and_effect_with_ordered_ends(result):
    assert list(result) == ["metric", "statistic", "effect", "value", "ci_low", "ci_high"]
    assert len(result) == 3 * (3 * len(ATTRIBUTED) + 1 + len(KEPT))
    assert (result["ci_low"] <= result["value"] + 1e-9).all()
    assert (result["value"] <= result["ci_high"] + 1e-9).all()


def test_a_shift_that_all_pairs_share_has_no_workload_uncertainty(result):
    ttft = result.query("metric == 'ttft_ms' and statistic == 'mean'")
    np.testing.assert_allclose(ttft["ci_high"] - ttft["ci_low"], 0, atol=1e-9)


def test_the_two_main_effects_sum_to_the_whole_change(result):
    main = effect(result, "ttft_ms", "mean")
    assert main["routing"] + main["split"] == pytest.approx(-250)  # of the last cell and the first


def test_a_missing_cell_is_named():
    cells = {cell: [requests(0)] for cell in CELLS[:3]}
    with pytest.raises(InputError, match=r"no run of disaggregated \+ kv"):
        attribute(cells, SLO, **FEW)


def test_a_cell_of_another_slice_is_named():
    cells = {cell: [requests(0)] for cell in CELLS}
    cells["aggregated", "kv"] = [requests(0).iloc[:-1]]
    with pytest.raises(InputError, match=r"aggregated \+ kv, repeat 1: row 119 is missing"):
        attribute(cells, SLO, **FEW)


def test_few_bursts_leave_effects_without_intervals():
    cells = {cell: [requests(0, rows=6)] for cell in CELLS}
    result = attribute(cells, SLO, **FEW)
    assert result["value"].notna().all()
    assert result["ci_low"].isna().all()


def late(table, rows):
    """The table with the first tokens of some rows late."""
    return table.assign(ttft_ms=np.where(table["row"].isin(rows), 3000.0, table["ttft_ms"]))


def test_the_interaction_of_the_good_share_is_that_of_its_bounds_and_of_missing_both():
    # Of 120 requests: slow tokens (rows from 100 on) only in the aggregated cells, late first
    # tokens only under round-robin, in the disaggregated cell of other rows.
    cells = {
        ("aggregated", "round-robin"): [late(requests(0), range(90, 120))],
        ("aggregated", "kv"): [requests(0)],
        ("disaggregated", "round-robin"): [late(requests(0, good_rows=120), range(30))],
        ("disaggregated", "kv"): [requests(0, good_rows=120)],
    }
    found = attribute(cells, SLO, **FEW).query("metric == 'good_share'")
    effects = found.pivot(index="statistic", columns="effect", values="value")
    assert effects.loc[TTFT_KEPT].to_dict() == pytest.approx(
        {"routing": 0.25, "split": 0.0, "interaction": 0.0}
    )
    assert effects.loc[ITL_KEPT].to_dict() == pytest.approx(
        {"routing": 0.0, "split": 20 / 120, "interaction": 0.0}
    )
    # good: 90, 100, 90 and 120 rows; late and slow: 20, 0, 0 and 0
    assert effects.loc[NONE_KEPT, "interaction"] == pytest.approx(20 / 120)
    assert effects.loc["share", "interaction"] == pytest.approx(20 / 120)
    np.testing.assert_allclose(effects.loc[[*KEPT]].sum(), effects.loc["share"])
    assert (found["ci_low"] <= found["value"] + 1e-9).all()


def test_each_request_misses_for_one_reason():
    table = late(requests(0, good_rows=100), range(90, 110))  # rows from 100 on are slow
    table.loc[:4, ["output_tokens", "itl_ms"]] = [1, np.nan]
    table.loc[3:4, "ttft_ms"] = 3000.0  # one-token answers, late or not
    table.loc[5:7, ["ttft_ms", "itl_ms", "latency_ms"]] = np.nan
    table["error"] = table["error"].mask(table["row"].between(5, 7), "HTTP 500")
    shares = misses({"one": [table], "two": [table, requests(0, good_rows=120)]}, SLO)
    counts = dict(zip(KINDS, (82, 10, 10, 10, 5, 3), strict=True))
    assert (120 * shares.loc["one"]).to_dict() == pytest.approx(counts)
    assert shares.loc["two", "good"] == pytest.approx((82 + 120) / 240)
    np.testing.assert_allclose(shares.sum(axis=1), 1)


# Five requests at two timestamps, on two workers. Of the 6,300 ms that the baseline's wait, 6,200
# pass while the second worker has nothing to read; of the comparison's 50 ms none.
AT_MS = [0, 0, 0, 3000, 3000]
WORKERS = {"baseline": [0, 0, 1, 0, 0], "comparison": [0, 0, 1, 0, 1]}
QUEUE_MS = {"baseline": [0, 2900, 0, 2900, 500], "comparison": [0, 50, 0, 0, 0]}


def evidence(known=True):
    """Runs of baseline and comparison as a page sees them, their parts known or not."""
    study = load_study("recipes/qwen3-32b/study.yaml")
    tables, topologies = {}, {}
    for role in ("baseline", "comparison"):
        name = getattr(study, role)
        topologies[name] = read_topology(read_configuration(study.configuration_folder(name), name))
        queue_ms = np.array(QUEUE_MS[role], float)
        tables[name] = pd.DataFrame({
            "row": range(5), "arrival_ms": np.array(AT_MS, float), "input_tokens": 1000,
            "output_tokens": 11, "ttft_ms": queue_ms + 100, "itl_ms": 10.0,
            "latency_ms": queue_ms + 200, "prefill_worker": WORKERS[role],
            "queue_ms": queue_ms if known else np.nan, "prefill_ms": 100.0, "transfer_ms": 0.0,
            "first_decode_ms": 0.0,
        })  # fmt: skip
    return SimpleNamespace(
        study=study, arms=study.configurations, topologies=topologies, cluster="a-cluster",
        tables=lambda name: [tables[name]], simulated=True, synthetic=False, repeats=1,
        manifest=SimpleNamespace(trace=SimpleNamespace(rows=5, name="a trace"), kind="simulated"),
    )  # fmt: skip


def test_the_request_nearest_the_median_is_followed_through_both():
    panel = request_figure(evidence())
    assert panel.caption.startswith(
        "Under the comparison one typical request gets its first token 500 ms sooner and its last "
        "500 ms sooner."
    )
    assert "row 4, a prompt of 1,000 tokens" in panel.caption
    assert ">500 ms<" in panel.phone and panel.svg.count(" ms<") == 3


def test_the_burst_that_differs_most_is_drawn_and_waiting_beside_an_idle_worker_is_counted():
    panel = burst_figure(evidence())
    assert panel.caption.startswith(
        "Of 3 requests 1 get their first token late under the baseline, 0 under the comparison"
    )
    assert waiting(evidence()) == (
        "Under the baseline 98 % of all waiting passes while another worker has no prompt to read; "
        "under the comparison 0 %."
    )
    assert "In 2 of 2 bursts the comparison has fewer late, in 0 more." in panel.caption
    assert len(panel.csv.decode().splitlines()) == 1 + 6


@pytest.mark.parametrize("figure", [request_figure, burst_figure])
def test_where_the_parts_of_a_time_are_not_recorded_the_page_says_so(figure):
    panel = figure(evidence(known=False))
    assert not panel.svg and panel.caption.startswith("Only a simulation records")
    assert waiting(evidence(known=False)) == ""
