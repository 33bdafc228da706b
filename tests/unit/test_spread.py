"""Bursts spread over their seconds: the clock, the totals of a burst, and the verdicts."""

import numpy as np
import pandas as pd
import pytest

from kvab.stats.robustness import judge
from kvab.study import Slo, load_study
from kvab.study.variants import Variant, tick_ms
from kvab.trace.reading import Trace

STUDY = load_study()


def trace(timestamp_ms):
    size = len(timestamp_ms)
    return Trace(
        name="t", path=None, sha256="0" * 64, synthetic=False, block_tokens=512,
        timestamp_ms=np.array(timestamp_ms, float), input_tokens=np.full(size, 600),
        output_tokens=np.full(size, 9), hash_ids=[(0, 1)] * size,
    )  # fmt: skip


def test_each_burst_is_spread_until_the_next_tick():
    source = trace([0, 0, 0, 3000, 9000, 9000])
    spread = Variant(spread=True).trace(source, 0)
    assert tick_ms(source.timestamp_ms) == 3000
    assert spread.timestamp_ms.tolist() == [0, 1000, 2000, 3000, 9000, 10500]
    assert spread.sha256 == source.sha256


def test_a_seed_decides_who_of_a_burst_is_sent_when():
    source = trace([0] * 8 + [3000])
    spread = {seed: Variant(spread=True).trace(source, seed).timestamp_ms for seed in (0, 1, 2)}
    assert [*spread[0][:8]] == [375.0 * n for n in range(8)]
    assert {tuple(sorted(at_ms)) for at_ms in spread.values()} == {tuple(spread[0])}
    assert len({tuple(at_ms) for at_ms in spread.values()}) == 3


def test_spread_runs_lie_apart_and_depend_on_it():
    variant = Variant(spread=True)
    assert variant.place == "spread"
    assert variant.depends_on() == {"bursts": "spread"}
    assert Variant().depends_on() == {}


def requests(ttft_ms, seed):
    rng = np.random.default_rng(seed)
    rows = 400
    ttft = ttft_ms * rng.lognormal(0, 0.1, rows)
    error = pd.array([None] * rows, dtype="string")
    error[7] = "lost"
    return pd.DataFrame(
        {
            "row": np.arange(rows), "arrival_ms": np.arange(rows) * 300.0, "input_tokens": 600,
            "output_tokens": 50,
            "ttft_ms": ttft, "itl_ms": 17.0 + rng.normal(0, 0.1, rows), "error": error,
            "latency_ms": ttft + 900,
        }
    )  # fmt: skip


def test_the_verdicts_are_those_of_the_requests():
    tables = [requests(3000, 1), requests(1000, 2)]
    settings = STUDY.statistics.model_dump()
    found = judge("other", tables, STUDY.slo, STUDY.margins, **settings).set_index("metric")
    served = [t[t["error"].isna()] for t in tables]
    apart = served[1]["ttft_ms"].mean() - served[0]["ttft_ms"].mean()
    assert found.loc["ttft_ms", "difference"] == pytest.approx(apart, rel=1e-6)
    assert found.loc["ttft_ms", "verdict"] == "better"
    assert found.loc["itl_ms", "verdict"] == "no difference"
    bounds = Slo(ttft_ms=STUDY.slo.ttft_ms, itl_ms=STUDY.slo.itl_ms)
    good = [(t["ttft_ms"] <= bounds.ttft_ms).sum() / 400 for t in served]
    assert found.loc["good_share", "difference"] == pytest.approx(good[1] - good[0])
    assert set(found["choice"]) == {"other"}
