"""Published measurements: what is declared, what is wrong with it, and the simulator beside it."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from kvab.cli import main
from kvab.errors import DependencyError, InputError
from kvab.pages import hardware as page
from kvab.runs import hardware
from kvab.runs.hardware import hold, load_hardware
from kvab.study import root
from kvab.study.hardware import (
    LADDER,
    ClosedLoop,
    SharedPrefix,
    load_effects,
    load_scenarios,
    read_scenario,
)

SCENARIO = """schema: 1
name: mine
title: one worker
sources:
  - {what: a note, address: https://example.org, commit: abc, licence: CC0}
assumed: []
engine:
  backend: vllm
  model: Qwen/Qwen3-32B
  context_length: 8192
  block_size: 64
  gpu_memory_fraction: 0.9
  prefix_caching: true
  max_batched_tokens: 8192
  max_sequences: 64
arms:
  mine:
    label: mine
    hardware: h200_sxm
    router: round_robin
    workers: {aggregated: {replicas: 1, tensor_parallel: 2}}
workload:
  kind: closed-loop
  input_tokens: [1024]
  output_tokens: 5
  concurrency: [1, 2]
  requests_per_user: 2
"""
STAGES = """workload:
  kind: shared-prefix
  seed: 3
  groups: 2
  prompts_per_group: 2
  shared_tokens: 200
  own_tokens: 100
  output_tokens: 4
  drain_s: 60
  warm_up: 1
  stages:
    - {rate_per_s: 2, seconds: 2}
    - {rate_per_s: 3, seconds: 4}
"""
MEASURED = "# a note\narm,cell,metric,one,two\nmine,1024x1,ttft_ms_p50,50,100\n"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "scenario.yaml").write_text(SCENARIO)
    (path / "measured.csv").write_text(MEASURED)
    return path


def staged(folder, cell="3"):
    head = SCENARIO[: SCENARIO.index("workload:")]
    (folder / "scenario.yaml").write_text(head + STAGES)
    (folder / "measured.csv").write_text(MEASURED.replace("1024x1", cell))


def test_every_scenario_names_its_sources_and_assumptions():
    scenarios = load_scenarios()
    assert len(scenarios) >= 4
    for scenario in scenarios:
        assert scenario.name == scenario.folder.name
        assert scenario.assumed and all(source.licence for source in scenario.sources)


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "words"),
    [
        ("measured.csv", "mine,", "yours,", 3, "arm: expected one of mine, got yours"),
        ("measured.csv", "mine,1024x1,ttft_ms_p50,50,100\n", "", 1, "figures of the arm mine"),
        ("measured.csv", ",50,", ",-50,", 3, "measured.0: expected greater than 0, got '-50'"),
        ("measured.csv", ",50,", ",fast,", 3, "measured.0: expected a valid number"),
        ("measured.csv", ",50,", ",nan,", 3, "measured.0: expected "),
        ("measured.csv", "50,100", ",", 3, "measured: "),
        ("measured.csv", "mine,1024x1,ttft_ms_p50,50,100", "mine", 3, "cell: expected a value"),
        ("scenario.yaml", "name: mine", "name: yours", 2, "name: expected mine as the folder is"),
        ("measured.csv", "1024x1", "2048x1", 3, "cell: expected one of 1024x1, 1024x2, got 2048x1"),
        ("measured.csv", "ttft_ms_p50", "ttft", 3, "metric: expected one of output_tokens_per_s"),
        ("measured.csv", "arm,cell", "cell,arm", 2, "expected the columns arm,cell,metric"),
        ("scenario.yaml", "  - {what: a note, address: https://example.org, commit: abc, "
         "licence: CC0}\n", "  []\n", 4, "sources: "),
        ("scenario.yaml", ", licence: CC0", "", 5, "licence: expected a value, got nothing"),
        ("scenario.yaml", "aggregated: {", "prefill: {", 17, "aggregated, or prefill and decode"),
        ("scenario.yaml", "concurrency: [1, 2]", "concurrency: [1, 0]", 26, "concurrency.1: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_its_place(folder, capsys, file, old, new, line, words):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(SystemExit) as stop:
        main(["hardware", "--from", str(folder)])
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert told.count("\n") == 1 and told.startswith(f"kvab: {folder / file}:{line}: ")
    assert words in told and "; " in told  # what to do


def test_a_rate_that_is_no_stage_and_a_stage_of_no_length(folder):
    staged(folder, "4")
    with pytest.raises(InputError) as error:
        read_scenario(folder)
    assert (error.value.line, error.value.expected) == (3, f"one of 3, {LADDER}")
    text = (folder / "scenario.yaml").read_text()
    (folder / "scenario.yaml").write_text(text.replace("seconds: 4", "seconds: 0"))
    with pytest.raises(InputError) as error:
        read_scenario(folder)
    assert error.value.line == text[: text.index("rate_per_s: 3")].count("\n") + 1
    assert error.value.key.endswith("stages.1.seconds")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("h200_sxm", "h900", 19), ("Qwen/Qwen3-32B", "Qwen/Qwen9-1B", 9)],
)
def test_what_the_simulator_does_not_know_is_named(folder, tmp_path, old, new, line):
    text = (folder / "scenario.yaml").read_text().replace(old, new)
    (folder / "scenario.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        hold([read_scenario(folder)], tmp_path / "runs")
    assert (error.value.path, error.value.line) == (folder / "scenario.yaml", line)
    assert new in str(error.value)


def test_a_scenario_that_is_not_there(folder, tmp_path):
    for name, place in (("yours", folder), (None, tmp_path / "empty")):
        with pytest.raises(InputError, match="no scenario"):
            load_scenarios(name, place)


def test_prompts_of_a_group_begin_alike_and_go_round():
    load = SharedPrefix(
        kind="shared-prefix", seed=1, groups=3, prompts_per_group=2, shared_tokens=200,
        own_tokens=100, output_tokens=7, drain_s=50, warm_up=1,
        stages=[{"rate_per_s": 2, "seconds": 10}, {"rate_per_s": 4, "seconds": 5}],
    )  # fmt: skip
    trace = load.trace(64)
    assert len(trace) == 40 and load.cells == ["4", LADDER]
    first, second = trace.timestamp_ms[:20], trace.timestamp_ms[20:]
    assert (np.diff(trace.timestamp_ms) >= 0).all()
    assert first.max() < 10_000 and 60_000 <= second.min() and second.max() < 65_000
    assert {len(ids) for ids in trace.hash_ids} == {5}  # of 300 tokens in blocks of 64
    assert trace.hash_ids[:6] == trace.hash_ids[6:12] and len(set(trace.hash_ids)) == 6
    starts = {ids[:3] for ids in trace.hash_ids}
    assert len(starts) == 3
    owns = [set(ids[3:]) for ids in set(trace.hash_ids)]
    assert len(set().union(*owns)) == sum(map(len, owns))
    assert load.trace(64).timestamp_ms.tolist() == trace.timestamp_ms.tolist()


def test_prompts_of_a_closed_loop_share_nothing():
    load = ClosedLoop(
        kind="closed-loop", input_tokens=[1000], output_tokens=50, shortest_share=0.8,
        concurrency=[8], requests_per_user=4,
    )  # fmt: skip
    trace = load.trace(64, 1000, 8)
    assert len(trace) == 32
    assert 800 <= trace.input_tokens.min() < trace.input_tokens.max() <= 1000
    assert 40 <= trace.output_tokens.min() < trace.output_tokens.max() <= 50
    blocks = [block for ids in trace.hash_ids for block in ids]
    assert len(blocks) == len(set(blocks))
    assert [len(ids) for ids in trace.hash_ids] == [-(-n // 64) for n in trace.input_tokens]


def test_a_scenario_from_elsewhere_is_simulated_once(folder, tmp_path, capsys, monkeypatch):
    command = ["hardware", "--from", str(folder), "--runs", str(tmp_path / "runs"), "--json"]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    ((row,), summary) = document["scenarios"]["mine"].values()
    assert {key: row[key] for key in ("arm", "cell", "metric", "measured")} == {
        "arm": "mine", "cell": "1024x1", "metric": "ttft_ms_p50", "measured": [50, 100],
    }  # fmt: skip
    assert row["ratio"] == pytest.approx(row["simulated"] / 75, rel=1e-4)
    assert summary["ttft_ms_p50"]["noise_floor"] == 1
    monkeypatch.setattr(hardware, "side_by_side", None)  # nothing is left to simulate
    with pytest.raises(SystemExit):
        main(command)
    assert json.loads(capsys.readouterr().out) == document


def test_stages_are_told_apart_and_must_drain(folder, tmp_path):
    staged(folder)
    held = hold([read_scenario(folder)], tmp_path / "runs")
    simulated = held.cells.set_index(["cell", "metric"])["simulated"]
    assert {cell for cell, _ in simulated.index} == {"3", LADDER}
    assert simulated["3", "ttft_ms_p50"] <= simulated["3", "ttft_ms_p90"] < 1000
    assert simulated[LADDER, "output_tokens_per_s"] == simulated["3", "output_tokens_per_s"]
    text = (folder / "scenario.yaml").read_text()
    text = text.replace("drain_s: 60", "drain_s: 0.001").replace(
        "2, seconds: 2", "100, seconds: 0.5"
    )
    (folder / "scenario.yaml").write_text(text)
    with pytest.raises(InputError, match="s or more, got") as error:
        hold([read_scenario(folder)], tmp_path / "runs")
    assert error.value.key == "workload.drain_s" and error.value.line


def test_every_scenario_is_published_and_near_the_reference_simulation(tmp_path):
    """Reference: the same settings, simulated once before with another draw of arrivals."""
    held = load_hardware(tmp_path)
    assert [*held.scenarios] == [scenario.name for scenario in load_scenarios()]
    values = held.cells.set_index(["scenario", "arm", "cell", "metric"])["simulated"]
    ladder = values["llmd-qwen3-32b-16xh100"]
    for arm, tokens_per_s in (("round-robin", 6367), ("kv-routing", 9799)):
        assert ladder[arm, LADDER, "output_tokens_per_s"] == pytest.approx(tokens_per_s, rel=0.03)
    assert ladder["round-robin", LADDER, "itl_ms_mean"] == pytest.approx(47, rel=0.03)
    for rate, mean_s in ((40, 64.7), (60, 72.2)):
        assert ladder["round-robin", f"{rate}", "ttft_ms_mean"] / 1000 == pytest.approx(
            mean_s, rel=0.035
        )
    idle = values["idle-prefill-qwen3-32b"]
    assert idle["h100", "8192x1", "ttft_ms_mean"] == pytest.approx(476, rel=0.03)
    assert idle["h200", "8192x1", "ttft_ms_mean"] == pytest.approx(474, rel=0.03)
    alone = held.rows.set_index(["arm", "cell", "metric"])["ratio"]["kv-free"]
    lengths = (1024, 4096, 8192, 16384, 32768)
    measured = [alone[f"{tokens}x1", "ttft_ms_p50"] - 1 for tokens in lengths]
    assert measured == pytest.approx([-0.47, -0.30, -0.26, -0.22, -0.18], abs=0.03)
    assert {path.name for path in (root() / "book/published/hardware").glob("*.json")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return load_hardware(tmp_path_factory.mktemp("none"))


def test_the_page_says_where_the_simulator_fails_and_whom_that_favours(published):
    assert "understates KV routing" in page.routing(published)
    assert "+120 % and +103 % measured" in page.routing(published)
    errors = page.meaning_table(published).frame.set_index("error of")
    favours = errors["favours"]
    assert "0.60 (0.47 to 0.84)" == errors.loc["TTFT below saturation behind round-robin"].iloc[1]
    assert favours["TTFT of disaggregated workers with one user"] == "comparison"
    assert favours["ITL of disaggregated workers"] == "baseline"
    assert favours["output that KV routing gains"] == "baseline"
    for scenario in published.scenarios.values():
        assert all(source.commit in page.sources(published) for source in scenario.sources)
    assert page.routing(published) in page.lesson(published)


def test_a_figure_that_two_simulations_share_counts_once(published):
    assert len(published.own) == len(published.rows) - 45
    assert f"Against {len(published.own)} figures" in page.band(published)


def test_the_figures_are_drawn_and_the_tables_whole(published):
    for panel in (page.ladder_figure(published), page.grid_figure(published)):
        assert panel.svg and panel.alt and panel.csv
    for table in (page.idle_table(published).frame, page.meaning_table(published).frame):
        assert len(table) and not table.isin(["nan", "NaN"]).any(axis=None)
    assert page.effects_table(published).frame["what"].iloc[0].endswith("\nagainst")
    assert {effect.what for effect in load_effects()} == {"KV routing", "disaggregation"}


def test_measured_times_are_marked_on_the_grid_of_errors(published):
    ratios = [0.7, 0.9, 1, 1.1, 1.3]
    grid = pd.DataFrame(np.arange(25.0).reshape(5, 5), index=ratios, columns=ratios)
    _, axes = plt.subplots()
    said = page.mark_measured(published, axes, grid)
    (box,) = axes.patches
    plt.close("all")
    assert 2 < box.get_x() < 3 and 0 <= box.get_x() + box.get_width() < 3.1
    assert "+8 to +10 % for prefill" in said and "for decode" in said
    assert "+2.0 to +23.0 points" in said  # prefill between 1 and 1.1, decode anything
    assert page.mark_measured(None, axes, grid) == ""


def test_without_a_scenario_pages_say_so(folder, tmp_path):
    for shown in (page.provenance, page.lesson):
        assert "et: hold" in shown(None) or "kvab hardware" in shown(None)
    assert page.band(None) == "" and page.ladder_figure(None) is None
    alone = hold([read_scenario(folder)], tmp_path / "runs")
    assert page.routing(alone) == ""
    assert not page.ladder_figure(alone).svg and not page.grid_figure(alone).svg
    assert page.meaning_table(alone).frame.empty and page.idle_table(alone).frame.empty
    assert "output" not in page.band(alone) and "TTFT" in page.band(alone)


def test_what_is_published_is_read_without_the_simulator(tmp_path, monkeypatch, folder):
    def lacking(*packages):
        raise DependencyError("the simulator is not installed")

    monkeypatch.setattr(hardware, "installed", lacking)
    assert len(hold(load_scenarios("idle-prefill-qwen3-32b"), tmp_path / "runs").rows) == 2
    with pytest.raises(DependencyError):
        hold([read_scenario(folder)], tmp_path / "runs")


def test_what_another_simulator_simulated_is_simulated_again(folder, tmp_path):
    hold([read_scenario(folder)], tmp_path / "runs")
    (path,) = (tmp_path / "runs/hardware").iterdir()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"versions": kept["versions"] | {"aisimulate": "0.1"}}))
    hold([read_scenario(folder)], tmp_path / "runs")
    assert json.loads(path.read_text()) == kept


def test_publishing_copies_what_is_declared_and_removes_the_rest(checkout):
    published = checkout / "book/published"
    (published / "hardware").mkdir(parents=True)
    (published / "hardware/old.json").write_text("{}")
    hardware.publish_hardware(checkout / "runs", published)
    assert [path.name for path in published.glob("hardware/*")] == ["old.json"]  # nothing simulated
    hold(load_scenarios("idle-prefill-qwen3-32b"), checkout / "runs")
    hardware.publish_hardware(checkout / "runs", published)
    names = {path.name for path in published.glob("hardware/*")}
    assert names == {path.name for path in (checkout / "runs/hardware").iterdir()}
