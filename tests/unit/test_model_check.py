"""The model check: errors of a simulation against live runs, from the published ones."""

from dataclasses import replace

import pandas as pd
import pytest

from kvab.pages import model_check
from kvab.pages.model_check import FILE, PAIRS, SENT, Check, load_check
from kvab.requests import metrics

STUDY = "recipes/qwen3-32b/study.yaml"


@pytest.fixture(scope="module")
def check():
    found = load_check(STUDY, "simulated-h200", "book/published")
    assert found is not None and not found.own
    return found


def test_both_main_configurations_were_run_live_for_the_whole_hour(check):
    study = check.live.study
    assert check.live.runs.keys() >= {study.baseline, study.comparison}
    for name in check.live.runs:
        table = check.live.tables(name)[0]
        assert len(table) == study.trace.rows
        assert table["error"].isna().all()
        assert (table["output_tokens"] == table["requested_output_tokens"]).all()


def test_live_prompts_are_those_of_the_trace(check):
    prompts = check.live.workload.table.set_index("row")["input_tokens"]
    for name in check.live.runs:
        table = check.live.tables(name)[0]
        assert (table["input_tokens"].to_numpy() == prompts.loc[table["row"]].to_numpy()).all()


def test_the_statistics_kept_of_the_file_order_are_those_of_the_twin(check):
    kept = check.orders[check.orders["order"] == FILE]
    kept = kept.set_index(["configuration", "metric", "statistic"])["value"]
    for name in check.live.runs:
        twin = metrics.summarize(check.twin(name), check.live.study.slo)
        assert kept[(name, "ttft_ms", "mean")] == pytest.approx(twin["ttft_ms"]["mean"], rel=1e-3)
        assert kept[(name, "good_share", "share")] == pytest.approx(twin["good"]["share"], abs=4e-3)


def test_errors_are_simulated_over_live(check):
    row = check.errors.loc[(check.live.study.comparison, "latency_ms", "mean")]
    live = check.live.tables(check.live.study.comparison)[0]["latency_ms"].mean()
    twin = check.twin(check.live.study.comparison)["latency_ms"].mean()
    assert row["live"] == pytest.approx(live)
    assert row["file"] == pytest.approx(twin / live - 1, rel=1e-2, abs=1e-4)
    assert row["least"] <= row["centre"] <= row["most"]


def test_a_simulation_that_is_right_has_no_error(check):
    live = pd.concat(
        [check.live.tables(name)[0].assign(configuration=name) for name in check.live.runs],
        ignore_index=True,
    )
    orders = []
    for name in check.live.runs:
        found = metrics.summarize(check.live.tables(name)[0], check.live.study.slo)
        cells = [(k, s, found[k][s]) for k in metrics.LATENCIES for s in metrics.COMPARED]
        cells.append(("good_share", "share", found["good"]["share"]))
        orders += [(name, order, *cell) for order in (FILE, SENT) for cell in cells]
    columns = ["configuration", "order", "metric", "statistic", "value"]
    same = Check(check.live, live, pd.DataFrame(orders, columns=columns), check.fits, True)
    assert same.errors["file"].abs().max() < 1e-9
    assert (same.effects["centre"] - same.effects["live"]).abs().max() < 1e-9
    assert same.effects["within"].all()
    assert "5 of 5 live effects lie within what 2 orders" in model_check.effects(same)
    assert "100 %" in model_check.requests_figure(same).caption
    assert (same.agreement["verdict"] == "agree").all()
    assert same.agreement["gap"].abs().max() < 1e-9
    assert (same.good_by_time["live"] == same.good_by_time["twin"]).all()


def test_an_effect_is_off_where_only_one_configuration_is(check):
    """Every order makes both arms' good shares 10 points too high and one arm's TTFT too long."""
    live = check.errors["live"]
    study, rows = check.live.study, []
    for order, late_ms in ((FILE, 100.0), (SENT, 300.0), ("shuffle 1", 200.0)):
        for (name, key, statistic), value in live.items():
            off = 0.1 if key == "good_share" else 0.0
            if (name, key) == (study.baseline, "ttft_ms"):
                off = late_ms
            rows.append((name, order, key, statistic, value + off))
    columns = ["configuration", "order", "metric", "statistic", "value"]
    made_up = Check(check.live, check.twins, pd.DataFrame(rows, columns=columns), check.fits, True)
    made_up.__dict__["errors"] = check.errors
    good, ttft = (made_up.effects.loc[of] for of in (("good_share", "share"), ("ttft_ms", "mean")))
    assert good["centre"] == pytest.approx(good["live"])
    assert ttft["centre"] - ttft["live"] == pytest.approx(-150)  # file order and shuffle
    assert ttft["least"] - ttft["live"] == pytest.approx(-300)
    assert ttft["most"] - ttft["live"] == pytest.approx(-100)
    assert good["within"] and not ttft["within"]
    frame = model_check.effects_table(made_up).frame.set_index("difference of")
    assert frame.loc["mean TTFT [ms]", "3 orders"].startswith(
        f"{ttft['centre']:,.0f}".replace("-", "−")
    )
    assert frame.loc["p90 TTFT [ms]", "gap"] == "–"
    assert (
        "3 of 5 live effects lie within what 3 orders of each burst's requests give. By the [rule "
        "of reproduction](reproduce): differs on time to first token, cannot tell on 3 of 4 metrics"
    ) in model_check.effects(made_up)


def test_repeats_of_live_runs_are_held_against_the_simulated_orders():
    repeated = load_check(STUDY, "simulated-h200", "book/published", repeated=True)
    frame = model_check.repeats_table(repeated).frame.set_index("difference of")
    repeats, spread = repeated.effects_of(repeated.by_repeat), repeated.effects["spread"]
    row = repeats.loc[("good_share", "share")]
    times = [f"{100 * value:+.1f}" for value in row]
    assert frame.loc["good share [points]", f"live, {len(times)} times"] == ", ".join(times)
    assert frame.loc["good share [points]", "sd"] == f"{100 * row.std():.1f}"
    assert (
        frame.loc["good share [points]", "sd, simulated"]
        == f"{100 * spread['good_share', 'share']:.1f}"
    )


def test_what_reading_two_at_once_would_do_is_said(check):
    made_up = replace(check)
    made_up.__dict__["errors"] = check.errors.assign(**{PAIRS: 0.02, "centre": 0.05})
    text = model_check.orders(made_up)
    assert "2.0 % in that of a frontend that reads two prompts at once" in text
    assert "and 5.0 % averaged over orders" in text
    orders, study = check.orders.copy(), check.live.study
    live = check.errors["live"]
    for name, late_ms in ((study.baseline, 40.0), (study.comparison, 10.0)):
        cell = (orders["configuration"] == name) & (orders["order"] == PAIRS)
        cell &= (orders["metric"] == "ttft_ms") & (orders["statistic"] == "mean")
        orders.loc[cell, "value"] = live[name, "ttft_ms", "mean"] + late_ms
    made_up = replace(check, orders=orders)
    made_up.__dict__["errors"] = check.errors
    assert "so 30.0 ms remain unexplained." in model_check.orders(made_up)


def test_nothing_is_said_of_effects_unless_both_arms_were_run_live(check):
    study = check.live.study
    alone = {name: runs for name, runs in check.live.runs.items() if name != study.baseline}
    made_up = replace(check, live=replace(check.live, runs=alone))
    made_up.__dict__["errors"] = check.errors
    assert made_up.effects.empty
    assert model_check.effects(made_up) == ""
    assert made_up.agreement is None and model_check.effects_table(made_up) is None


def test_what_the_live_frontend_took_is_said_with_its_interval(check):
    def recorded(values):
        runs = {}
        for nth, (name, repeats) in enumerate(check.live.runs.items()):
            hosts = [repeats[0].manifest.host | {"frontend_ms_per_1k_tokens": value}
                     for value in values[nth :: len(check.live.runs)]]  # fmt: skip
            manifests = [repeats[0].manifest.model_copy(update={"host": host}) for host in hosts]
            runs[name] = [replace(repeats[0], manifest=manifest) for manifest in manifests]
        return replace(check, live=replace(check.live, runs=runs))

    said = model_check.frontend(recorded([0.9, 1.0, 1.0, 1.1]))
    assert "1.00 ms for each 1,000 prompt tokens" in said
    assert "4 runs; 0.87 to 1.13 from run to run" in said
    assert "did not record" in model_check.frontend(recorded([None] * 4))


def test_the_frontend_is_fitted_on_the_first_half_and_checked_on_the_second(check):
    fits = pd.DataFrame(
        [
            ("any", ms, order, half, far, -far, 0.0, 0.0)
            for ms, by_half in ((0.0, (0.4, 0.1)), (1.0, (0.2, 0.15)), (2.0, (0.3, 0.3)))
            for half, far in enumerate(by_half, 1)
            for order in (FILE, "shuffle 1")
        ],
        columns=check.fits.columns,
    )
    fitted = replace(check, fits=fits)
    assert fitted.frontends.loc[1.0].to_list() == pytest.approx([40, 30])
    said = model_check.frontend(fitted)
    assert "1 ms fits the first half" in said
    assert "30.0 points a configuration, the least of any time being 20.0 (0 ms)" in said
    assert "The profile declares 1 ms: 40.0 points on the first half, 30.0 on the sec" in said


def test_memory_is_said_where_the_runs_recorded_it(check):
    def held(values):
        runs = {}
        for name, repeats in check.live.runs.items():
            host = repeats[0].manifest.host | {"memory_gb": values}
            manifest = repeats[0].manifest.model_copy(update={"host": host})
            runs[name] = [replace(repeats[0], manifest=manifest)]
        return model_check.tokens(replace(check, live=replace(check.live, runs=runs)))

    assert "3.0 GB at most, 2.0 half-way and 2.5 at the end" in held([1.0, 3.0, 2.0, 2.5])
    assert "GB" not in held([])
