"""In which API version a deployment is applied, and what the API server warns of."""

import json

import pytest
import yaml
from emulated import Emulated

from kvab.clusters.kubernetes import api

DEPRECATED = (
    "the API server warns: nvidia.com/v1alpha1 DynamoGraphDeployment is deprecated; "
    "use nvidia.com/v1beta1 DynamoGraphDeployment\n"
)


@pytest.fixture
def of_operator(tmp_path, checkout, monkeypatch):
    """Return a function that brings up the cluster of an operator's version."""
    made = []

    def bring_up(operator):
        made.append(Emulated(tmp_path, checkout, operator=operator))
        monkeypatch.setenv("KUBECONFIG", str(made[0].kubeconfig))
        return made[0]

    api._warn.cache_clear()
    yield bring_up
    made[0].stop()


def applied(emulated, trace):
    """Deploy a configuration and tear it down; return its manifest as the server took it."""
    replay = emulated.deployed(trace)
    (made,) = emulated.store.find("dynamographdeployments")
    replay.teardown()
    return made


def asked(emulated):
    """Return the versions in which Dynamo's kinds were asked for."""
    paths = [path for _, path in emulated.server.seen if path.startswith("/apis/nvidia.com/")]
    return {path.split("/")[3] for path in paths}


@pytest.mark.parametrize(
    ("operator", "version", "warned"),
    [("1.1", "v1alpha1", 0), ("1.2", "v1alpha1", 1), ("1.5", "v1beta1", 0)],
)
def test_a_run_uses_the_version_that_the_cluster_stores(
    of_operator, small_trace, capsys, operator, version, warned
):
    emulated = of_operator(operator)
    assert applied(emulated, small_trace)["apiVersion"] == f"nvidia.com/{version}"
    assert asked(emulated) == {version}
    assert emulated.left() == []
    assert capsys.readouterr().err.count(DEPRECATED) == warned


def test_a_field_without_a_v1beta1_form_is_applied_as_it_is_written(of_operator, small_trace):
    emulated = of_operator("1.5")
    recipe = emulated.checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.yaml"
    written = yaml.safe_load(recipe.read_text())
    written["spec"]["services"]["VllmDecodeWorker"]["annotations"] = {"team": "a"}
    recipe.write_text(yaml.safe_dump(written))
    made = applied(emulated, small_trace)
    assert made["apiVersion"] == "nvidia.com/v1alpha1"
    assert made["spec"]["services"]["VllmDecodeWorker"]["annotations"] == {"team": "a"}


@pytest.mark.parametrize(("image", "passed"), [("r/i:1.3.1", 1), ("r/i:1.4.0", 0)])
def test_a_flag_that_a_newer_image_rejects_is_left_out(of_operator, small_trace, image, passed):
    emulated = of_operator("1.5")
    emulated.profile(image=image)
    made = json.dumps(applied(emulated, small_trace))
    assert made.count("--router-reset-states") == passed
    assert '"--router-mode"' in made


def test_several_warnings_in_one_answer_are_each_said_once(capsys):
    api._warn.cache_clear()
    header = r'299 - "a \"quoted\" one, with a comma", 299 kube "another"'
    for _ in range(2):
        for text in api.WARNING.findall(header):
            api._warn(text)
    assert capsys.readouterr().err == (
        'the API server warns: a "quoted" one, with a comma\nthe API server warns: another\n'
    )
