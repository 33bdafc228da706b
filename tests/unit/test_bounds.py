"""A sweep at bounds of one's own: what the tables hold, what is advised, and what is rejected."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kvab.cli import main
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.runs.bounds import Bounds, load_bounds, load_every
from kvab.stats.bootstrap import Design
from kvab.stats.crossings import GOOD_REQUEST, GOOD_TOKEN, at_bounds, curves, good_within
from kvab.study import load_study

STUDY = "recipes/qwen3-32b/study.yaml"
CLUSTER = "simulated-h200"
TTFT_MS, ITL_MS = [500.0, 1000.0, 2000.0], [10.0, 25.0]  # as in conftest
BURST = np.repeat(np.arange(40), 5)


def test_good_requests_are_those_of_the_metric_at_every_two_bounds(made_requests):
    table = made_requests(1)
    counts, tokens = good_within(table, BURST, TTFT_MS, ITL_MS)
    assert 0 < counts[-1, -1].sum() < len(table)
    for n, ttft_ms in enumerate(TTFT_MS):
        for m, itl_ms in enumerate(ITL_MS):
            good = metrics.good(table, metrics.Bounds(ttft_ms, itl_ms))
            assert counts[n, m].tolist() == np.bincount(BURST, good).tolist()
            expected = np.bincount(BURST, good * table["output_tokens"])
            assert tokens[n, m].tolist() == expected.tolist()


def test_shares_at_the_studys_bounds_are_those_of_the_load_curves(made_requests):
    slo = metrics.Bounds(1000.0, 25.0)
    loads = {load: {name: made_requests(seed + int(4 * load), slower)
                    for name, seed, slower in (("a", 1, 1.0), ("b", 2, 0.9))}
             for load in (0.5, 1.0)}  # fmt: skip
    table = pd.concat(
        pd.DataFrame({"configuration": name, "load": load,
                      "burst": np.arange(40), "requests": 5,
                      "good": np.bincount(BURST, metrics.good(of, slo))})
        for load, arms in loads.items() for name, of in arms.items()
    )  # fmt: skip
    settings = {"level": 0.95, "resamples": 300, "seed": 7}
    swept = curves(table, ["a", "b"], arms=("a", "b"), targets=[0.3], **settings)
    expected = swept.shares.set_index(["configuration", "load"])
    design = Design(40, swept.block_bursts, **settings)
    for load, arms in loads.items():
        bounds, best, _ = at_bounds(arms, {"a": 1, "b": 1}, BURST, TTFT_MS, ITL_MS, design)
        rows = bounds.query("ttft_ms == 1000 and itl_ms == 25").set_index("configuration")
        for name in arms:
            row = expected.loc[name, load]
            got = [rows.loc[name, "good"] / 200, rows.loc[name, "low"], rows.loc[name, "high"]]
            assert got == pytest.approx([*row[["share", "low", "high"]]], abs=1e-6)
        lead = best.set_index(["ttft_ms", "itl_ms"]).loc[tuple(slo)]
        shares = expected["share"].xs(load, level="load").sort_values(ascending=False)
        assert [lead["best"], lead["next"]] == [*shares.index]
        assert lead["margin"] == pytest.approx(shares.iloc[0] - shares.iloc[1])
        assert lead["low"] < lead["margin"] < lead["high"]


def test_equal_shares_stand_in_the_order_of_the_study_and_lead_by_nothing(made_requests):
    same, hours = made_requests(3), {"a": 16.0, "b": 16.0}
    design = Design(40, 2, 0.95, 100)
    for of in at_bounds({"a": same, "b": same}, hours, BURST, TTFT_MS, ITL_MS, design)[1:]:
        assert {*of["best"]} == {"a"} and {*of["next"]} == {"b"}
        assert (of[["margin", "low", "high"]] == 0).all(axis=None)


def test_who_costs_least_is_who_spends_least_on_a_good_request_or_token(made_requests):
    tables = {"a": made_requests(3), "b": made_requests(3, 1.3)}
    hours, design = {"a": 24.0, "b": 16.0}, Design(40, 2, 0.95, 100)
    bounds, best, costs = at_bounds(tables, hours, BURST, TTFT_MS, ITL_MS, design)
    counts = bounds.set_index(["ttft_ms", "itl_ms", "configuration"]).sort_index()
    columns = {GOOD_REQUEST: "good", GOOD_TOKEN: "good_output_tokens"}
    assert {*costs["per"]} == {*columns}
    for row in costs.itertuples():
        of = counts.loc[row.ttft_ms, row.itl_ms][columns[row.per]]
        cost = {name: hours[name] / of[name] if of[name] else np.inf for name in tables}
        assert cost[row.best] <= cost[row.next]
        saved = 0 if np.isinf(cost[row.best]) else 1 - cost[row.best] / cost[row.next]
        assert row.margin == pytest.approx(saved) and row.low <= row.margin <= row.high
    assert {*best["best"]} == {"a"} and "b" in {*costs["best"]}  # fewer good ones, but cheaper


def test_an_advice_has_the_numbers_of_the_tables(judged):
    advice = judged.at(1000, 25, 1)
    rows = judged.table.query("load == 1 and ttft_ms == 1000 and itl_ms == 25")
    rows = rows.set_index("configuration")
    cells = {cell.configuration: cell for cell in judged.swept.load_cells if cell.load == 1}
    assert {*advice.options} == {*rows.index} == {*judged.swept.arms}
    for name, option in advice.options.items():
        good = rows.loc[name, "good"]
        assert option.good_share == good / 200
        hours = cells[name].gpus * cells[name].duration_s / 3600
        assert option.gpu_hours_per_1000_good == pytest.approx(1000 * hours / good)
        tokens = rows.loc[name, "good_output_tokens"]
        assert option.dollars_per_million_output_tokens == pytest.approx(3e6 * hours / tokens)
    shares = [option.good_share for option in advice.options.values()]
    assert shares == sorted(shares, reverse=True)
    assert advice.configuration == next(iter(advice.options)) == "disagg-kv-router"
    assert advice.lead["margin"] == pytest.approx(shares[0] - shares[1])


def test_what_changes_an_advice_is_the_nearest_point_where_another_leads(judged):
    advice = judged.at(1000, 25, 1)
    assert advice.changes_if
    leads = judged.best.set_index(["load", "ttft_ms", "itl_ms"])
    for change in advice.changes_if:
        here = {"load": 1.0, "ttft_ms": 1000.0, "itl_ms": 25.0}
        values = judged.grid[change.key]
        at, start = values.index(change.value), values.index(here[change.key])
        lead = leads.loc[tuple({**here, change.key: change.value}.values())]
        assert (lead["best"], lead["margin"]) == (change.configuration, change.margin)
        assert change.configuration != advice.configuration
        between = values[min(at, start) + 1 : max(at, start)]
        for value in between:
            lead = leads.loc[tuple({**here, change.key: value}.values())]
            assert lead["best"] == advice.configuration or lead["margin"] == 0


def test_a_bound_between_two_counts_as_the_stricter(judged):
    between, at = judged.at(1999, 24.9, 1), judged.at(1000, 10, 1)
    assert between.judged == at.asked == (1000, 10)
    assert between.options == at.options


@pytest.mark.parametrize(
    ("asked", "key", "expected"),
    [
        ((1000, 25, 1.1), "--load", "a load that was swept (0.125, 0.25, "),
        ((1000, 25, float("nan")), "--load", "a load that was swept"),
        ((499, 25, 1), "--ttft-ms", "milliseconds from 500 to 2000"),
        ((2001, 25, 1), "--ttft-ms", "milliseconds from 500 to 2000"),
        ((1000, 9.9, 1), "--itl-ms", "milliseconds from 10 to 25"),
        ((1000, float("nan"), 1), "--itl-ms", "milliseconds from 10 to 25"),
    ],
)
def test_what_was_not_swept_is_rejected(judged, asked, key, expected):
    with pytest.raises(InputError) as caught:
        judged.at(*asked)
    assert caught.value.key == key and caught.value.expected.startswith(expected)


def test_where_none_keeps_any_request_good_none_is_advised(judged):
    none = judged.table.assign(good=0, low=0.0, high=0.0, good_output_tokens=0)
    best = judged.best.assign(margin=0.0, low=0.0, high=0.0)
    advice = Bounds(judged.swept, none, best, judged.costs).at(1000, 25, 1)
    assert advice.configuration is None and advice.within_noise and not advice.changes_if
    assert {option.gpu_hours_per_1000_good for option in advice.options.values()} == {None}


def asked(*more, ttft="1500", itl="25", load="1"):
    """The exit code of the command."""
    bounds = ["--ttft-ms", ttft, "--itl-ms", itl, "--load", load]
    with pytest.raises(SystemExit) as stop:
        main(["advise", *bounds, *more])
    return stop.value.code


def test_the_command_prints_what_the_tables_say(judged, checkout, capsys):
    judged.swept.write(checkout / "runs")
    assert load_bounds(STUDY, CLUSTER, "runs").swept.own
    assert asked("--json") == 0
    document = json.loads(capsys.readouterr().out)
    advice = judged.at(1500, 25, 1)
    assert document == json.loads(json.dumps(advice.to_json()))
    assert [*document] == ["schema", "workload", "cluster", "load", "ttft_ms", "itl_ms",
                           "judged_at", "configurations", "recommendation"]  # fmt: skip
    assert document["judged_at"] == {"ttft_ms": 1000, "itl_ms": 25}
    assert asked() == 0
    lines = capsys.readouterr().out.splitlines()
    assert "judged at 1,000 and 25 ms, the next stricter ones" in lines[2]
    assert lines[3].endswith("3.00 dollars an hour for each GPU, as study.yaml assumes")
    for line, (name, option) in zip(lines[4:8], advice.options.items(), strict=True):
        assert line.startswith(judged.swept.arms[name].label)
        assert f"{100 * option.good_share:.1f} % good" in line
    assert lines[8].startswith("advice ")
    assert len(lines) == 9 + len(advice.changes_if)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"load": "1.1"}, "--load: expected a load that was swept (0.125, "),
        ({"ttft": "100"}, "--ttft-ms: expected milliseconds from 500 to 2000, got 100"),
        ({"itl": "nan"}, "--itl-ms: expected milliseconds from 10 to 25, got nan"),
    ],
)
def test_what_cannot_be_advised_is_one_line(judged, checkout, capsys, options, said):
    judged.swept.write(checkout / "runs")
    assert asked(**options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"kvab: {said}") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("bounds", "bounds of the sweep"), ("best", "best of"), ("costs", "costs of"), ("", "cells")],
)
def test_a_sweep_short_of_a_cell_is_one_line(judged, checkout, capsys, lacking, said):
    swept = judged.swept
    if lacking:
        short = replace(swept, **{lacking: getattr(swept, lacking).iloc[1:]})
    else:
        cells = [cell for cell in swept.summary.cells if cell is not swept.load_cells[0]]
        short = replace(swept, summary=swept.summary.model_copy(update={"cells": cells}))
    short.write(checkout / "runs")
    assert asked() == 2
    error = capsys.readouterr().err
    assert said in error and "run `kvab capacity` again" in error and error.count("\n") == 1


def test_without_tables_of_bounds_the_command_says_how_to_make_them(judged, checkout, capsys):
    for swept in (None, replace(judged.swept, bounds=None, best=None, costs=None)):
        if swept:
            swept.write(checkout / "runs")
        assert load_bounds(STUDY, CLUSTER, "runs") is None
        assert asked() == 2
        error = capsys.readouterr().err
        said = "no sweep of qwen3-32b was judged at bounds yet; run `kvab capacity --workload "
        assert f"{said}conversation`" in error
        assert error.count("\n") == 1
    assert asked("--workload", "nothing") == 2
    assert "no workload 'nothing'" in capsys.readouterr().err
    assert asked("--workload", "toolagent") == 2
    assert "no sweep of qwen3-32b+toolagent" in capsys.readouterr().err


def test_the_study_declares_a_grid_with_its_own_bounds():
    study = load_study(STUDY)
    assert study.slo.ttft_ms in study.capacity.ttft_ms
    assert study.slo.itl_ms in study.capacity.itl_ms


def test_the_page_counts_who_leads_and_its_data_stay_small():
    from kvab.pages import bounds as page

    every = load_every(STUDY, CLUSTER, "book/published")
    judged = every[0]
    for what, leads in ((page.MOST_GOOD, judged.leads),
                        (page.CHEAPEST_TOKENS, judged.cheapest(GOOD_TOKEN))):  # fmt: skip
        said = page.lead(judged, 1.0, leads, what)
        leads = leads.loc[1.0]
        assert said.startswith(f"Who {what}, of {len(leads)} pairs of bounds at load 1: ")
        for name, count in leads[leads["margin"] > 0]["best"].value_counts().items():
            assert f"{judged.swept.arms[name].label} at {count} (" in said
    assert f"{100 * leads['margin'].median():.1f} % less" in said
    cheapest, share = judged.cheapest(GOOD_REQUEST), judged.leads
    both = (cheapest["margin"] > 0) & (share["margin"] > 0)
    same = (cheapest["best"] == share["best"])[both].mean()
    assert page.same_leader(judged).startswith(f"At {100 * same:.1f} % of all points with a lead")
    data = page.explorer(every).data
    assert [of["workload"] for of in data] == ["conversation", "mooncake-synthetic"]
    assert len(json.dumps(data, separators=(",", ":"))) < 400_000
    assert page.explorer([]) is None and "kvab capacity" in page.provenance(None)
    assert "Dollars assume 3 an hour for each GPU" in page.provenance(judged)
