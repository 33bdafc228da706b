"""A whole run on the emulated cluster: what it leaves, and what it takes away."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from controllers import NAMESPACE

from kvab.book.publish import publish
from kvab.errors import DependencyError
from kvab.runs import folder as runs


def held(emulated):
    return emulated.store.get("configmaps", NAMESPACE, "benchmark")


def test_scripts_that_kubectl_applied_serve_every_run_and_stay(emulated, small_trace):
    emulated.scripts()
    before = held(emulated)
    path = emulated.run(small_trace)
    assert held(emulated) == before
    kept = json.loads((path / "manifests/applied/configmap.json").read_text())
    assert kept["data"] == before["data"]


def test_a_run_makes_the_scripts_where_they_are_not_and_the_next_finds_them(emulated, small_trace):
    first, second = (emulated.replay(small_trace, repeat=repeat) for repeat in (1, 2))
    for replay in (first, second):
        replay.prepare()
        replay.deploy()
        uid = held(emulated)["metadata"]["uid"]
        replay.teardown()
    assert held(emulated)["metadata"]["uid"] == uid
    assert "steps.py" in held(emulated)["data"]


def test_scripts_of_another_version_are_replaced_and_those_of_others_left_alone(
    emulated, small_trace
):
    emulated.scripts(**{"run.sh": "exit 1"})
    emulated.run(small_trace)
    assert held(emulated)["data"]["run.sh"].startswith("#!/usr/bin/env bash")

    emulated.delete("configmaps", "benchmark")
    emulated.scripts("another", **{"run.sh": "exit 1"})
    replay = emulated.replay(small_trace, repeat=2)
    replay.prepare()
    with pytest.raises(DependencyError, match=r"ConfigMap benchmark: expected none or one made"):
        replay.deploy()
    assert held(emulated)["data"]["run.sh"] == "exit 1"
    assert emulated.left() == []


def test_what_stays_is_said_at_the_end_and_in_the_readme(emulated, small_trace, capsys):
    emulated.run(small_trace)
    kinds = {kind: f"{kind}s" for kind in ("persistentvolumeclaim", "job", "configmap")}
    stays = {(kind, held["metadata"]["name"]) for kind, plural in kinds.items()
             for held in emulated.store.find(plural)}  # fmt: skip
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"`kubectl -n {NAMESPACE} delete " in last
    assert set(re.findall(r"(persistentvolumeclaim|job|configmap)/([\w-]+)", last)) == stays
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for _, name in stays if f"`{name}`" not in readme] == []


def test_a_published_run_names_no_machine(emulated, small_trace, tmp_path):
    path = emulated.run(small_trace)
    hosts = runs.read_manifest(path).host["pods"]
    (made,) = publish("recipes/qwen3-32b/study.yaml", "emulated", emulated.runs, tmp_path / "out")
    files = [each for each in made.rglob("*") if each.is_file()]
    assert sorted(each.name for each in files) == [
        "deploy.yaml", "perf.yaml", "requests.parquet", "run.json",
    ]  # fmt: skip
    told = (made / "run.json").read_text()
    names = {*hosts, *(pod["node"] for pod in hosts.values())}
    assert len(names) == 11
    assert not [name for name in names | {NAMESPACE} if name in told]
    assert len(runs.read_run(made).manifest.host["pods"]) == 9


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_sees_the_run_come_and_go(emulated, small_trace):
    emulated.server.open = True  # kubectl brings its token over TLS alone

    def everything():
        command = ["kubectl", "--kubeconfig", emulated.kubeconfig, "-n", NAMESPACE]
        command += ["--cache-dir", emulated.folder / "kubectl", "get", "all", "-o", "name"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0, told.stderr
        print(told.stdout)
        return set(told.stdout.split())

    assert everything() == set()
    replay = emulated.replay(small_trace)
    replay.prepare()
    prepared = everything()
    assert any(name.startswith("job.batch/model-download") for name in prepared)
    replay.deploy()
    there = everything() - prepared
    assert "dynamographdeployment.nvidia.com/disagg-router-6p-2d" in there
    assert sum(name.startswith("pod/disagg-router-6p-2d-") for name in there) == 9
    replay.replay()
    replay.collect()
    replay.teardown()
    assert everything() == prepared
