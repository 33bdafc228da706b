"""Artifacts out of the cluster, what a run records of it, and its way out."""

import copy
import errno
import json
import re

import pytest
import yaml
from apiserver import Fault
from controllers import NAMESPACE
from node import SECRET_TEXT
from store import Conflict

from kvab.clusters.kubernetes import files
from kvab.errors import DependencyError
from kvab.runs import folder as runs


def artifacts(emulated):
    (folder,) = [path.parent for path in emulated.node.volume.rglob("finished.json")]
    return folder


def test_artifacts_arrive_whole_and_what_no_page_reads_stays(emulated, small_trace):
    run = runs.read_run(emulated.run(small_trace))
    source = artifacts(emulated)
    marker = json.loads((source / "finished.json").read_text())
    for name in ("profile_export.jsonl", "profile_export_aiperf.json", "console.log"):
        assert run.manifest.files[f"artifacts/{name}"] == marker["files"][name]["sha256"]
    assert "inputs.json" in marker["files"]
    assert not (run.path / "artifacts" / "inputs.json").exists()
    assert not list(run.path.parent.glob(".r1.collecting*"))


def test_a_cut_stream_is_resumed_in_parts(emulated, small_trace, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    replay = emulated.finished(small_trace)
    size = (artifacts(emulated) / "profile_export.jsonl").stat().st_size
    assert size > 30_000
    cut = Fault("EXEC", "profile_export.jsonl", cut=3_000, times=2)
    emulated.server.faults.append(cut)
    run = runs.read_run(replay.collect())
    replay.teardown()
    assert cut.times == 0
    assert run.manifest.counts.received == 40


def impatient(replay):
    """Let a replay give up a connection that is lost again and again."""
    kube = replay.cluster.kube
    kube.limits = kube.limits.model_copy(update={"retry_s": 0.3})
    return replay


def test_what_an_earlier_try_brought_is_not_fetched_again(emulated, small_trace, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    replay = impatient(emulated.finished(small_trace))
    broken = Fault("EXEC", r"profile_export.jsonl 20001", cut=0, times=99)
    emulated.server.faults.append(broken)
    cluster = replay.cluster
    with pytest.raises(DependencyError, match=r"exec in pod .*-files: .*connection was lost"):
        cluster.collect()
    broken.times = 0
    emulated.server.seen.clear()
    requests = cluster.collect().requests
    assert len(requests) == 40
    asked = [path for _, path in emulated.server.seen if "profile_export.jsonl" in path]
    assert asked[0].count("command=20001") == 1
    replay.teardown()


def test_a_file_that_changed_after_its_marker_is_refused(emulated, small_trace):
    replay = emulated.finished(small_trace)
    path = artifacts(emulated) / "profile_export.jsonl"
    path.write_bytes(path.read_bytes().replace(b"100.0", b"999.0", 1))
    with pytest.raises(DependencyError, match=r"profile_export\.jsonl: expected sha256"):
        replay.collect()
    assert runs.read_manifest(replay.job.path).status == "failed"
    assert emulated.left() == []


def test_artifacts_without_a_marker_are_refused(emulated, small_trace):
    replay = emulated.finished(small_trace)
    (artifacts(emulated) / "finished.json").unlink()
    with pytest.raises(DependencyError, match="the benchmark did not finish its artifacts"):
        replay.collect()


def test_a_workload_of_ours_is_brought_to_the_volume_once(emulated, small_trace, monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 1_000)
    emulated.server.faults.append(Fault("EXEC", "seek=", cut=0, times=1))
    emulated.run(small_trace)
    (staged,) = (emulated.node.volume / "traces").iterdir()
    rows = [json.loads(line) for line in staged.read_text().splitlines()]
    assert len(rows) == 40
    emulated.run(small_trace, "agg-round-robin")  # the same workload: nothing is left beside it
    assert [*staged.parent.iterdir()] == [staged]
    emulated.server.seen.clear()
    emulated.run(small_trace, rows=20)
    assert len(list((emulated.node.volume / "traces").iterdir())) == 2


def test_a_full_disk_frees_the_gpus_and_a_later_start_collects(emulated, small_trace, monkeypatch):
    replay = emulated.finished(small_trace)

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(replay), "_write", full)
        with pytest.raises(DependencyError, match=r"cannot write .*run the same command again"):
            replay.collect()
    assert emulated.left() == []
    before = len(emulated.server.seen)
    again = emulated.replay(small_trace)
    again.prepare()
    again.deploy()
    again.replay()
    run = runs.read_run(again.collect())
    again.teardown()
    posted = [path for method, path in emulated.server.seen[before:] if method == "POST"]
    assert not any("dynamographdeployments?" in path and "dryRun" not in path for path in posted)
    assert not any("/jobs?" in path and "dryRun" not in path for path in posted)
    assert run.manifest.counts.received == 40
    assert run.manifest.versions["kubernetes"] == "v1.33.4"
    assert len(run.manifest.host["pods"]) == 9
    assert run.manifest.host["router"]["after"]["events"] > 0
    assert not list(run.path.parent.glob(".r1.*"))
    assert emulated.left() == []


def test_a_connection_lost_for_good_while_collecting_loses_no_replay(emulated, small_trace):
    replay = impatient(emulated.finished(small_trace))
    broken = Fault("EXEC", "profile_export.jsonl", cut=0, times=99)
    emulated.server.faults.append(broken)
    with pytest.raises(DependencyError, match="run the same command again to collect"):
        replay.collect()
    broken.times = 0
    assert emulated.left() == []
    run_id = replay.cluster.run_id
    run = runs.read_run(emulated.run(small_trace))
    applied = json.loads((run.path / "manifests/applied/job.json").read_text())
    assert applied["metadata"]["annotations"]["kvab-run-id"] == run_id


def test_changed_manifests_are_replayed_although_older_artifacts_wait(emulated, small_trace):
    replay = impatient(emulated.finished(small_trace))
    broken = Fault("EXEC", "profile_export.jsonl", cut=0, times=99)
    emulated.server.faults.append(broken)
    with pytest.raises(DependencyError):
        replay.collect()
    broken.times = 0
    path = emulated.checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.yaml"
    path.write_text(path.read_text().replace('"0.90"', '"0.85"'))
    run = runs.read_run(emulated.run(small_trace))
    applied = json.loads((run.path / "manifests/applied/job.json").read_text())
    assert applied["metadata"]["annotations"]["kvab-run-id"] != replay.cluster.run_id


def test_whatever_breaks_while_the_run_is_written_nothing_stays_up(
    emulated, small_trace, monkeypatch
):
    replay = emulated.finished(small_trace)

    def break_down(*_):
        raise KeyError("a defect of ours")

    monkeypatch.setattr(type(replay), "_write", break_down)
    with pytest.raises(DependencyError, match=r"a defect of ours.*keeping diagnostics"):
        replay.collect()
    assert emulated.left() == []
    again = emulated.replay(small_trace)
    again.lock.take()  # free again
    again.lock.leave()


def test_a_second_ctrl_c_while_diagnostics_are_kept_still_tears_down(
    emulated, small_trace, monkeypatch
):
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(replay.cluster, "replay", interrupt)
    monkeypatch.setattr(replay.cluster, "diagnostics", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replay.replay()
    assert emulated.left() == []
    assert not replay.lock._lock.is_locked


# --- what is recorded --------------------------------------------------------------------------


def test_a_run_records_where_and_on_what_it_ran(emulated, small_trace):
    manifest = runs.read_run(emulated.run(small_trace)).manifest
    versions = manifest.versions
    assert versions["kubernetes"] == "v1.33.4"
    assert versions["operator"] == "1.5.0"
    assert versions["dynamographdeployments"] == "v1alpha1, v1beta1 (stored)"
    assert versions["model revision"] == "9216db5781bf21249d130ec9da846c4624c16137"
    assert re.fullmatch(r".*@sha256:(ab){32}", versions["image VllmPrefillWorker"])
    pods = manifest.host["pods"]
    assert len(pods) == 9
    worker = pods["disagg-router-6p-2d-vllmprefillworker-0"]
    assert worker["component"] == "VllmPrefillWorker"
    assert worker["node"] in ("gpu-1", "gpu-2")
    assert worker["gpu_product"] == "NVIDIA-H200"
    assert worker["gpus"] == ["0, NVIDIA H200, GPU-1", "1, NVIDIA H200, GPU-2"]
    assert manifest.host["restarts"] == dict.fromkeys(pods, 0)
    assert manifest.host["router"]["after"]["events"] > manifest.host["router"]["before"]["events"]
    assert "manifests/applied/dynamographdeployment.json" in manifest.files


def test_what_is_applied_is_the_recipe_with_the_profiles_values(emulated, small_trace):
    emulated.profile(
        image_pull_secret="registry",
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    )
    path = emulated.run(small_trace) / "manifests" / "applied" / "dynamographdeployment.json"
    applied = json.loads(path.read_text())
    for component in applied["spec"]["components"]:
        pod = component["podTemplate"]["spec"]
        assert pod.pop("imagePullSecrets") == [{"name": "registry"}]
        assert pod.pop("tolerations")[0]["key"] == "nvidia.com/gpu"
        selector = pod.pop("nodeSelector", None)
        assert (selector is None) == (component["name"] == "Frontend")
    recipe = emulated.checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.v1beta1.yaml"
    assert applied["spec"] == yaml.safe_load(recipe.read_text())["spec"]


def test_no_secret_reaches_a_file_or_the_screen(emulated, small_trace, capsys):
    emulated.node.completion = None
    emulated.profile(limits={"deploy_s": 1})
    replay = emulated.replay(small_trace)
    replay.prepare()
    with pytest.raises(DependencyError):
        replay.deploy()
    kept = [path for path in replay.job.path.rglob("*") if path.is_file()]
    logs = [path for path in kept if "logs" in path.parts]
    assert len(logs) >= 9
    for path in kept:
        content = path.read_bytes()
        assert SECRET_TEXT.encode() not in content, path
        assert b"secret-token-of-the-test" not in content, path
    assert any("HF_TOKEN=***" in path.read_text() for path in logs)
    assert SECRET_TEXT not in capsys.readouterr().err


# --- the way out ---------------------------------------------------------------------------------


def test_storage_outlives_the_run_and_is_prepared_once(emulated, small_trace):
    emulated.deployed(small_trace, rows=10).teardown()
    claims = {c["metadata"]["name"]: c["metadata"]["uid"]
              for c in emulated.store.find("persistentvolumeclaims")}  # fmt: skip
    assert set(claims) == {"model-cache", "compilation-cache", "perf-cache"}
    download = emulated.store.get("jobs", NAMESPACE, "model-download")["metadata"]["uid"]
    emulated.deployed(small_trace, repeat=2, rows=12).teardown()
    assert claims == {c["metadata"]["name"]: c["metadata"]["uid"]
                      for c in emulated.store.find("persistentvolumeclaims")}  # fmt: skip
    again = emulated.store.get("jobs", NAMESPACE, "model-download")["metadata"]["uid"]
    assert again == download


def test_a_finalizer_that_nobody_removes_is_reported_and_left_alone(emulated, small_trace):
    emulated.profile(limits={"teardown_s": 1})
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()
    emulated.script.operator_up = False
    with pytest.raises(DependencyError) as raised:
        replay.teardown()
    assert "held by the finalizer nvidia.com/finalizer after 1 s" in str(raised.value)
    assert "Nothing was stripped" in str(raised.value)
    held = emulated.store.get("dynamographdeployments", NAMESPACE, "disagg-router-6p-2d")
    assert held["metadata"]["finalizers"] == ["nvidia.com/finalizer"]
    emulated.script.operator_up = True
    emulated.replay(small_trace).teardown()  # the next start finishes it
    assert emulated.left() == []


def test_a_deployment_of_another_owner_is_never_deleted(emulated, small_trace):
    replay = emulated.replay(small_trace)
    replay.prepare()
    replay.deploy()
    name = "disagg-router-6p-2d"

    def replaced():
        held = copy.deepcopy(emulated.store.get("dynamographdeployments", NAMESPACE, name))
        held["metadata"]["finalizers"] = []
        emulated.store.update("dynamographdeployments", held)
        emulated.store.delete("dynamographdeployments", NAMESPACE, name)
        del held["metadata"]["annotations"]
        emulated.store.create("dynamographdeployments", NAMESPACE, held)

    emulated.server.do(replaced)
    replay.teardown()
    assert emulated.store.get("dynamographdeployments", NAMESPACE, name)


def test_a_download_that_fails_says_its_last_words(emulated, small_trace):
    emulated.script.pods["model-download"] = lambda pod: {"phase": "Failed"}
    replay = emulated.replay(small_trace)
    with pytest.raises(DependencyError, match="Job model-download: BackoffLimitExceeded"):
        replay.prepare()
    assert emulated.store.get("jobs", NAMESPACE, "model-download") is None


def test_a_download_over_its_deadline_goes_on_by_itself(emulated, small_trace):
    emulated.profile(limits={"prepare_s": 0.5, "grace_s": 60})
    emulated.script.pods["model-download"] = lambda pod: {"phase": "Running"}
    replay = emulated.replay(small_trace)
    with pytest.raises(DependencyError, match=r"not done in 0\.5 s; it goes on: run again later"):
        replay.prepare()
    assert emulated.store.get("jobs", NAMESPACE, "model-download")


def test_the_emulated_server_refuses_what_a_real_one_refuses(emulated):
    secret = emulated.store.get("secrets", NAMESPACE, "hf-token-secret")
    stale = copy.deepcopy(secret)
    emulated.server.do(lambda: emulated.store.change("secrets", secret, data={}))
    with pytest.raises(Conflict, match="has been modified"):
        emulated.server.do(lambda: emulated.store.change("secrets", stale, data={}))
    with pytest.raises(Conflict, match="already exists"):
        emulated.server.do(lambda: emulated.store.create("secrets", NAMESPACE, stale))
