"""Simulated replays as one Indexed Job: real replays in the emulated cluster's pods."""

import glob
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from clients import wait_for
from controllers import NAMESPACE, pending
from test_preflight import doctor, granted, rules

from kvab.clusters.kubernetes import files, lease
from kvab.clusters.kubernetes.api import Kube, Pod
from kvab.errors import DependencyError, InputError
from kvab.runs import campaign, cell, remote
from kvab.runs import folder as runs
from kvab.runs.cell import cell_text, checkout_of
from kvab.runs.replay import Replay, plan_job
from kvab.study import load_cluster, load_study
from kvab.study.variants import Variant
from kvab.trace.reading import read_trace

pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")

STUDY = "recipes/qwen3-32b/study.yaml"
NAME = "qwen3-32b-campaign"
ARMS = ("agg-round-robin", "disagg-kv-router")
PODS = {"campaign_image": "registry/kvab:1.4.0", "campaign_parallelism": 2}


@pytest.fixture
def cluster(emulated):
    """The emulated cluster with an image for campaigns; two arms at two loads are the sweep."""
    content = yaml.safe_load((emulated.checkout / STUDY).read_text())
    for name in set(content["configurations"]) - set(ARMS):
        content["configurations"].pop(name)
    content["capacity"].update(loads=[1, 4], repeats=1, splits=[{"prefill": 6, "decode": 2}],
                               tensor_parallel=[4], layout_loads=[1])  # fmt: skip
    (emulated.checkout / STUDY).write_text(yaml.safe_dump(content))
    emulated.profile(limits={"prepare_s": 30}, **PODS)
    return emulated


def jobs_of(trace, folder, arms=ARMS, loads=(1, 4)):
    study, workload = load_study(), read_trace(trace)
    return [
        plan_job(study, "simulated-h200", name, 1, None, workload, folder, Variant(load))
        for name in arms for load in map(float, loads)
    ]  # fmt: skip


def capacity(cluster, trace):
    command = [sys.executable, "-m", "kvab", "capacity", "--on", "emulated"]
    return subprocess.Popen(
        [*command, "--trace", str(trace), "--runs", str(cluster.runs)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def job(cluster):
    return cluster.store.get("jobs", NAMESPACE, NAME)


def sent(cluster):
    """Return how many Jobs were created."""
    created = f"/jobs?{'fieldValidation=Strict&fieldManager=kvab'}"
    return sum(method == "POST" and path.endswith(created) for method, path in cluster.server.seen)


def on_volume(cluster):
    # Unlike pathlib's, it passes over what is renamed while it looks, and over what is hidden.
    found = glob.glob(f"{cluster.node.volume}/runs/**/run.json", recursive=True)  # noqa: PTH207
    return [Path(path).parent for path in found]


def halves(*folders):
    """Return what is written beside its place, anywhere below the folders."""
    found = []
    for folder in folders:
        found += glob.glob(f"{folder}/**/.*/", recursive=True, include_hidden=True)  # noqa: PTH207
    return found


def complete(jobs):
    return [planned.state for planned in campaign.plan(jobs)] == ["complete"] * len(jobs)


def troubled(cluster, trouble):
    """Let a shell line run in every pod before its replay; in it $JOB_COMPLETION_INDEX is set."""
    line = f'if [ -n "$JOB_COMPLETION_INDEX" ]; then {trouble}; fi'
    cluster.node._program("python", f'{line}\nexec {sys.executable} "$@"')


@pytest.mark.slow
def test_a_sweep_on_a_cluster_is_the_sweep_of_this_machine(cluster, small_trace, tmp_path):
    process = capacity(cluster, small_trace)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    # Four of load under each of two clocks, and one with larger workers.
    assert "9 cells: 0 complete, 9 to replay" in said
    assert "of 9 cells done, 0 failed" in said
    swept = json.loads(
        (cluster.runs / "qwen3-32b/simulated-h200/capacity/capacity.json").read_text()
    )
    assert out.strip().endswith("capacity")
    assert len(swept["cells"]) == 10  # one of the split, which is that of a cell of load
    assert {*swept["tables"]} == {"capacity.parquet", "bounds.parquet", "best.parquet",
                                  "costs.parquet"}  # fmt: skip
    assert cluster.left() == []
    claims = cluster.store.find("persistentvolumeclaims")
    assert [claim["metadata"]["name"] for claim in claims] == ["perf-cache"]
    assert halves(cluster.runs, cluster.node.volume) == []

    for there, here in zip(
        jobs_of(small_trace, cluster.runs), jobs_of(small_trace, tmp_path / "here"), strict=True
    ):
        replay = Replay(here)
        replay.prepare()
        replay.deploy()
        replay.replay()
        local, remote = runs.read_run(replay.collect()), runs.read_run(there.path)
        assert local.manifest.depends_on == remote.manifest.depends_on
        assert local.manifest.study_digest == remote.manifest.study_digest
        assert (
            local.manifest.files["manifests/perf.yaml"]
            == (remote.manifest.files["manifests/perf.yaml"])
        )
        if there.configuration == "agg-round-robin":
            pd.testing.assert_frame_equal(local.requests, remote.requests)


def test_an_index_that_fails_is_tried_again_and_named_if_it_keeps_failing(cluster, small_trace):
    flag = cluster.folder / "once"
    flag.touch()
    once = f'[ "$JOB_COMPLETION_INDEX" = 0 ] && rm "{flag}" 2>/dev/null && kill -9 $$'
    always = '[ "$JOB_COMPLETION_INDEX" = 1 ] && echo no room on the disk >&2 && exit 7'
    troubled(cluster, f"{once}; {always}")
    jobs = jobs_of(small_trace, cluster.runs, loads=(4,))
    cluster.server.rules = [
        rule for rule in rules(cluster)
        if {need.resource for need in remote.needs()} & {*rule["resources"]}
    ]  # fmt: skip
    with pytest.raises(DependencyError) as raised:
        remote.replay_on(jobs, "emulated")
    assert str(raised.value) == (
        "1 of 2 cells failed; first: index 1, qwen3-32b/simulated-h200/capacity/disagg-kv-router/"
        "x4: Error, exit code 7; its log ends with: no room on the disk; the others are kept, run "
        "the same command again"
    )
    assert complete(jobs[:1])
    assert not jobs[1].path.exists()
    tries = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert sorted(path.name for path in cluster.folder.glob(f"{NAME}-?-*.log")) == [
        f"{NAME}-{index}-{number}.log" for index, number in tries
    ]
    kept = cluster.runs / "qwen3-32b/simulated-h200/campaign-diagnostics"
    assert "no room" in (kept / f"logs/{NAME}-1-2.replay.log").read_text()
    assert cluster.left() == []
    # It asks for all that it declares, and the role grants it.
    used = cluster.server.used | {("", "pods/exec", "create")}
    asked = {(need.group, need.resource, need.verb) for need in remote.needs()}
    assert used == asked
    assert asked <= granted(rules(cluster))


@pytest.mark.slow
def test_a_killed_client_finds_its_job_again(cluster, small_trace):
    first = capacity(cluster, small_trace)
    wait_for(lambda: on_volume(cluster), "complete run on the volume")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    uid = job(cluster)["metadata"]["uid"]
    assert not job(cluster)["status"].get("conditions")  # it goes on without us
    assert not list(cluster.runs.rglob("run.json"))

    jobs = jobs_of(small_trace, cluster.runs, arms=ARMS[1:])  # as if the others were here already
    seen = []
    cluster.server.admission.append(lambda plural, manifest: seen.append(job(cluster)) or None)
    remote.replay_on(jobs, "emulated")
    assert complete(jobs)
    assert {held["metadata"]["uid"] for held in seen} == {uid}
    assert sent(cluster) == 1
    assert cluster.left() == []


@pytest.mark.slow
def test_a_stopped_campaign_leaves_nothing_half_and_goes_on(cluster, small_trace):
    first = capacity(cluster, small_trace)
    wait_for(lambda: on_volume(cluster), "complete run on the volume")
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "complete runs are kept" in said
    assert cluster.left() == []
    assert not list(cluster.runs.rglob("run.json"))
    wait_for(lambda: not halves(cluster.node.volume), "end of the pods")
    kept = {path: (path / "run.json").read_bytes() for path in on_volume(cluster)}
    assert 0 < len(kept) < 6

    again = capacity(cluster, small_trace)
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert {path: (path / "run.json").read_bytes() for path in kept} == kept  # none is repeated
    assert complete(jobs_of(small_trace, cluster.runs))
    assert cluster.left() == []


def test_a_damaged_folder_is_refused_and_only_its_cell_is_repeated(cluster, small_trace, capsys):
    jobs = jobs_of(small_trace, cluster.runs, ARMS[:1], (4, 1))
    place = cluster.node.volume / "runs" / jobs[0].path.relative_to(cluster.runs)
    for job in jobs_of(small_trace, cluster.node.volume / "runs", ARMS[:1], (4, 1)):
        Replay(job).run()
    python = cluster.node.programs / "python"
    real = python.read_text()
    troubled(cluster, "exit 0")  # as if the pods had made these runs; the repeated one makes its

    def damage(plural, manifest):
        if manifest["metadata"]["name"] == f"{NAME}-files" and place.exists():
            path = place / "requests.parquet"
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    cluster.server.admission.append(damage)
    with pytest.raises(DependencyError, match=r"1 of 2 cells failed; .*/x4/requests.parquet: exp"):
        remote.replay_on(jobs, "emulated")
    assert not jobs[0].path.exists()
    assert halves(cluster.runs) == []
    assert cluster.left() == []
    assert complete(jobs[1:])

    cluster.server.admission.remove(damage)
    python.write_text(real)
    capsys.readouterr()
    missing = [job for job, found in zip(jobs, campaign.plan(jobs), strict=True)
               if found.state != "complete"]  # fmt: skip
    campaign.replay_all(missing, on="emulated")
    assert "of 1 cells done" in capsys.readouterr().err
    assert complete(jobs)
    assert len(list(place.parent.glob("x4.set-aside-*"))) == 1


def test_a_job_whose_pods_cannot_be_created_ends_with_the_cause(cluster, small_trace):
    def no_pods(plural, manifest):
        if plural == "pods" and "job-name" in manifest["metadata"].get("labels", {}):
            return 403, 'pods "x" is forbidden: exceeded quota: pods, requested: pods=1, used: ...'

    cluster.server.admission.append(no_pods)
    with pytest.raises(DependencyError, match=r"FailedCreate: .*exceeded quota: pods, .*; free wh"):
        remote.replay_on(jobs_of(small_trace, cluster.runs, loads=(4,)), "emulated")
    kept = cluster.runs / "qwen3-32b/simulated-h200/campaign-diagnostics"
    assert "exceeded quota" in (kept / "events.json").read_text()
    assert cluster.left() == []


def test_what_cannot_be_cleared_up_is_said_after_what_failed(cluster, small_trace, monkeypatch):
    def broken(*_):
        monkeypatch.setattr(remote.IndexedJob, "_remove", broken)
        raise DependencyError("the API server is gone")

    troubled(cluster, "exit 0")
    monkeypatch.setattr(remote.IndexedJob, "_collect", broken)
    with pytest.raises(DependencyError, match=r"^the API .* gone; then, clearing up: the API .*"):
        remote.replay_on(jobs_of(small_trace, cluster.runs, loads=(4,)), "emulated")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_names_on_the_volume_that_leave_the_folder_are_refused(cluster, tmp_path, name):
    folder = cluster.node.volume / "runs" / "r1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"files": {name: "0" * 64}}))
    container = {"name": "main", "image": "python:3.12-slim-bookworm"}
    manifest = {"metadata": {"name": "p", "labels": {}}, "spec": {"containers": [container]}}
    cluster.server.do(cluster.store.create, "pods", NAMESPACE, manifest)
    pod = Pod(Kube(load_cluster("emulated")), manifest)
    with pytest.raises(DependencyError, match=r"run\.json: expected a run's, got another file"):
        files.bring_run(pod, "/perf-cache/runs/r1", tmp_path / "here")
    assert not list(tmp_path.rglob("outside"))
    assert not Path("/tmp/outside").exists()


# --- what is refused -----------------------------------------------------------------------------


def test_another_campaign_under_way_is_left_alone(cluster, small_trace):
    cluster.script.pods[NAME] = lambda pod: pending(True)
    other = jobs_of(small_trace, cluster.runs, loads=(4,))
    for manifest in remote.manifests(load_cluster("emulated"), load_study(), other):
        plural = f"{manifest['kind'].lower()}s"
        cluster.server.do(cluster.store.create, plural, NAMESPACE, manifest)
    uid = job(cluster)["metadata"]["uid"]
    with pytest.raises(
        DependencyError, match=f"another campaign of qwen3-32b .* delete job {NAME}"
    ):
        remote.replay_on(jobs_of(small_trace, cluster.runs), "emulated")
    assert job(cluster)["metadata"]["uid"] == uid


def test_the_campaign_of_a_client_that_lives_is_not_joined(cluster, small_trace, monkeypatch):
    cluster.script.pods[rf"{NAME}-\d"] = lambda pod: pending(True)
    jobs = jobs_of(small_trace, cluster.runs)
    made = remote.manifests(load_cluster("emulated"), load_study(), jobs)
    with monkeypatch.context() as patch:
        patch.setattr(lease, "identity", lambda: f"anna@vm/{os.getppid()}.1/here")
        other = lease.Lease(Kube(load_cluster("emulated")), made[1])
        other.take()
        other._ended.set()
    for manifest in made:
        plural = f"{manifest['kind'].lower()}s"
        cluster.server.do(cluster.store.create, plural, NAMESPACE, manifest)
    uid = job(cluster)["metadata"]["uid"]
    monkeypatch.setattr(lease, "_machine", lambda: "here")
    monkeypatch.setattr(lease, "_process", lambda pid: f"{pid}.1")  # its process is alive
    with pytest.raises(lease.Held, match=r"anna@vm \(process \d+\) has this run .* to end$"):
        remote.replay_on(jobs, "emulated")
    assert job(cluster)["metadata"]["uid"] == uid


def test_a_pod_that_cannot_start_ends_the_campaign_with_its_cause(cluster, small_trace):
    def unpullable(pod):
        container = {"name": "replay", "restartCount": 0, "ready": False, "state": {
            "waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}  # fmt: skip
        return pending(True, container=container)

    cluster.script.pods[rf"{NAME}-\d"] = unpullable
    with pytest.raises(DependencyError, match="ImagePullBackOff: not found; check image"):
        remote.replay_on(jobs_of(small_trace, cluster.runs), "emulated")
    assert cluster.left() == []


@pytest.mark.parametrize(
    ("on", "simulated", "said"),
    [
        ("emulated", "simulated-h200", "campaign_image: expected an image with kvab"),
        ("simulated-h200", "simulated-h200", "expected kind kubernetes to replay on"),
        ("emulated", "emulated", "only simulated replays are sent to another cluster"),
    ],
)
def test_what_cannot_be_sent_is_refused(emulated, small_trace, on, simulated, said):
    study, workload = load_study(), read_trace(small_trace)
    asked = plan_job(study, simulated, ARMS[0], 1, None, workload, emulated.runs)
    with pytest.raises(InputError, match=said):
        campaign.replay_all([asked], on=on)
    assert emulated.server.seen == []


def test_an_image_of_other_versions_is_refused_in_its_pod(
    cluster, small_trace, monkeypatch, capsys
):
    asked = jobs_of(small_trace, cluster.runs, loads=(4,))[0]
    content = json.loads(cell_text(asked))
    content["depends_on"]["aisimulate"] = "0.0.1"
    checkout = cluster.folder / "campaign"
    for name, text in (checkout_of(asked) | {"cells/0": json.dumps(content)}).items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr("sys.argv", ["cell", str(checkout), str(small_trace), str(cluster.runs)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("KVAB_ROOT", str(checkout))  # as the pod sets it for itself
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(SystemExit) as ended:
        cell.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "x4: expected aisimulate 0.0.1, got" in error
    assert error.count("\n") == 1
    assert not cluster.runs.exists()


def test_doctor_asks_whether_a_campaign_would_be_taken(cluster):
    assert "ok    dry run, campaign: 2 manifests valid under strict validation" in doctor().stdout
