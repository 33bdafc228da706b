"""One run on the simulated cluster: what changes it, what keeps it, what it leaves behind."""

import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest
import yaml

from kvab.clusters import simulated
from kvab.clusters.base import ClusterRun, Collected
from kvab.clusters.simulated import prediction, simulate
from kvab.errors import DependencyError, InputError
from kvab.runs import campaign
from kvab.runs import folder as runs
from kvab.runs.replay import Replay, plan_job, start
from kvab.study import load_study
from kvab.study.topology import read_topology
from kvab.trace.reading import read_trace

STUDY = "recipes/qwen3-32b/study.yaml"
DEPLOY = "recipes/qwen3-32b/vllm/{}/deploy.yaml"

pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")


def job(
    small_trace, folder, configuration="disagg-kv-router", repeat=1, rows=None,
    cluster="simulated-h200",
):  # fmt: skip
    trace = read_trace(small_trace)
    return plan_job(load_study(), cluster, configuration, repeat, rows, trace, folder)


def change(checkout, configuration, edit):
    path = checkout / DEPLOY.format(configuration)
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))


def test_a_run_holds_every_row_with_its_lengths(small_runs, small_trace):
    run = runs.read_run(small_runs / "qwen3-32b" / "simulated-h200" / "disagg-kv-router" / "r1")
    trace = read_trace(small_trace)
    assert (run.requests["input_tokens"] == trace.input_tokens).all()
    assert (run.requests["output_tokens"] == trace.output_tokens).all()
    assert run.requests["error"].isna().all()
    assert run.requests["prefill_worker"].max() <= 5
    assert run.requests["decode_worker"].max() <= 1


def test_a_complete_run_is_not_repeated(small_runs, small_trace):
    before = (small_runs / "qwen3-32b/simulated-h200/agg-round-robin/r1/run.json").read_bytes()
    replay = start(
        STUDY, "simulated-h200", "agg-round-robin", trace=str(small_trace), runs=small_runs
    )
    assert replay.complete
    assert "nothing is repeated" in replay.prepare()
    assert (replay.collect() / "run.json").read_bytes() == before


def five_and_three(text):
    return text.replace("replicas: 6", "replicas: 5").replace("replicas: 2", "replicas: 3")


def test_a_change_of_one_manifest_replays_that_configuration_alone(
    checkout, small_runs, small_trace
):
    change(checkout, "disagg-kv-router", five_and_three)
    jobs = [job(small_trace, small_runs, name) for name in ("agg-round-robin", "disagg-kv-router")]
    planned = campaign.plan(jobs)
    assert [run.state for run in planned] == ["complete", "changed"]
    assert planned[1].why == "changed since: deploy.yaml"


def test_the_manifest_decides_what_is_simulated(checkout, small_trace, tmp_path):
    def simulated():
        planned = job(small_trace, tmp_path)
        return prediction(read_topology(planned.recipe), planned.cluster, tmp_path / "t", 512)

    before = simulated()["engine"]["workers"]["prefill"]
    change(checkout, "disagg-kv-router", five_and_three)
    assert before["parallelism"]["replicas"] == 6
    assert simulated()["engine"]["workers"]["prefill"]["parallelism"]["replicas"] == 5
    decode = simulated()["engine"]["workers"]["decode"]
    assert decode["kv_cache"]["prefix_caching"] is False


def test_a_comment_in_a_manifest_changes_nothing(checkout, small_trace, tmp_path):
    before = job(small_trace, tmp_path).depends_on()
    change(checkout, "disagg-kv-router", lambda text: text + "\n# a comment\n")
    assert job(small_trace, tmp_path).depends_on() == before


def test_the_service_level_of_the_study_does_not_replay(checkout, small_trace, tmp_path):
    before = job(small_trace, tmp_path).depends_on()
    path = checkout / STUDY
    content = yaml.safe_load(path.read_text())
    content["margins"]["ttft_ms"] = 0.2
    path.write_text(yaml.safe_dump(content))
    assert job(small_trace, tmp_path).depends_on() == before


def test_a_repeat_is_a_shuffle_within_bursts(small_trace, tmp_path):
    first, second = (job(small_trace, tmp_path, repeat=n).order() for n in (1, 2))
    assert (first == sorted(first)).all()
    assert (first != second).any()
    assert (first // 5 == second // 5).all()


def test_manifests_of_another_configuration_are_refused(checkout, small_trace, tmp_path):
    for name in ("deploy.yaml", "perf.yaml"):
        source = checkout / "recipes/qwen3-32b/vllm/disagg-round-robin" / name
        (checkout / "recipes/qwen3-32b/vllm/disagg-kv-router" / name).write_text(source.read_text())
    with pytest.raises(
        InputError, match=r"deploy\.yaml: .* disaggregated and kv, as .* got .*round_robin"
    ):
        job(small_trace, tmp_path)


def test_a_run_on_gpus_depends_on_the_scripts_and_no_other_does(checkout, small_trace, tmp_path):
    def told():
        jobs = (job(small_trace, tmp_path, cluster=name) for name in ("example-h200", "live-cpu"))
        return [each.depends_on() for each in jobs]

    before = told()
    path = checkout / "recipes/qwen3-32b/benchmark/run.sh"
    path.write_text(path.read_text() + "# changed\n")
    after = told()
    assert before[1] == after[1]
    changed = {key for key in before[0] if before[0][key] != after[0][key]}
    assert changed == {"benchmark"}


def test_a_goodput_that_is_not_the_studys_is_refused(checkout, small_trace, tmp_path):
    path = checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/perf.yaml"
    path.write_text(
        path.read_text().replace("time_to_first_token:2000", "time_to_first_token:1000")
    )
    with pytest.raises(InputError, match=r"expected the goodput of study\.yaml"):
        job(small_trace, tmp_path)


def test_replays_side_by_side_leave_whole_runs(small_trace, tmp_path):
    jobs = [
        job(small_trace, tmp_path, name, rows=20) for name in ("agg-kv-router", "agg-round-robin")
    ]
    campaign.replay_all(jobs)
    assert [runs.read_run(each.path).manifest.counts.received for each in jobs] == [20, 20]


def test_a_shorter_run_moves_the_longer_aside_and_it_comes_back(small_trace, tmp_path):
    whole, part = (
        job(small_trace, tmp_path, "agg-kv-router"),
        job(small_trace, tmp_path, "agg-kv-router", rows=10),
    )
    campaign.replay_all([whole])
    campaign.replay_all([part])
    assert len(runs.read_run(part.path).requests) == 10
    assert [run.state for run in campaign.plan([whole])] == ["complete"]
    assert len(runs.read_run(whole.path).requests) == 40


def test_a_second_start_waits_its_turn_and_repeats_nothing(small_trace, tmp_path):
    first, second = (Replay(job(small_trace, tmp_path, "agg-round-robin")) for _ in range(2))
    first.prepare()
    with pytest.raises(DependencyError, match="another start of this run is going on"):
        second.prepare()
    first.deploy()
    first.replay()
    path = first.collect()
    assert "nothing is repeated" in second.prepare()
    assert [each.name for each in path.parent.iterdir()] == ["r1"]


class Failing(ClusterRun):
    """A run whose replay ends with an error, and that has something to tell and to stop."""

    def __init__(self, error):
        self.error, self.torn_down = error, False

    def prepare(self):
        return {}

    def deploy(self):
        raise AssertionError("nobody deploys")

    def replay(self, on_progress=None):
        raise self.error

    def collect(self):
        raise AssertionError("there is nothing to collect")

    def diagnostics(self):
        return Collected(requests=None, files={"log": b"why"})

    def teardown(self, *, keep_answers):
        assert keep_answers
        self.torn_down = True
        return ""


def failing(small_trace, folder, error):
    replay = Replay(job(small_trace, folder))
    replay.cluster = Failing(error)
    replay.prepare()
    return replay


def test_a_full_disk_is_told_in_one_line(small_trace, tmp_path):
    replay = failing(small_trace, tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(InputError, match=r"replay: cannot write \(.*No space left.*free space"):
        replay.replay()
    assert replay.cluster.torn_down


def test_diagnostics_that_cannot_be_kept_keep_nothing_running(small_trace, tmp_path, monkeypatch):
    def full(*_):
        raise InputError("cannot write the run (No space left on device); free space")

    replay = failing(small_trace, tmp_path, DependencyError("a worker ended"))
    monkeypatch.setattr(runs, "write_run", full)
    with pytest.raises(DependencyError, match="a worker ended; then, keeping diagnostics: cannot"):
        replay.replay()
    assert replay.cluster.torn_down
    replay.lock.take()  # it is free for the next start


def test_ctrl_c_while_the_simulator_loads_is_kept_for_afterwards():
    reached = []
    with pytest.raises(KeyboardInterrupt), simulated.interrupted_later():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_simulation_leaves_no_name_in_the_temporary_folder(small_trace, tmp_path, monkeypatch):
    seen = []

    def look(config, progress):
        (path,) = config["traffic"]["source"]["paths"]
        seen.extend([*tmp_path.iterdir(), len(Path(path).read_text().splitlines())])
        raise DependencyError("seen")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(simulated, "run_prediction", look)
    planned = job(small_trace, tmp_path / "runs")
    with pytest.raises(DependencyError, match="seen"):
        simulate(planned.cluster, planned.topology, planned.trace, planned.order())
    assert seen == [planned.rows]
