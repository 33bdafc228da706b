"""The 2x2: effects with a known answer."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kvab.errors import InputError
from kvab.stats.attribution import ATTRIBUTED, CELLS, attribute

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
def found():
    # routing takes 100 ms aggregated and 300 ms disaggregated; the split adds 50 ms before that
    shifts = {("aggregated", "round-robin"): 0, ("aggregated", "kv"): -100,
              ("disaggregated", "round-robin"): 50, ("disaggregated", "kv"): -250}  # fmt: skip
    good = dict(zip(shifts, (60, 66, 66, 108), strict=True))
    return attribute({c: [requests(shifts[c], good[c])] for c in CELLS}, SLO, **FEW)


def effect(found, metric, statistic):
    rows = found.table.query("metric == @metric and statistic == @statistic")
    return rows.set_index("effect")["value"].to_dict()


def test_main_effects_are_averages_and_the_interaction_is_not_halved(found):
    expected = {"routing": -200.0, "split": -50.0, "interaction": -200.0}
    assert effect(found, "ttft_ms", "mean") == pytest.approx(expected)
    assert effect(found, "ttft_ms", "p90") == pytest.approx(expected)
    shares = {"routing": 0.2, "split": 0.2, "interaction": 0.3}
    assert effect(found, "good_share", "share") == pytest.approx(shares)


def test_the_table_has_every_metric_statistic_and_effect_with_ordered_ends(found):
    assert list(found.table) == ["metric", "statistic", "effect", "value", "ci_low", "ci_high"]
    assert len(found.table) == 3 * (3 * len(ATTRIBUTED) + 1)
    assert (found.table["ci_low"] <= found.table["value"] + 1e-9).all()
    assert (found.table["value"] <= found.table["ci_high"] + 1e-9).all()


def test_a_shift_that_all_pairs_share_has_no_workload_uncertainty(found):
    ttft = found.table.query("metric == 'ttft_ms' and statistic == 'mean'")
    np.testing.assert_allclose(ttft["ci_high"] - ttft["ci_low"], 0, atol=1e-9)


def test_the_two_main_effects_sum_to_the_whole_change(found):
    cells = found.cells.query("metric == 'latency_ms' and statistic == 'mean'")["value"]
    main = effect(found, "latency_ms", "mean")
    assert main["routing"] + main["split"] == pytest.approx(cells.iloc[3] - cells.iloc[0])


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
    found = attribute(cells, SLO, **FEW)
    assert found.table["value"].notna().all()
    assert found.table["ci_low"].isna().all()
