"""The two forms of a deployment: one topology whichever is read, and what has no counterpart."""

import shutil
from pathlib import Path

import pytest
import yaml

from kvab.errors import InputError
from kvab.study import manifests
from kvab.study.manifests import read_configuration
from kvab.study.topology import flatten, read_topology

VLLM = Path(__file__).parents[2] / "recipes" / "qwen3-32b" / "vllm"
ARMS = sorted(path.name for path in VLLM.iterdir())


def alpha(arm="agg-round-robin"):
    return yaml.safe_load((VLLM / arm / "deploy.yaml").read_text())


def written(folder, manifest):
    """Return a recipe folder whose deploy.yaml is a manifest."""
    made = shutil.copytree(VLLM / "agg-round-robin", folder / "arm")
    (made / "deploy.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return made


@pytest.mark.parametrize("arm", ARMS)
def test_both_shipped_forms_are_the_same_topology(tmp_path, arm):
    folder = shutil.copytree(VLLM / arm, tmp_path / arm)
    (folder / manifests.BETA_FILE).rename(folder / "deploy.yaml")
    beta, original = read_configuration(folder), read_configuration(VLLM / arm)
    assert read_topology(beta) == read_topology(original)
    assert flatten(beta) == flatten(original)


@pytest.mark.parametrize("arm", ARMS)
def test_the_shipped_v1beta1_form_is_what_deploy_yaml_says(arm):
    assert (VLLM / arm / manifests.BETA_FILE).read_text() == manifests.beta_text(alpha(arm))


def test_fields_go_where_the_operator_takes_them():
    """Source: shared_spec_conversion.go of ai-dynamo/dynamo 1.5.0."""
    manifest = alpha("disagg-kv-router")
    manifest["spec"]["envs"] = [{"name": "ALL", "value": "1"}]
    worker = manifest["spec"]["services"]["VllmPrefillWorker"]
    worker["envs"] = [{"name": "HF_HOME", "value": "loses"}, {"name": "OWN", "value": "2"}]
    worker["extraPodSpec"]["nodeSelector"] = {"zone": "a"}
    made = manifests.to_beta(manifest)["spec"]
    assert made["env"] == [{"name": "ALL", "value": "1"}]
    component = next(each for each in made["components"] if each["name"] == "VllmPrefillWorker")
    assert (component["type"], component["replicas"]) == ("prefill", 6)
    assert component["compilationCache"] == {
        "pvcName": "compilation-cache",
        "mountPath": "/home/dynamo/.cache/vllm",
    }
    template = component["podTemplate"]
    assert template["metadata"]["annotations"]["prometheus.io/port"] == "9400"
    assert template["spec"]["nodeSelector"] == {"zone": "a"}
    assert template["spec"]["volumes"] == [
        {"name": "model-cache", "persistentVolumeClaim": {"claimName": "model-cache"}}
    ]
    (main,) = template["spec"]["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": "2", "rdma/ib": "2"}
    assert main["envFrom"] == [{"secretRef": {"name": "hf-token-secret"}}]
    values = {entry["name"]: entry["value"] for entry in main["env"]}
    assert (values["HF_HOME"], values["OWN"]) == ("/home/dynamo/.cache/huggingface", "2")


def test_what_only_v1beta1_can_say_of_a_pod_stays(tmp_path):
    manifest = manifests.to_beta(alpha())
    pod = manifest["spec"]["components"][1]["podTemplate"]["spec"]
    pod["volumes"].append({"name": "scratch", "emptyDir": {}})
    pod["containers"][0]["volumeMounts"].append({"name": "scratch", "mountPath": "/scratch"})
    pod["containers"].append({"name": "beside", "image": "r/i:1.0.0"})
    kept = read_configuration(written(tmp_path, manifest)).deploy
    assert manifests.to_beta(kept)["spec"]["components"][1]["podTemplate"]["spec"] == {
        **pod,
        "volumes": pod["volumes"][::-1],
        "containers": [
            {
                **pod["containers"][0],
                "volumeMounts": pod["containers"][0]["volumeMounts"][::-1],
            },
            pod["containers"][1],
        ],
    }


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda service: service.update(ingress={}), "VllmDecodeWorker.ingress: the other API"),
        (lambda service: service.pop("componentType"), "VllmDecodeWorker: not a component"),
        (lambda service: service.update(resources=["2"]), "VllmDecodeWorker: not a component"),
    ],
)
def test_what_v1beta1_does_not_have_is_named(change, expected):
    manifest = alpha()
    change(manifest["spec"]["services"]["VllmDecodeWorker"])
    with pytest.raises(InputError, match=expected):
        manifests.to_beta(manifest)


def test_claims_that_the_operator_would_create_have_no_v1beta1_form():
    manifest = alpha()
    manifest["spec"]["pvcs"][0]["create"] = True
    with pytest.raises(InputError, match=r"spec\.pvcs: v1beta1 creates no claims"):
        manifests.to_beta(manifest)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda spec: spec.update(components={}), "spec.components: expected a list"),
        (lambda spec: spec["components"].append(1), "spec.components.2: expected a mapping, got 1"),
        (lambda spec: spec["components"][0].pop("name"), "spec.components.0.name: expected"),
        (lambda spec: spec["components"][0].pop("podTemplate"), "Frontend: not a component"),
        (lambda spec: spec["components"][0].update(sharedMemorySize="1Gi"),
         "Frontend.sharedMemorySize: the other API version has no such field"),
        (lambda spec: spec["components"][0]["podTemplate"]["spec"]["containers"].clear(),
         "Frontend: not a component"),
    ],
)  # fmt: skip
def test_a_broken_v1beta1_file_is_one_line_that_names_the_place(tmp_path, change, expected):
    manifest = manifests.to_beta(alpha())
    change(manifest["spec"])
    folder = written(tmp_path, manifest)
    with pytest.raises(InputError) as raised:
        read_configuration(folder)
    assert str(raised.value).startswith(f"{folder / 'deploy.yaml'}: {expected}")
    assert "\n" not in str(raised.value)
