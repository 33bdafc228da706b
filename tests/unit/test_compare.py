"""The paired comparison: pairing, verdicts, the JSON document and what cannot be said."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from kvab.errors import InputError
from kvab.stats.bootstrap import Design, Replicates, Sample, block_bursts, replicate
from kvab.stats.compare import compare
from kvab.stats.contrasts import Estimate, pair, verdicts
from kvab.stats.effects import effect_by_groups, noise, quantile_differences, terciles

SLO = SimpleNamespace(ttft_ms=2000.0, itl_ms=25.0)
FEW = {"resamples": 100, "seed": 3}
MARGINS = {"ttft_ms": 0.05, "itl_ms": 0.05, "latency_ms": 0.05, "good_share": 0.01}


def requests(rows=300, faster=1.0, seed=0, arm=0):
    """A requests table of bursts of three rows, 3 s apart; ``faster`` divides every TTFT."""
    shape, noise = np.random.default_rng(seed), np.random.default_rng([seed, arm, 1])
    output_tokens = shape.integers(1, 60, rows)
    ttft_ms = shape.lognormal(7, 0.8, rows) * noise.lognormal(0, 0.2, rows) / faster
    itl_ms = np.where(output_tokens > 1, 15 + noise.exponential(5, rows), np.nan)
    return pd.DataFrame(
        {
            "row": np.arange(rows, dtype=np.int32),
            "arrival_ms": 3000.0 * (np.arange(rows) // 3),
            "input_tokens": shape.integers(100, 9000, rows).astype(np.int32),
            "output_tokens": output_tokens.astype(np.int32),
            "ttft_ms": ttft_ms,
            "itl_ms": itl_ms,
            "latency_ms": ttft_ms + np.nan_to_num(itl_ms) * (output_tokens - 1),
            "send_lag_ms": np.zeros(rows),
            "error": pd.array([None] * rows, dtype="string"),
        }
    )


def failed(table, rows):
    """The table with some rows failed."""
    table = table.copy()
    table.loc[rows, ["ttft_ms", "itl_ms", "latency_ms"]] = np.nan
    table.loc[rows, "error"] = "HTTP 500"
    return table


@pytest.fixture(scope="module")
def result():
    return compare([requests(arm=0)], [requests(arm=1, faster=2.0)], SLO, margins=MARGINS, **FEW)


def test_the_document_has_the_keys_of_the_contract_and_no_nan(result):
    document = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert document["schema"] == 1
    assert document["pairs"] == 300
    for key in ("ttft_ms", "itl_ms", "latency_ms"):
        assert list(document["metrics"][key]) == ["mean", "p50", "p90", "p95", "p99"]
        assert isinstance(document["faster_share"][key], float)
        assert len(document["faster_share_ci"][key]) == 2
        median, pseudo = (
            document[f"{kind}_median_difference"][key] for kind in ("paired", "pseudo")
        )
        assert median["value"] == pseudo["value"] and median["median"] != pseudo["value"]
        assert set(pseudo) == {"value", "ci_low", "ci_high"}
    entry = {
        "baseline", "comparison", "difference", "ratio", "ci_low", "ci_high",
        "ratio_ci_low", "ratio_ci_high",
    }  # fmt: skip
    assert set(document["good_share"]) == set(document["metrics"]["itl_ms"]["p99"]) == entry
    assert set(document["verdict"]) == {"ttft_ms", "itl_ms", "latency_ms", "good_share"}
    method = {"name", "level", "resamples", "seed", "block_bursts", "block_s", "bursts", "blocks"}
    assert set(document["method"]) == method


def test_estimates_are_those_of_numpy(result):
    baseline, comparison = requests(arm=0), requests(arm=1, faster=2.0)
    p90 = result.ttft.statistics["p90"]
    assert p90.baseline == np.percentile(baseline["ttft_ms"], 90)
    assert p90.difference.value == np.percentile(comparison["ttft_ms"], 90) - p90.baseline
    assert p90.ratio.value == pytest.approx(p90.comparison / p90.baseline, rel=1e-12)
    assert p90.difference.low < p90.difference.value < p90.difference.high
    assert p90.ratio.low < p90.ratio.value < p90.ratio.high
    paired = comparison["ttft_ms"] - baseline["ttft_ms"]
    by_pair = result.ttft.paired
    assert by_pair.faster.value == pytest.approx((paired < 0).mean(), rel=1e-12)
    assert by_pair.median.value == np.median(paired)
    center = by_pair.hodges_lehmann
    assert center.low < center.value < center.high


def test_halving_ttft_is_better_and_noise_in_itl_is_no_difference(result):
    assert result.ttft.verdict == "better"
    assert result.good.verdict == "better"
    assert result.itl.verdict in ("no difference", "inconclusive")


def test_the_other_way_round_is_worse_with_the_signs_turned(result):
    back = compare([requests(arm=1, faster=2.0)], [requests(arm=0)], SLO, margins=MARGINS, **FEW)
    assert back.ttft.verdict == "worse"
    there, here = result.ttft.mean.difference, back.ttft.mean.difference
    assert here.value == pytest.approx(-there.value, rel=1e-12)
    assert here.low == pytest.approx(-there.high, rel=1e-9)


def test_an_arm_against_itself_is_no_difference_exactly():
    table = requests()
    same = compare([table, table], [table, table], SLO, **FEW)
    assert {of.verdict for of in same.metrics.values()} == {"no difference"}
    mean = same.ttft.mean
    assert (mean.difference, mean.ratio.value) == (Estimate(0, 0, 0), 1)
    assert same.good_table.mcnemar_p == 1.0
    assert same.ttft.run_to_run.mean.high == 0.0


def test_equal_seeds_give_equal_intervals_whatever_the_row_order(result):
    shuffled = requests(arm=0).sample(frac=1, random_state=1)
    again = compare([shuffled], [requests(arm=1, faster=2.0)], SLO, margins=MARGINS, **FEW)
    assert again.to_json() == result.to_json()


def test_failed_rows_count_in_the_good_share_and_in_no_latency():
    baseline = requests(arm=0)
    comparison = failed(requests(arm=0), range(30))
    found = compare([baseline], [comparison], SLO, **FEW)
    good = (baseline["ttft_ms"] <= 2000) & (baseline["itl_ms"] <= 25)
    assert found.good.mean.comparison == pytest.approx(good[30:].sum() / 300, rel=1e-12)
    assert found.ttft.mean.comparison == pytest.approx(baseline["ttft_ms"][30:].mean(), rel=1e-12)
    assert found.ttft.paired.hodges_lehmann.value == 0.0
    assert found.good_table.only_baseline == good[:30].sum()
    assert found.good_table.mcnemar_p == pytest.approx(2 * 0.5 ** good[:30].sum(), rel=1e-12)
    assert sum(v for k, v in asdict(found.good_table).items() if k != "mcnemar_p") == 300


def test_an_arm_without_an_answer_leaves_the_good_share_to_compare():
    found = compare([requests()], [failed(requests(), range(300))], SLO, margins=MARGINS, **FEW)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["metrics"]["ttft_ms"]["mean"]["difference"] is None
    assert document["faster_share"]["ttft_ms"] is None
    assert np.isnan([found.ttft.mean.difference.value, found.ttft.paired.faster.value]).all()
    assert found.ttft.verdict == "inconclusive"
    assert found.good.verdict == "worse"
    assert "comparison served no request" in found.notes[0]


def test_different_numbers_of_repeats_are_cut_and_said():
    found = compare([requests()] * 3, [requests(arm=1)] * 2, SLO, **FEW)
    assert found.pairs == 600
    assert "3 repeats and the comparison 2" in found.notes[0]
    assert len(found.ttft.run_to_run.differences) == 2


def test_repeats_do_not_narrow_the_workload_interval():
    baseline, comparison = requests(arm=0), requests(arm=1)
    one = compare([baseline], [comparison], SLO, **FEW).ttft.mean.difference
    three = compare([baseline] * 3, [comparison] * 3, SLO, **FEW).ttft.mean.difference
    assert three.low == pytest.approx(one.low, rel=1e-9)


def test_one_repeat_leaves_run_to_run_unknown(result):
    assert np.isnan(result.ttft.run_to_run.mean.low)
    assert result.to_json()["run_to_run"]["ttft_ms"]["ci_low"] is None
    assert "at least two" in result.ttft.run_to_run.reason
    assert any("One repeat" in note for note in result.notes)


def test_run_to_run_is_students_t_over_the_repeats():
    tables = [[requests(arm=arm + 10 * repeat) for repeat in range(3)] for arm in (0, 1)]
    found = compare(*tables, SLO, **FEW).ttft.run_to_run
    apart = np.array(found.differences)
    half = 4.302652729749462 * apart.std(ddof=1) / np.sqrt(3)  # t(0.975, 2), scipy 1.17
    assert found.mean.high - found.mean.value == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(("rows", "bursts"), [(3, "1 burst"), (6, "2 bursts")])
def test_too_few_bursts_give_estimates_without_intervals(rows, bursts):
    found = compare([requests(rows)], [requests(rows, arm=1)], SLO, margins=MARGINS, **FEW)
    mean = found.ttft.mean
    assert np.isfinite(mean.difference.value)
    assert np.isnan([mean.difference.low, mean.difference.high]).all()
    assert {of.verdict for of in found.metrics.values()} <= {"inconclusive"}
    assert any(f"{bursts} in blocks of 1" in note for note in found.notes)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["metrics"]["ttft_ms"]["mean"]["ci_low"] is None


def test_blocks_too_long_for_an_interval_are_said(monkeypatch):
    monkeypatch.setattr("kvab.stats.bootstrap.block_bursts", lambda influences: 60)
    found = compare([requests()], [requests(arm=1)], SLO, **FEW)
    assert np.isnan(found.good.mean.difference.low)
    assert any("100 bursts in blocks of 60" in note for note in found.notes)


def changed(column, row, value):
    table = requests()
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (changed("row", 7, 6), r"comparison, repeat 1: row 7 is missing \(rows that differ: 1\)"),
        (changed("input_tokens", 7, 9000), "comparison, repeat 1: row 7 has input_tokens 9000"),
        (changed("arrival_ms", 7, 1.0), "comparison, repeat 1: row 7 has arrival_ms 1"),
        (
            requests().iloc[:200],
            r"comparison, repeat 1: row 200 is missing \(rows that differ: 100\)",
        ),
        (changed("row", 7, 900), r"comparison, repeat 1: row 7 is missing \(rows that differ: 2\)"),
        (requests().assign(row=range(900, 1200)), "no trace row in common with baseline"),
        (requests().iloc[:0], "comparison, repeat 1: has no trace row in common with baseline"),
    ],
)
def test_arms_that_cannot_be_paired_are_refused_by_name(comparison, message):
    with pytest.raises(InputError, match=message) as refused:
        pair([requests()], [comparison])
    assert "\n" not in str(refused.value)


def test_an_arm_without_runs_is_refused():
    with pytest.raises(InputError, match="comparison: expected at least one run"):
        pair([requests()], [])


def test_a_second_repeat_of_another_slice_is_refused():
    with pytest.raises(InputError, match="baseline, repeat 2: row 299 is missing"):
        pair([requests(), requests().iloc[:299]], [requests(), requests()])


def judged(value, error, baseline=100.0):
    """Two arms whose difference has a known standard error, 1,000 blocks."""
    design = Design(bursts=1000, block_bursts=1)
    draws = np.zeros((2, 2, 1))
    draws[:, 1, 0] = value + error / design.inflation * np.array([-1.0, 1.0]) / np.sqrt(2)
    return Replicates(np.array([[baseline], [baseline + value]]), draws, design)


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [
        (-20.0, 1.0, "better"),
        (20.0, 1.0, "worse"),
        (0.0, 1.0, "no difference"),
        (4.0, 0.1, "no difference"),  # different from zero, yet within the margin
        (4.0, 1.0, "inconclusive"),  # different from zero, may matter or not
        (7.0, 1.0, "worse"),  # the interval reaches the margin, the estimate is beyond it
        (20.0, 15.0, "inconclusive"),
        (0.0, 9.0, "inconclusive"),
        (np.nan, 1.0, "inconclusive"),
    ],
)
def test_the_verdict_rule(value, error, verdict):
    found = verdicts({"ttft_ms": judged(value, error)}, {"ttft_ms": 0.05})
    assert found["ttft_ms"].verdict == verdict
    assert found["ttft_ms"].margin == 5.0


def test_more_good_requests_are_better_and_its_margin_is_absolute():
    found = verdicts({"good_share": judged(0.05, 0.01, 0.5)}, {"good_share": 0.01})
    assert found["good_share"].margin == pytest.approx(0.01)
    assert found["good_share"].verdict == "better"


def test_holm_over_the_family_can_turn_a_verdict():
    alone = {"ttft_ms": judged(-22.0, 10.0)}
    others = {key: judged(0.0, 10.0) for key in ("itl_ms", "latency_ms")}
    assert verdicts(alone, {})["ttft_ms"].verdict == "better"
    assert verdicts(alone | others, {})["ttft_ms"].verdict == "inconclusive"


def test_quantile_differences_lie_inside_their_interval_and_that_inside_the_band():
    pairs = pair([requests(arm=0)], [requests(arm=1, faster=2.0)])
    curve = quantile_differences(pairs, "ttft_ms", block_bursts=4, **FEW)
    assert list(curve.columns) == [
        "q", "baseline", "comparison", "difference", "ci_low", "ci_high", "band_low", "band_high",
    ]  # fmt: skip
    assert curve["q"].iloc[[0, -1]].tolist() == [0.01, 0.99]
    ordered = curve[["band_low", "ci_low", "difference", "ci_high", "band_high"]].to_numpy()
    assert (np.diff(ordered, axis=1) >= 0).all()
    assert curve["baseline"].iloc[49] == np.percentile(requests(arm=0)["ttft_ms"], 50)


def test_terciles_are_labelled_by_their_range():
    found = terciles(pd.Series([5000, 10, 700, 20, 6000, 800], index=range(10, 16)))
    names = ["10 to 20 tokens", "700 to 800 tokens", "5,000 to 6,000 tokens"]
    assert [*found.cat.categories] == names
    assert found.loc[12] == names[1]
    assert found.cat.ordered


def test_terciles_of_mostly_equal_values_are_fewer():
    few = terciles(pd.Series([0, 0, 0, 0, 0, 512]))
    assert [*few.cat.categories] == ["0 tokens", "512 tokens"]


def test_effects_by_group_recover_a_difference_that_one_group_has():
    baseline, comparison = requests(arm=0), requests(arm=0)
    long = baseline["input_tokens"] > baseline["input_tokens"].quantile(2 / 3)
    comparison.loc[long, "ttft_ms"] -= 100.0
    workload = baseline[["row", "arrival_ms", "input_tokens"]].assign(reusable_tokens=0)
    found = effect_by_groups([baseline], [comparison], workload, SLO, **FEW)
    by_prompt = found[found["by"] == "prompt"].reset_index(drop=True)
    assert by_prompt.loc[2, "ttft_ms_difference"] == pytest.approx(-100.0)
    assert by_prompt.loc[2, "ttft_ms_faster_share"] == 1.0
    assert by_prompt.loc[0, "ttft_ms_difference"] == 0.0
    assert by_prompt.loc[0, "good_share_ci_high"] == 0.0
    assert (found.groupby("by")["pairs"].sum() == 300).all()
    assert [*found["by"].unique()] == ["prompt", "reusable prefix"]


def test_noise_is_that_of_two_replays_which_differ_most():
    found = noise(np.array([4.0, 1.0, 3.0, 2.0]), 0.95)
    assert (found.replays, found.largest) == (4, 3.0)
    deviation = np.std([4.0, 1.0, 3.0, 2.0], ddof=1)
    assert found.detectable == pytest.approx(
        (student.ppf(0.975, 3) + student.ppf(0.8, 3)) * 2**0.5 * deviation
    )


def test_the_noise_of_one_replay_is_unknown():
    found = noise(np.array([4.0]), 0.95)
    assert found.replays == 1 and np.isnan(found.largest) and np.isnan(found.detectable)


def test_a_draw_weighs_every_burst_and_seeds_repeat():
    design = Design(bursts=50, block_bursts=5, resamples=30, seed=11)
    first, second = (np.concatenate([*design.weights()]) for _ in range(2))
    assert first.shape == (30, 50)
    assert (first.sum(axis=1) == 50).all()
    assert (first == second).all()


@pytest.mark.parametrize("good", [0, 3, 300, 597, 600])
def test_the_interval_of_a_share_stays_within_0_and_1(good):
    of_burst = np.zeros(200)
    of_burst[: good // 3] = 3
    design = Design(bursts=200, block_bursts=5, resamples=200, seed=1)
    share = replicate(design, lambda weights: weights @ of_burst / (3 * weights.sum(axis=1)))
    low, high = share.share_interval
    assert 0 <= low <= share.value <= high <= 1
    if good in (0, 600):
        assert low == share.value == high  # none of the resamples says otherwise
    else:
        assert 0 < low < high < 1
    if good == 300:  # far from the ends it is the interval of any mean
        np.testing.assert_allclose([low, high], share.interval, atol=0.02)
    few = replicate(Design(200, 150, resamples=20), lambda w: w @ of_burst / (3 * w.sum(axis=1)))
    assert np.isnan(few.share_interval).all()


def test_a_constant_series_needs_no_blocks():
    assert block_bursts(np.ones((100, 2))) == 1
    assert block_bursts(np.random.default_rng(1).normal(size=(5, 1))) == 1


def test_influences_sum_to_zero():
    sample = Sample.of(np.array([1.0, 5.0, np.nan, 9.0]), np.array([0, 0, 1, 2]), 3)
    assert sample.influences().tolist() == [-4.0, 0.0, 4.0]
    assert replicate(Design(3, 1, resamples=5), lambda w: w @ sample.counts).value == 3
