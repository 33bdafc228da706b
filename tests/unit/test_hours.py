"""Made hours: which rows are one conversation, what an hour keeps, what is replayed and read."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kvab.book.publish import publish
from kvab.cli import main
from kvab.console import interval, percent
from kvab.errors import InputError
from kvab.pages import outcome, robustness
from kvab.pages.evidence import load_evidence
from kvab.runs import hours
from kvab.runs.replay import plan_job
from kvab.stats.contrasts import Estimate
from kvab.stats.effects import hour_to_hour
from kvab.study import load_study
from kvab.study.variants import Variant
from kvab.trace.conversations import find_conversations, made_hour, with_reuse
from kvab.trace.reading import Trace, read_trace, reusable_tokens

STUDY = "recipes/qwen3-32b/study.yaml"


def trace(at_ms, ids):
    blocks = np.array([*map(len, ids)], "int32")
    return Trace(
        name="t", path=None, sha256="0" * 64, synthetic=False, block_tokens=512,
        timestamp_ms=np.array(at_ms, float), input_tokens=512 * blocks,
        output_tokens=np.arange(10, 10 + len(ids), dtype="int32"), hash_ids=tuple(map(tuple, ids)),
    )  # fmt: skip


def chat(conversations=30, turns=3):
    """Conversations side by side: a turn each 9 s on a clock of 3 s, all with one preamble."""
    rows = [
        (3000 * (number + 3 * turn), [0, *(100 * number + block for block in range(1, turn + 2))])
        for number in range(conversations)
        for turn in range(turns)
    ]
    return trace(*zip(*sorted(rows, key=lambda row: row[0]), strict=True))


def test_a_prompt_goes_on_the_conversation_whose_blocks_it_extends():
    begun = [[0, 1], [0, 2], [0, 1, 3], [0, 9], [0, 1, 4], [0, 2, 5, 6]]
    others = [[0, 100 + n] for n in range(40)]
    found = find_conversations(trace(range(46), begun + others))
    assert [rows.tolist() for rows in found.rows[:3]] == [[0, 2, 4], [1, 5], [3]]
    assert len(found.rows) == 3 + 40
    assert found.shared == {0}


def test_blocks_that_a_later_conversation_has_too_stay_shared():
    ids = [[0, 1, 7], [0, 2], [0, 7, 2], *([0, 100 + n] for n in range(20))]
    assert find_conversations(trace(range(23), ids)).shared == {0, 7}


@pytest.mark.parametrize(
    ("ids", "said"),
    [([[1], [1, 2], [1, 3]], "3 in 3"), ([[0, n] for n in range(1, 31)], "30 in 30 requests")],
)
def test_a_trace_without_conversations_is_rejected(ids, said):
    with pytest.raises(InputError, match=said):
        find_conversations(trace(range(len(ids)), ids))


def test_one_conversation_alone_is_rejected(monkeypatch):
    monkeypatch.setattr("kvab.trace.conversations.COMMON_SHARE", 1)
    with pytest.raises(InputError, match="1 in 90 requests"):
        find_conversations(chat())


def test_a_made_hour_keeps_gaps_clock_and_lengths_of_its_conversations():
    source = chat()
    made = made_hour(find_conversations(source), 5)
    assert len(made) == 90
    assert set(made.timestamp_ms) <= set(source.timestamp_ms)
    assert (np.diff(made.timestamp_ms) >= 0).all()
    assert (made.input_tokens == [512 * len(ids) for ids in made.hash_ids]).all()
    period_ms = source.timestamp_ms[-1] + 3000
    turns = {}
    for at_ms, ids in zip(made.timestamp_ms, made.hash_ids, strict=True):
        assert ids[0] == 0  # the preamble stays everybody's
        turns.setdefault(ids[1], {})[len(ids)] = at_ms
    assert len(turns) == 30  # every copy has blocks of its own
    for at_ms in turns.values():
        assert [*np.diff([at_ms[2], at_ms[3], at_ms[4]]) % period_ms] == [9000, 9000]


def test_the_same_seed_makes_the_same_hour():
    found = find_conversations(chat())
    first, again, other = (made_hour(found, [1, number]) for number in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    assert first.hash_ids == again.hash_ids
    assert len({first.sha256, found.trace.sha256}) == 2


def kept(source, share):
    """The conversations that keep their blocks, and the trace."""
    less = with_reuse(source, share)
    rows = find_conversations(source).rows
    same = [all(less.hash_ids[row] == source.hash_ids[row] for row in of) for of in rows]
    return {n for n, all_of in enumerate(same) if all_of}, less


def test_conversations_that_lose_their_blocks_reuse_nothing():
    source = chat()
    half, less = kept(source, 0.5)
    assert len(half) == 15
    assert [*map(len, less.hash_ids)] == [*map(len, source.hash_ids)]
    others = [row for n, rows in enumerate(find_conversations(source).rows)
              if n not in half for row in rows]  # fmt: skip
    of_others = [block for row in others for block in less.hash_ids[row]]
    rest = {block for row in set(range(90)) - {*others} for block in less.hash_ids[row]}
    assert len({*of_others}) == len(of_others) and not rest & {*of_others}
    assert reusable_tokens(less)[others].sum() == 0


def test_who_keeps_blocks_at_a_share_keeps_them_at_a_larger_one():
    source = chat()
    assert kept(source, 0.2)[0] < kept(source, 0.5)[0] < kept(source, 1)[0]
    assert kept(source, 1)[1].hash_ids == source.hash_ids
    assert reusable_tokens(with_reuse(source, 0)).sum() == 0


def test_runs_of_less_reuse_lie_apart_and_depend_on_it():
    variant, source = Variant(reuse=0.5), chat()
    assert (variant.place, variant.depends_on()) == ("reuse0.5", {"reuse": 0.5})
    assert variant.trace(source, 3).hash_ids == with_reuse(source, 0.5).hash_ids
    assert variant.trace(source, 3).sha256 == source.sha256


def test_the_intervals_are_those_of_the_formula():
    made = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    found = hour_to_hour(Estimate(2.5), made, 0.95)
    half = 2.5705818366147395 * np.std(made, ddof=1)  # t quantile of 5 degrees: tables
    assert (found.mean.low, found.mean.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert found.another.high - 2.5 == pytest.approx(np.sqrt(2) * half)
    assert (
        hour_to_hour(Estimate(2.5), 3 * made - 7, 0.95).another_coverage == found.another_coverage
    )


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory):
    path, source = tmp_path_factory.mktemp("chat") / "chat.jsonl", chat()
    columns = (source.timestamp_ms, source.input_tokens, source.output_tokens, source.hash_ids)
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    rows = [dict(zip(keys, (int(at), int(prompt), int(answer), ids), strict=True))
            for at, prompt, answer, ids in zip(*columns, strict=True)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made_hours(tmp_path_factory, chat_file):
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
    folder = tmp_path_factory.mktemp("runs")
    study = load_study(STUDY)
    return folder, hours.replay_hours(study, "simulated-h200", 3, None, chat_file, folder)


def test_both_arms_replay_every_made_hour(made_hours, chat_file):
    folder, path = made_hours
    read = hours.load_hours(load_study(STUDY), "simulated-h200", folder)
    assert path == folder / "qwen3-32b" / "simulated-h200" / "hours"
    table = read.table.set_index(["hour", "configuration"])
    assert table.index.tolist() == [
        (hour, name) for hour in (1, 2, 3) for name in ("agg-round-robin", "disagg-kv-router")
    ]
    assert (table["sha256"].groupby("hour").nunique() == 1).all()
    assert table["sha256"].nunique() == 3
    assert (table["requests"] == 90).all()
    assert (table["errors"] == 0).all()
    assert read.summary.conversations == 30
    assert read.summary.recorded["prompt_tokens"] == read_trace(chat_file).input_tokens.sum()
    arms = [table.xs(name, level=1) for name in ("agg-round-robin", "disagg-kv-router")]
    apart = arms[1]["ttft_ms_mean"] - arms[0]["ttft_ms_mean"]
    assert np.allclose(read.effects["ttft_ms_mean"], apart)
    share = (arms[1]["good"] - arms[0]["good"]) / 90
    assert np.allclose(read.effects["good_share_mean"], share)


def test_complete_replays_are_kept(made_hours, chat_file, monkeypatch, capsys):
    folder, path = made_hours
    before = (path / "hours.parquet").read_bytes()
    cells = sorted((path / "cells").iterdir())
    cells[0].unlink()
    replayed = []
    side_by_side = hours.side_by_side

    def counting(jobs, replay):
        replayed.extend(jobs)
        side_by_side(jobs, replay)

    monkeypatch.setattr(hours, "side_by_side", counting)
    hours.replay_hours(load_study(STUDY), "simulated-h200", 3, None, chat_file, folder)
    assert len(replayed) == 1
    assert "6 cells: 5 complete, 1 to replay" in capsys.readouterr().err
    assert (path / "hours.parquet").read_bytes() == before


def test_a_cell_serves_only_what_it_depends_on(made_hours, chat_file):
    job = plan_job(
        load_study(STUDY), "simulated-h200", "agg-round-robin", 1, None, read_trace(chat_file)
    )
    cell = hours.Cell(job, find_conversations(job.trace), 1, 1)
    study = job.study
    stricter = study.model_copy(update={"slo": study.slo.model_copy(update={"itl_ms": 10.0})})
    others = [
        replace(cell, seed=2),
        replace(cell, hour=2),
        replace(cell, job=replace(job, rows=80)),
        replace(cell, job=replace(job, study=stricter)),
        replace(cell, job=replace(job, configuration="disagg-kv-router")),
    ]
    assert len({each.path for each in [cell, *others]}) == 6


def test_tables_that_do_not_belong_together_are_rejected(made_hours, tmp_path):
    folder, path = made_hours
    copy = tmp_path / path.relative_to(folder)
    copy.mkdir(parents=True)
    for name in ("hours.parquet", "hours.json"):
        (copy / name).write_bytes((path / name).read_bytes())
    pd.read_parquet(copy / "hours.parquet").assign(good=1).to_parquet(copy / "hours.parquet")
    with pytest.raises(
        InputError,
        match=r"hours\.json: expected a summary and its tables, got another hours\.parquet",
    ):
        hours.load_hours(load_study(STUDY), "simulated-h200", tmp_path)
    (copy / "hours.json").write_text("{}")
    with pytest.raises(InputError, match=r"hours\.json: expected a summary"):
        hours.load_hours(load_study(STUDY), "simulated-h200", tmp_path)


def test_without_made_hours_there_are_none(tmp_path):
    study = load_study(STUDY)
    nothing = {"folder": tmp_path, "published": tmp_path}
    assert hours.load_hours(study, "simulated-h200", **nothing) is None
    undeclared = study.model_copy(update={"hours": None})
    with pytest.raises(InputError, match="expected a key hours"):
        hours.replay_hours(undeclared, "simulated-h200")


def test_publishing_copies_the_table_and_its_summary(made_hours, small_runs, tmp_path):
    source = tmp_path / "runs"
    for folder in (small_runs, made_hours[0]):
        shutil.copytree(folder / "qwen3-32b", source / "qwen3-32b", dirs_exist_ok=True)
    publish(STUDY, "simulated-h200", source, tmp_path / "published")
    copied = tmp_path / "published/qwen3-32b/simulated-h200/hours"
    assert {path.name for path in copied.iterdir()} == {"hours.parquet", "hours.json"}
    elsewhere = (load_study(STUDY), "simulated-h200", tmp_path / "none", tmp_path / "published")
    assert hours.load_hours(*elsewhere).summary.hours == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--cluster", "live-cpu"],
            "cluster live-cpu: expected a simulated cluster, got kind live",
        ),
        (["--rows", "1"], "expected two conversations or more, one of them of several requests"),
    ],
)
def test_what_cannot_be_resampled_is_one_line(options, said, chat_file, tmp_path, capsys):
    where = ["--trace", str(chat_file), "--runs", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(["resample", *where, *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("kvab: ") and said in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_the_command_makes_as_many_hours_as_asked_for(chat_file, tmp_path, capsys):
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
    where = ["--trace", str(chat_file), "--runs", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(["resample", "--hours", "4", "--rows", "45", *where])
    assert stop.value.code == 0
    path = tmp_path / "qwen3-32b/simulated-h200/hours"
    assert capsys.readouterr().out == f"{path}\n"
    assert len(pd.read_parquet(path / "hours.parquet")) == 8


def made_up(evidence, count=60):
    """Made hours of published runs, in which every effect is drawn about the recorded one."""
    rng, rows = np.random.default_rng(3), []
    load = {"requests": 12000, "median_prompt_tokens": 6900.0, "reusable_tokens": 50_000_000}
    for hour in range(1, count + 1):
        for name in (evidence.study.baseline, evidence.study.comparison):
            slow = name == evidence.study.baseline
            means = {"ttft_ms_mean": 1200 + 900 * slow, "itl_ms_mean": 17 + 14 * slow,
                     "latency_ms_mean": 7000 + 3500 * slow,
                     "ttft_ms_p99": 9000 + 8000 * slow}  # fmt: skip
            drawn = {key: value * rng.normal(1, 0.02) for key, value in means.items()}
            rows.append({"hour": hour, "configuration": name, **load, **drawn,
                         "prompt_tokens": 144_000_000 + 1000 * hour,
                         "largest_burst_requests": 20 + hour % 5,
                         "good": int(12000 * rng.normal(0.86 - 0.23 * slow, 0.01))})  # fmt: skip
    depends_on = {name: evidence.runs[name][0].manifest.depends_on
                  for name in (evidence.study.baseline, evidence.study.comparison)}  # fmt: skip
    summary = hours.Summary(
        study="s", cluster="simulated-h200", depends_on=depends_on, slo=evidence.study.slo,
        seed=1, hours=count, conversations=7373, tables={}, schema=1,
        recorded={**load, "prompt_tokens": 144_030_000, "largest_burst_requests": 28},
    )  # fmt: skip
    return hours.MadeHours(evidence.study, summary, True, pd.DataFrame(rows))


@pytest.fixture(scope="module")
def published():
    return load_evidence(STUDY, "simulated-h200", "book/published")


def beside(evidence, made):
    """Evidence with these made hours, if any."""
    found = replace(evidence)
    found.__dict__["made_hours"] = made
    return found


@pytest.fixture(scope="module")
def evidence(published):
    return beside(published, made_up(published))


def test_pages_say_what_each_interval_is_about(evidence):
    text = outcome.from_hour_to_hour(evidence)
    good = outcome.hour_effects(evidence)["good_share", "mean"]
    assert text.startswith("The workload interval holds at the offered load of these 59 minutes.")
    another = interval(good.another.low, good.another.high, 100)
    assert f"the difference of the good share would be {another} points" in text
    assert "(95 % hour-to-hour interval, by the spread over 60 hours" in text
    recorded = evidence.comparison.good.mean.difference
    assert good.recorded == recorded
    assert good.another.low < good.mean.low < recorded.value


def test_the_figure_shows_every_made_hour_and_is_marked_simulated(evidence):
    panel = robustness.hours_figure(evidence)
    assert panel.caption.startswith("5 of 5 differences have the recorded sign in every made hour")
    assert "In 4 of 5 quantities the recorded hour lies among the 60 made ones" in panel.caption
    assert "(not in largest burst requests)" in panel.caption
    effects = outcome.hour_effects(evidence).values()
    covered = [effect.another_coverage for effect in effects]
    assert 0.92 <= min(covered) <= max(covered) <= 0.97
    assert f"in {percent(min(covered))} to {percent(max(covered))} of cases" in panel.caption
    assert all(len(effect.made) == 60 for effect in effects)
    assert panel.csv.decode().count("\n") == 61
    assert "SIMULATED" in panel.svg and "SIMULATED" in panel.phone


@pytest.mark.parametrize("change", ["rows", "deploy.yaml", "trace", "slo", None])
def test_hours_made_of_other_runs_are_not_shown(published, change, monkeypatch):
    made = made_up(published, 3)
    summary, baseline = made.summary, published.study.baseline
    if change == "slo":
        summary = summary.model_copy(update={"slo": summary.slo.model_copy(update={"itl_ms": 3.0})})
    elif change:
        depends_on = summary.depends_on[baseline] | {change: "other"}
        asked = {"depends_on": summary.depends_on | {baseline: depends_on}}
        summary = summary.model_copy(update=asked)
    monkeypatch.setattr("kvab.pages.evidence.load_hours", lambda *_: replace(made, summary=summary))
    assert (replace(published).made_hours is None) == (change is not None)


def test_without_made_hours_pages_name_the_command(published):
    evidence = beside(published, None)
    assert "(`kvab resample`)" in outcome.from_hour_to_hour(evidence)
    assert "kvab resample" in robustness.hours_figure(evidence).caption
