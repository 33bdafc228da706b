"""Agreement: the stated rule, on runs whose truth is known."""

import numpy as np
import pandas as pd
import pytest

from kvab.errors import InputError
from kvab.requests.metrics import METRICS
from kvab.stats.robustness import agreement
from kvab.study import Slo

SLO = Slo(ttft_ms=2000, itl_ms=25)
MARGINS = {"ttft_ms": 0.05, "itl_ms": 0.05, "latency_ms": 0.05, "good_share": 0.01}
SETTINGS = {"level": 0.95, "resamples": 300, "seed": 1}


def table(ttft_ms, itl_ms=15.0, rows=None):
    rows = np.arange(len(ttft_ms)) if rows is None else rows
    return pd.DataFrame({
        "row": rows.astype("int32"), "arrival_ms": 3000.0 * (rows // 4), "input_tokens": 1000,
        "output_tokens": 101, "ttft_ms": ttft_ms, "itl_ms": itl_ms,
        "latency_ms": ttft_ms + 100 * itl_ms, "error": None,
    })  # fmt: skip


def arms(rows=800, seed=0, gain=0.6, noise=0.02):
    rng = np.random.default_rng(seed)
    base = 1000 * np.exp(np.random.default_rng(99).standard_normal(rows))
    drawn = [base * factor * np.exp(noise * rng.standard_normal(rows)) for factor in (1, gain)]
    return tuple([table(each)] for each in drawn)


def test_the_same_runs_agree_exactly():
    found = agreement(arms(), arms(), SLO, MARGINS, **SETTINGS)
    assert list(found.index) == list(METRICS)
    assert (found["gap"] == 0).all()
    assert (found["verdict"] == "agree").all()


def test_an_effect_of_another_size_differs():
    found = agreement(arms(), arms(seed=1, gain=0.9), SLO, MARGINS, **SETTINGS)
    line = found.loc["ttft_ms"]
    assert line["verdict"] == "differ"
    assert line["gap"] == pytest.approx(line["yours"] - line["published"])
    assert line["gap_low"] > line["margin"]
    assert found.loc["itl_ms", "verdict"] == "agree"


def test_too_little_to_tell_is_said():
    found = agreement(arms(), arms(rows=24, seed=2, noise=0.8), SLO, MARGINS, **SETTINGS)
    assert found.loc["ttft_ms", "verdict"] == "cannot tell"
    assert (found["rows"] == 24).all()


def test_only_common_rows_and_repeats_are_used():
    base, comparison = arms()
    longer = (base * 3, comparison * 3)
    short = tuple([each[0].iloc[:400]] for each in arms(seed=3))
    found = agreement(longer, short, SLO, MARGINS, **SETTINGS)
    assert (found["rows"] == 400).all() and (found["repeats"] == 1).all()
    alone = agreement(tuple([each[0].iloc[:400]] for each in arms()), short, SLO, MARGINS,
                      **SETTINGS)  # fmt: skip
    pd.testing.assert_frame_equal(found, alone)


def test_another_trace_is_refused():
    other = tuple([each[0].assign(input_tokens=7)] for each in arms())
    with pytest.raises(InputError, match="input_tokens"):
        agreement(arms(), other, SLO, MARGINS, **SETTINGS)
