"""What the simulation takes for granted: what a cell changes, what is kept and what is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from kvab.clusters.simulated import prediction
from kvab.clusters.stack import commands
from kvab.console import signed
from kvab.errors import InputError
from kvab.pages import robustness
from kvab.requests.table import PARTS
from kvab.runs import folder as runs
from kvab.runs.campaign import Scope
from kvab.runs.replay import plan_job
from kvab.runs.sensitivity import (
    AGAIN,
    CHUNK,
    FRONTEND,
    REUSE,
    TIMES,
    TRANSFER,
    load_sensitivity,
    plan_cells,
    replay_sensitivity,
)  # fmt: skip
from kvab.study import load_cluster, load_study
from kvab.study.variants import Variant
from kvab.trace.reading import read_trace

STUDY = "recipes/qwen3-32b/study.yaml"
CLUSTER = "simulated-h200"


def job(small_trace, configuration, variant):
    trace = read_trace(small_trace)
    return plan_job(load_study(), CLUSTER, configuration, 1, None, trace, Path("runs"), variant)


def engine(planned):
    return prediction(planned.topology, planned.cluster, planned.trace.path, 512)


def test_a_worker_of_two_gpus_sends_over_both(small_trace):
    declared = load_cluster(CLUSTER).kv_transfer_gb_per_s
    for gb_per_s, per_gpu in ((None, declared / 2), (12.5, 6.25)):
        asked = job(small_trace, "disagg-kv-router", Variant(kv_transfer_gb_per_s=gb_per_s))
        assert engine(asked)["engine"]["kv_transfer"] == {"bandwidth_gb_per_second": per_gpu}
    free = job(small_trace, "disagg-kv-router", Variant(kv_transfer_gb_per_s=np.inf))
    assert "kv_transfer" not in engine(free)["engine"]
    assert free.depends_on()["kv_transfer_gb_per_s"] is None
    aggregated = job(small_trace, "agg-kv-router", Variant())
    assert "kv_transfer" not in engine(aggregated)["engine"]


@pytest.mark.parametrize(("gb_per_s", "per_gpu"), [(50.0, "25.0"), (None, "0.0")])
def test_the_mock_engines_are_told_what_a_gpu_sends(small_trace, gb_per_s, per_gpu):
    profile = load_cluster("live-cpu").model_copy(update={"kv_transfer_gb_per_s": gb_per_s})
    for configuration, roles in (("disagg-kv-router", {"prefill", "decode"}),
                                 ("agg-kv-router", set())):  # fmt: skip
        given = {
            name: command[command.index("--kv-transfer-bandwidth") + 1]
            for name, command in commands(
                job(small_trace, configuration, Variant()).topology, profile, 1
            ).items()
            if "--kv-transfer-bandwidth" in command
        }
        assert given == dict.fromkeys(roles, per_gpu)


def test_step_times_are_stretched_by_the_settings_of_each_role(small_trace):
    variant = Variant(prefill_time_ratio=1.25, decode_time_ratio=0.8)
    split = engine(job(small_trace, "disagg-kv-router", variant))["speedup"]
    assert split == {"prefill": {"speedup_ratio": 0.8}, "decode": {"speedup_ratio": 1.25}}
    (both,) = engine(job(small_trace, "agg-round-robin", variant))["speedup"].values()
    assert both["speedup_ratio"] == 0.8
    assert both["speedup_ratio"] * both["decode_speedup_ratio"] == pytest.approx(1.25)
    assert engine(job(small_trace, "agg-round-robin", Variant()))["speedup"] == {}


def test_a_chunk_is_that_of_every_worker(small_trace):
    planned = job(small_trace, "disagg-kv-router", Variant(chunk_tokens=2048))
    assert {group.max_batched_tokens for group in planned.topology.groups.values()} == {2048}
    assert planned.path.name == "chunk2048"


def test_aggregated_workers_of_more_gpus_are_fewer(small_trace):
    planned = job(small_trace, "agg-round-robin", Variant(tensor_parallel=4, speed=0.5))
    (group,) = planned.topology.groups.values()
    assert (group.replicas, group.gpus_per_worker, group.tensor_parallel) == (4, 4, 4)
    assert planned.topology.gpus == 16 and planned.path.name == "x0.5-tp4"
    assert planned.depends_on()["tensor parallel"] == 4
    with pytest.raises(InputError, match=r"the 16 GPUs of deploy\.yaml, got 15 for tp3"):
        job(small_trace, "agg-round-robin", Variant(tensor_parallel=3))


def test_a_cell_with_the_values_that_are_declared_is_the_normal_run(small_trace, tmp_path):
    study, trace = load_study(), read_trace(small_trace)
    cells = plan_cells(Scope(study, CLUSTER, None, trace, tmp_path))
    declared = {
        "kv_transfer_gb_per_s": load_cluster(CLUSTER).kv_transfer_gb_per_s,
        "frontend_ms_per_1k_tokens": load_cluster(CLUSTER).frontend_ms_per_1k_tokens,
    }
    for key, value in declared.items():
        same = [cell for cell in cells if getattr(cell.variant, key) == value]
        assert {cell.job.path.name for cell in same} == {"r1"}
    aggregated = [
        cell for cell in cells
        if cell.sweep == TRANSFER and study.configurations[cell.job.configuration].factors.split
        == "aggregated"
    ]  # fmt: skip
    assert len({cell.job.path for cell in aggregated}) > 2  # its profile differs all the same
    assert len({(cell.job.path, cell.job.configuration) for cell in cells}) <= len(cells)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("kv_transfer_gb_per_s: 0", "greater than 0"),
        ("kv_transfer_gb_per_s: -50", "greater than 0"),
        ("kv_transfer_gb_per_s: fast", "number"),
        ("frontend_ms_per_1k_tokens: -1", "greater than or equal to 0"),
        ("prefill_time_ratio: 0", "greater than 0"),
    ],
)
def test_a_wrong_value_of_a_profile_is_rejected(checkout, line, expected):
    path, key = checkout / "recipes/clusters/simulated-h200.yaml", line.split(":")[0]
    kept = [each for each in path.read_text().splitlines() if not each.startswith(key)]
    path.write_text("\n".join([*kept, line]) + "\n")
    with pytest.raises(InputError) as caught:
        load_cluster(CLUSTER)
    assert (caught.value.path, caught.value.key.split(".")[-1]) == (path, key)
    assert expected in str(caught.value)


def test_a_profile_of_gpus_takes_no_field_of_a_simulator(checkout):
    path = checkout / "recipes/clusters/example-h200.yaml"
    path.write_text(path.read_text() + "kv_transfer_gb_per_s: 50\n")
    with pytest.raises(InputError) as caught:
        load_cluster("example-h200")
    assert caught.value.key.endswith("kv_transfer_gb_per_s")


def test_a_study_without_sensitivity_says_so(checkout, small_trace):
    content = yaml.safe_load((checkout / STUDY).read_text())
    content.pop("sensitivity")
    (checkout / STUDY).write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="expected a key sensitivity, got none"):
        replay_sensitivity(STUDY, CLUSTER, None, small_trace)
    assert load_sensitivity(STUDY, CLUSTER, "runs") is None
    assert "kvab sensitivity" in robustness.provenance(None)


@pytest.fixture
def replayed(checkout, small_trace):
    """A small sensitivity, really replayed."""
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
    content = yaml.safe_load((checkout / STUDY).read_text())
    content["seeds"] = content["seeds"][:4]
    content["sensitivity"] = {
        "kv_transfer_gb_per_s": ["free", 50, 5], "frontend_ms_per_1k_tokens": [1],
        "chunk_tokens": [1024, 8192], "time_ratios": [1, 1.3], "reuse": [1, 0],
        "again": 2,
    }  # fmt: skip
    (checkout / STUDY).write_text(yaml.safe_dump(content))
    replay_sensitivity(STUDY, CLUSTER, None, small_trace)
    return load_sensitivity(STUDY, CLUSTER, "runs")


def test_what_is_replayed_is_kept_read_and_said(replayed, checkout, small_trace, capsys):
    assert replayed.own
    transfer = replayed.of(TRANSFER).set_index(["configuration", "kv_transfer_gb_per_s"])
    means = transfer["ttft_ms_mean"]
    assert means["disagg-kv-router", 5] > means["disagg-kv-router", np.inf]
    assert means["agg-round-robin", 5] == means["agg-round-robin", np.inf]
    times = replayed.of(TIMES).set_index(["configuration", "prefill_time_ratio",
                                          "decode_time_ratio"])  # fmt: skip
    slower = times.sort_index().loc["disagg-kv-router", "itl_ms_mean"]
    assert slower[1, 1.3] == pytest.approx(1.3 * slower[1, 1], rel=0.05)
    assert len(replayed.of(AGAIN)) == 4
    assert {*replayed.of(REUSE)["reuse"]} == {0, 1} and len(replayed.of(REUSE)) == 8
    of_none = checkout / "runs/qwen3-32b" / CLUSTER / "capacity/agg-kv-router/reuse0"
    assert runs.read_run(of_none).requests["cached_tokens"].sum() == 0
    assert {*replayed.effects["sweep"]} >= {TRANSFER, TIMES}
    run = runs.read_run(checkout / "runs/qwen3-32b" / CLUSTER / "disagg-kv-router/r1")
    assert run.requests[[*PARTS]].notna().all(axis=None)
    replay_sensitivity(STUDY, CLUSTER, None, small_trace)
    assert " 0 to replay" in capsys.readouterr().err
    texts = [show(replayed) for show in (
        robustness.provenance, robustness.transfer, robustness.chunk, robustness.times,
        robustness.again,
    )]  # fmt: skip
    assert not any("nan" in text for text in texts)
    for sweep in (FRONTEND, CHUNK):
        assert not robustness.values_table(replayed, sweep).frame.isna().any(axis=None)
    for figure in (robustness.transfer_figure, robustness.times_figure):
        assert figure(replayed).svg
    _sentences_follow_the_data(replayed)
    _tables_that_do_not_belong_together_are_rejected(checkout)


def _tables_that_do_not_belong_together_are_rejected(checkout):
    (table,) = (checkout / "runs").glob("**/effects.parquet")
    pd.read_parquet(table).iloc[1:].to_parquet(table)
    with pytest.raises(InputError, match=r"effects\.parquet"):
        load_sensitivity(STUDY, CLUSTER, "runs")


def _sentences_follow_the_data(replayed):
    """Made-up effects: an answer that flips, and a chunk at which the baseline catches up."""
    effects = replayed.effects.assign(difference=-0.1, ci_low=-0.2, ci_high=-0.05)
    flipped = replace(replayed, effects=effects)
    assert "behind at 4" in robustness.times(flipped)
    assert "does not stay ahead" in robustness.transfer(flipped)
    cells = replayed.cells.copy()
    cells.loc[cells["configuration"] == "agg-round-robin", "good_share"] = 0.99
    assert "the baseline reaches" in robustness.chunk(replace(replayed, cells=cells))
    cells.loc[cells["configuration"] == "agg-round-robin", "good_share"] = 0.01
    assert "No chunk size" in robustness.chunk(replace(replayed, cells=cells))


def test_what_routing_gains_with_and_without_reuse_is_said():
    answers = load_sensitivity(STUDY, CLUSTER, "book/published")
    shares = answers.of(REUSE).pivot(index="reuse", columns="configuration", values="good_share")
    gain = 100 * (shares["disagg-kv-router"] - shares["disagg-round-robin"])
    said = robustness.reuse(answers)
    assert f"{gain[1]:+.1f} points with all reuse and {gain[0]:+.1f} with 0 % of it" in said
    aggregated = 100 * (shares["agg-kv-router"] - shares["agg-round-robin"])[0]
    assert robustness.without_reuse(answers) == (
        f" With 0 % of that reuse the KV router brings {signed(aggregated, 1)} points to "
        f"aggregated workers and {signed(gain[0], 1)} points to disaggregated workers."
    )
    assert not robustness.without_reuse(None)
    table = robustness.values_table(answers, REUSE).frame.set_index("share")
    assert list(table.index) == ["1", "0.5", "0"]
    good = f"{100 * shares.loc[0.5, 'disagg-kv-router']:.1f} %"
    assert table.loc["0.5", "Disaggregated, KV router"] == good
    assert robustness.values_table(None, REUSE) is None
