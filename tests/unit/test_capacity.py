"""The capacity sweep: crossings with known answers, what is kept, what is refused, what is said."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from kvab.clusters.base import capacity_path
from kvab.errors import InputError
from kvab.pages import capacity
from kvab.runs import folder as runs
from kvab.runs.replay import plan_job
from kvab.runs.sweep import load_sweep, replay_sweep
from kvab.stats import crossings
from kvab.stats.bootstrap import Design
from kvab.study import Split, load_study
from kvab.study.topology import read_topology
from kvab.study.variants import Variant
from kvab.trace.reading import read_trace

STUDY = "recipes/qwen3-32b/study.yaml"
PUBLISHED = "book/published"
LOADS = np.array([0.5, 1.0, 2.0])
INF = np.inf


@pytest.mark.parametrize(
    ("shares", "known"),
    [
        ([0.9, 0.7, 0.1], [0.75, 0.75]),
        ([0.9, 0.8, 0.1], [1.0, 1.0]),  # exactly kept at a replayed load
        ([0.9, 0.7, 0.82], [2.0, INF]),  # it falls and comes back: kept at the highest load
        ([0.7, 0.9, 0.6], [1 + 1 / 3, 1 + 1 / 3]),  # the largest load counts
        ([0.9, 0.85, 0.8], [2.0, INF]),
        ([0.79, 0.5, 0.1], [0.0, 0.5]),
    ],
)
def test_the_load_that_keeps_a_share(shares, known):
    assert crossings.crossing(LOADS, np.array(shares), 0.8) == pytest.approx(known)


def test_loads_of_many_resamples_are_those_of_each():
    shares = np.random.default_rng(1).random((50, 4, 3))
    together = crossings.crossing(LOADS, shares, 0.5)
    alone = [[crossings.crossing(LOADS, each, 0.5) for each in row] for row in shares]
    assert np.array_equal(together, alone)


def test_a_ratio_of_censored_loads_is_a_bound():
    found, above, below = ([1.0, 1.0], [2.0, INF], [0.0, 0.5])
    pairs = [(found, above), (found, below), (above, above), (below, found)]
    got = [crossings.ratio(np.array(a), np.array(b)).tolist() for a, b in pairs]
    assert got == [[2.0, INF], [0.0, 0.5], [0.0, INF], [2.0, INF]]


def test_an_end_stays_open_where_resamples_lie_beyond_the_loads():
    draws = np.repeat([[1.5, 1.5]], 100, axis=0)
    draws[:10] = 2.0, INF
    low, high = crossings.interval(draws, Design(1000, 10))
    assert (low, high) == (1.5, INF)
    row = pd.Series({"low": 1.5, "high": 1.5, "ci_low": low, "ci_high": high})
    assert capacity.ends_text(row, [0.5, 2.0]) == "1.50 to above 2"
    assert np.isnan(crossings.interval(draws, Design(10, 5))).all()


def test_a_variant_changes_what_it_says_and_nothing_else(small_trace, tmp_path):
    study, trace = load_study(), read_trace(small_trace)
    plain, fast, other = (
        plan_job(study, "simulated-h200", "disagg-kv-router", 1, None, trace, tmp_path, variant)
        for variant in (Variant(), Variant(speed=1.75), Variant(split=Split(prefill=3, decode=5)))
    )
    assert set(fast.depends_on()) - set(plain.depends_on()) == {"arrival speed"}
    assert other.depends_on()["replicas"] == {"prefill": 3, "decode": 5}
    assert fast.trace.sha256 == trace.sha256
    assert fast.trace.arrival_ms == pytest.approx(trace.arrival_ms / 1.75, abs=1e-3)
    assert len(np.unique(fast.trace.arrival_ms)) == len(np.unique(trace.arrival_ms))
    places = [job.path.relative_to(tmp_path / "qwen3-32b/simulated-h200") for job in (fast, other)]
    assert [*map(str, places)] == [
        "capacity/disagg-kv-router/x1.75", "capacity/disagg-kv-router/3P5D",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("configuration", "split", "said"),
    [
        ("disagg-kv-router", (7, 2), "expected the 16 GPUs of deploy.yaml, got 18"),
        ("agg-kv-router", (6, 2), "expected prefill and decode workers"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(small_trace, tmp_path, configuration, split, said):
    variant = Variant(split=Split(prefill=split[0], decode=split[1]))
    trace = read_trace(small_trace)
    job = plan_job(load_study(), "simulated-h200", configuration, 1, None, trace, tmp_path)
    with pytest.raises(InputError, match=said):
        variant.topology(read_topology(job.recipe))


@pytest.mark.parametrize(
    ("edit", "key", "expected"),
    [
        (lambda c: c.update(loads=[0.5, 2]), "capacity", "loads that rise, 1"),
        (lambda c: c.update(loads=[1, 0.5]), "capacity", "loads that rise"),
        (lambda c: c.update(headline=0.85), "capacity", "headline to be one of good_shares"),
        (lambda c: c["splits"].append({"prefill": 8, "decode": 0}),
         "capacity.splits.5.decode", "greater than"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_rejected(checkout, edit, key, expected):
    content = yaml.safe_load((checkout / STUDY).read_text())
    edit(content["capacity"])
    (checkout / STUDY).write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        load_study()
    assert (caught.value.path, caught.value.key) == (checkout / STUDY, key)
    assert caught.value.expected.startswith(expected)


def test_a_cluster_that_is_not_simulated_is_refused(small_trace, tmp_path):
    with pytest.raises(InputError, match="simulated cluster, got kind kubernetes"):
        replay_sweep(STUDY, "example-h200", None, small_trace, tmp_path)


@pytest.fixture
def small_sweep(checkout):
    """The study's two main configurations, two loads and one other split."""
    content = yaml.safe_load((checkout / STUDY).read_text())
    for ablation in ("agg-kv-router", "disagg-round-robin"):
        content["configurations"].pop(ablation)
    splits = [{"prefill": 4, "decode": 4}, {"prefill": 6, "decode": 2}]
    content["capacity"].update(loads=[1, 4], splits=splits, tensor_parallel=[4], layout_loads=[1],
                               repeats=2)  # fmt: skip
    (checkout / STUDY).write_text(yaml.safe_dump(content))
    return checkout


def started(folder, trace):
    command = [sys.executable, "-m", "kvab", "capacity", "--trace", str(trace)]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.Popen(
        [*command, "--runs", str(folder)], env=environment, cwd=folder.parent,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_sweep_stopped_goes_on_where_it_was(small_sweep, small_trace):
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
    folder, cells = small_sweep / "runs", 10  # eight of load under two clocks, two of layouts
    first = started(folder, small_trace)
    until = time.monotonic() + 120
    while not (done := [*folder.glob("**/[!.]*/run.json")]) and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)  # what a terminal sends on Ctrl-C
    _, said = first.communicate(timeout=60)
    assert done, said
    assert first.returncode == 130, said
    assert "complete runs are kept" in said
    kept = {path: path.read_bytes() for path in folder.glob("**/[!.]*/run.json")}
    assert len(kept) < cells
    assert not [*folder.glob("**/capacity.json")]

    again = started(folder, small_trace)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert f"{cells} cells: {len(kept)} complete, {cells - len(kept)} to replay" in said
    assert {path: path.read_bytes() for path in kept} == kept

    swept = load_sweep(STUDY, "simulated-h200", folder)
    assert swept.own
    assert len(swept.load_cells) == 4
    assert swept.layouts["deployed"].to_dict() == {
        (1, "disagg-kv-router", "4P4D"): False, (1, "disagg-kv-router", "6P2D"): True,
        (1, "agg-round-robin", "TP4"): False,
    }  # fmt: skip
    assert next(c for c in swept.summary.cells if c.split == "TP4").workers == {"aggregated": 4}
    repeats = [cell for cell in swept.summary.cells if cell.repeat == 2]
    assert len({(cell.configuration, cell.bursts) for cell in repeats}) == 4
    assert {*swept.repeated["repeat"]} == {1, 2}
    assert "Replayed in other orders" in capacity.loads(swept)
    assert not capacity.layouts_table(swept).frame.drop(columns="at 1x").isna().any(axis=None)
    assert swept.changes == ["it replayed another trace than the study's"]
    normal = runs.read_run(folder / "qwen3-32b/simulated-h200/agg-round-robin/r1")
    assert normal.manifest.depends_on.get("arrival speed") is None
    sped = runs.read_run(folder / "qwen3-32b/simulated-h200/capacity/agg-round-robin/x4").manifest
    assert sped.depends_on["arrival speed"] == 4
    assert len(runs.find_runs(folder, load_study(), "simulated-h200")) == 2
    shares_at_the_studys_bounds_are_those_of_the_curves(swept)


def shares_at_the_studys_bounds_are_those_of_the_curves(swept):
    slo, names = swept.study.slo, ["configuration", "load"]
    at = swept.bounds[(swept.bounds["ttft_ms"] == slo.ttft_ms)
                      & (swept.bounds["itl_ms"] == slo.itl_ms)].set_index(names)  # fmt: skip
    curve = swept.curves.shares.set_index(names)
    assert len(at) == len(curve) == 4
    assert (at["good"] / at["requests"]).to_dict() == curve["share"].to_dict()
    assert {(cell.configuration, cell.load): cell.good for cell in swept.load_cells} == (
        at["good"].to_dict()
    )
    for end in ("low", "high"):
        assert at[end].to_dict() == pytest.approx(curve[end].to_dict(), abs=1e-6, nan_ok=True)
    grid = len(swept.study.capacity.ttft_ms) * len(swept.study.capacity.itl_ms)
    assert (len(swept.bounds), len(swept.best)) == (4 * grid, 2 * grid)


@pytest.fixture(scope="module")
def published():
    return load_sweep(STUDY, "simulated-h200", PUBLISHED)


def test_the_published_sweep_fits_its_cells_and_the_study(published):
    assert published.changes == []
    assert not published.own
    keys = ["configuration", "load", "split", "bursts", "repeat"]
    rows = published.table.fillna({"split": ""}).groupby(keys)
    for cell in published.summary.cells:
        part = rows.get_group(
            (cell.configuration, cell.load, cell.split or "", cell.bursts, cell.repeat)
        )
        assert (part["good"].sum(), part["requests"].sum()) == (cell.good, cell.requests)


def test_the_published_sweep_brackets_its_headline_and_says_so(published):
    found = published.curves
    row = found.ratios.loc[published.headline]
    assert row["low"] == row["high"]
    assert row["ci_low"] < row["low"] < row["ci_high"]
    assert "simulated" in capacity.second_headline(published, SimpleNamespace(green=True))
    assert capacity.second_headline(published, SimpleNamespace(green=False)) == ""
    said = capacity.headline(published)
    assert said.startswith("With 80 % of requests good the comparison carries ")
    assert f"load: {row['low']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}) if" in said
    assert "below 0.125x" in capacity.load_text(*found.loads.iloc[2][["low", "high"]])


def test_loads_of_unequal_hardware_are_compared_per_gpu(published):
    cells = [
        cell.model_copy(update={"gpus": 32}) if cell.configuration == "disagg-kv-router" else cell
        for cell in published.summary.cells
    ]
    wide = replace(published, summary=published.summary.model_copy(update={"cells": cells}))
    row = published.curves.ratios.loc[published.headline]
    said = capacity.headline(wide)
    assert "times the baseline's load per GPU: " in said and f": {row['low'] / 2:.2f} (" in said
    assert "times the baseline's load per GPU" in (
        capacity.second_headline(wide, SimpleNamespace(green=True))
    )
    assert "Unequal hardware" in capacity.provenance(wide)
    assert (
        capacity.loads_table(wide).frame["configuration"].iloc[-1]
        == "comparison / baseline, per GPU"
    )
    assert "times the baseline's load: " in capacity.headline(published)


def test_a_ratio_that_is_not_known_is_said_to_be_so(published):
    unknown = published.curves.ratios.assign(low=0.0, high=INF, ci_low=0.0, ci_high=INF)
    swept = replace(published)
    swept.__dict__["curves"] = replace(published.curves, ratios=unknown)
    for said in (
        capacity.headline(swept),
        capacity.second_headline(swept, SimpleNamespace(green=True)),
        capacity.load_figure(swept).caption,
    ):
        assert "the ratio of their loads is not known" in said
        assert "–" not in said and "not known the load" not in said


def test_what_an_idle_cluster_serves_late_is_said_only_where_there_is_any(published):
    assert "get their first token late and" in capacity.ceiling(published)
    none = {"late_first_token": 0, "one_token": 0}
    cells = [cell.model_copy(update=none) for cell in published.summary.cells]
    summary = published.summary.model_copy(update={"cells": cells})
    assert capacity.ceiling(replace(published, summary=summary)).startswith("The highest share")


def test_what_is_said_of_loads_is_said_of_the_clock_that_they_were_measured_under(published):
    said = capacity.ceiling(published)
    assert "So with bursts at once no configuration keeps 90 % at any load replayed; spread" in said
    short = capacity.second_headline(published, SimpleNamespace(green=True))
    assert "times the baseline's load**, depending on how bursts arrive (95 % workload" in short
    rows = [of.ratios.loc[published.headline] for of in published.readings.values()]
    low, high = min(row["ci_low"] for row in rows), max(row["ci_high"] for row in rows)
    assert f"interval {low:.2f} to {high:.2f})" in short
    for said in (capacity.headline(published), capacity.load_figure(published).caption):
        assert "come at once" in said and "spread until the next" in said
    shares = published.curves.shares.assign(share=0.95)
    reached = replace(published)
    reached.__dict__["curves"] = replace(published.curves, shares=shares)
    assert "no configuration" not in capacity.ceiling(reached)


def test_the_interval_of_a_split_stays_within_0_and_100_percent(published):
    splits = published.layouts.loc[1].loc["disagg-kv-router"]
    assert (splits["low"] > 0).all() and (splits["high"] < 1).all()
    assert (splits["low"] < splits["share"]).all() and (splits["share"] < splits["high"]).all()


def test_layouts_are_compared_with_the_deployed_comparison_at_each_load(published):
    frame = capacity.layouts_table(published).frame.set_index(["configuration", "layout"])
    assert [*frame.columns] == ["at 0.5x", "at 1x"]
    assert len(frame) == 5 + 2 * 2 and not frame.isna().any(axis=None)
    for load in (0.5, 1.0):
        rows = published.layouts.loc[load]
        shares = {
            (cell.configuration, cell.split): cell.share
            for cell in published.summary.cells
            if cell.split and cell.load == load
        }
        assert rows["share"].to_dict() == pytest.approx(shares)
        deployed = [
            ("disagg-kv-router", "6P2D"),
            ("agg-round-robin", "TP2"),
            ("agg-kv-router", "TP2"),
        ]
        assert [*rows.index[rows["deployed"]]] == deployed
        row = rows.loc["agg-kv-router", "TP4"]
        assert row["difference"] == pytest.approx(
            shares["agg-kv-router", "TP4"] - shares["disagg-kv-router", "6P2D"]
        )
        assert row["difference_low"] < row["difference"] < row["difference_high"]
        text = frame.loc[("Aggregated, KV router", "TP4"), f"at {load:g}x"]
        points = f"{100 * row['difference']:+.1f}".replace("-", "−")
        assert text.startswith(f"{100 * row['share']:.1f} % good {points} (")
        of_reference = ["difference", "difference_low", "difference_high"]
        assert (rows.loc[deployed[0], of_reference] == 0).all()
    said = capacity.layouts(published)
    assert (
        "at 1x most requests are good with Disaggregated, KV router as 6P2D: 84.4 % good." in said
    )


def test_layouts_are_compared_with_none_unless_the_deployed_one_was_swept(published):
    def without(*labels):
        cells = [cell for cell in published.summary.cells if cell.split not in labels]
        table = published.table[~published.table["split"].isin(labels)]
        summary = published.summary.model_copy(update={"cells": cells})
        return replace(published, summary=summary, table=table)

    swept = without("6P2D")
    assert swept.layouts["difference"].isna().all() and swept.layouts["share"].notna().all()
    assert not capacity.layouts_table(swept).frame["at 1x"].str.contains(r"\(").any()
    assert "points" not in capacity.layouts(swept)
    every = published.layouts.index.unique("layout")
    none = without(*every)
    assert capacity.layouts_table(none) is None and capacity.layouts(none) == ""
    assert not capacity.split_figure(none).svg


def test_a_trace_without_bursts_has_one_reading():
    swept = load_sweep(f"{STUDY}#mooncake-synthetic", "simulated-h200", PUBLISHED)
    assert not swept.bursty and swept.changes == []
    assert {cell.bursts for cell in swept.summary.cells} == {"at once"}
    assert {*capacity.loads_table(swept).frame["bursts"]} == {"at once"}
    short = capacity.second_headline(swept, SimpleNamespace(green=True))
    for said in (
        capacity.headline(swept),
        short,
        capacity.loads(swept),
        capacity.load_figure(swept).caption,
    ):
        assert "spread" not in said and "other orders" not in said
    assert "2." in short and " times the baseline's load** (95 % workload interval" in short


def test_splits_that_serve_alike_are_not_ranked(published):
    assert capacity.split_figure(published).caption.startswith(
        "Most requests are good at 0.5x with 7P1D (88.4 %), at 1x with 6P2D (84.4 %). "
    )
    alike = replace(published)
    alike.__dict__["layouts"] = published.layouts.assign(share=0.9)
    assert " at 1x with 3P5D or 4P4D or 5P3D or 6P2D or 7P1D (90.0 %)" in (
        capacity.split_figure(alike).caption
    )


def test_a_sweep_of_some_rows_is_not_called_one_of_the_whole(published):
    assert "one replay of all 12,031 requests" in capacity.load_figure(published).caption
    trace = published.summary.trace.model_copy(update={"rows": 600})
    summary = published.summary.model_copy(update={"trace": trace})
    said = capacity.load_figure(replace(published, summary=summary)).caption
    assert "one replay of the first 600 of 12,031 requests" in said


def test_a_cluster_without_a_sweep_shows_the_published_one(tmp_path):
    swept = load_sweep(STUDY, "live-cpu", tmp_path)
    assert "The published sweep" in capacity.provenance(swept)
    assert "Simulated, not measured" in capacity.provenance(swept)
    assert "published sweep; " not in capacity.source(replace(swept, own=True))


def test_another_deploy_yaml_is_said_plainly(checkout, published):
    deploy = checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.yaml"
    deploy.write_text(deploy.read_text().replace("replicas: 6", "replicas: 5", 1))
    swept = replace(published, study=load_study())
    assert swept.changes == ["deploy.yaml of Disaggregated, KV router has changed"]
    assert "{warning}\n**This sweep does not fit what is declared now" in capacity.provenance(swept)


def test_a_table_that_is_not_the_summarys_is_refused(tmp_path, published):
    place = tmp_path / "qwen3-32b" / "simulated-h200" / "capacity"
    place.mkdir(parents=True)
    source = capacity_path(load_study().folder.parents[1] / PUBLISHED, load_study(),
                                "simulated-h200")  # fmt: skip
    for name in ("capacity.json", "capacity.parquet"):
        (place / name).write_bytes((source / name).read_bytes())
    (place / "capacity.parquet").write_bytes(b"other")
    with pytest.raises(InputError, match=r"another capacity\.parquet"):
        load_sweep(STUDY, "simulated-h200", tmp_path)
