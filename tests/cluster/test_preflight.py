"""What `kvab doctor` finds, and bad input: one line, before anything is created."""

import copy
import os

import pytest
import yaml
from controllers import NAMESPACE
from emulated import Emulated
from schemas import OPERATORS
from typer.testing import CliRunner

from kvab.cli import app
from kvab.cli.doctor import findings
from kvab.errors import KvabError


def doctor():
    return CliRunner().invoke(app, ["doctor", "--cluster", "emulated"])


def dry_runs(emulated):
    """Return what `kvab doctor` finds when it tries what a run would create."""
    found = list(findings(emulated.checkout / "recipes/qwen3-32b/study.yaml", "emulated"))
    assert [each for each in found if "rbac.yaml" in each.what] == []
    return [each for each in found if each.what.startswith("dry run")]


def refused(emulated, trace, **given):
    """Return the error of a run that is refused before anything is created."""
    with pytest.raises(KvabError) as raised:
        replay = emulated.replay(trace, **given)
        replay.prepare()
        replay.deploy()
    assert "\n" not in str(raised.value)
    posted = [path for method, path in emulated.server.seen if method == "POST"]
    created = [path for path in posted if "access" not in path and "dryRun=All" not in path]
    assert created == []
    assert [path for path in emulated.runs.rglob("*") if path.is_file()] == []
    return raised.value


def edit(emulated, name, old, new, count=1):
    path = emulated.checkout / "recipes/qwen3-32b" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_doctor_says_what_it_found(emulated):
    done = doctor()
    fixes = [line for line in done.stdout.splitlines() if line.startswith("FIX")]
    assert [line for line in fixes if not line.split()[1].startswith("trace")] == [], done.stdout
    for expected in (
        "API server: v1.33.4",
        "permissions: all ",
        "DynamoGraphDeployment: serves v1alpha1, v1beta1; applied as v1beta1",
        "secret: hf-token-secret",
        "disagg-kv-router: needs 16 nvidia.com/gpu, allocatable 16",
        "disagg-kv-router: needs 16 rdma/ib, allocatable 16",
        "dry run, disagg-kv-router: 3 manifests valid under strict validation, operator 1.5.0",
        "dry run, storage and model: 4 manifests valid",
    ):
        assert expected in done.stdout
    assert {held["metadata"]["name"] for held in emulated.store.find("persistentvolumeclaims")} == (
        set()
    )


def test_doctor_says_how_to_mend_each_thing(emulated):
    emulated.delete("secrets", "hf-token-secret")
    emulated.profile(storage_class="none", rdma_resource="rdma/other", image="r/i:1.4.0")
    done = doctor()
    assert done.exit_code == 3
    for expected in (
        "FIX   secret: hf-token-secret is not there; create it with `kubectl -n dynamo-study",
        "FIX   storage class: none is not there; name one of `kubectl get storageclass`",
        "FIX   disagg-kv-router: needs 16 rdma/other, allocatable 0 on the nodes that the "
        "profile selects (16 NVIDIA-H200); set rdma_resource",
        "ok    disagg-kv-router: --router-reset-states is left out, the image's runtime no longer",
    ):
        assert expected in done.stdout


@pytest.mark.parametrize(
    ("profile", "code", "expected"),
    [
        ({"storage_class": "my-rwx-class"}, 2, "storage_class: expected a name of your cluster"),
        ({"context": "nowhere"}, 2, "context: expected a context of your kubeconfig, got nowhere"),
        ({"namespace": "nowhere"}, 3, "namespace: nowhere is not there; create it with `kubectl"),
        ({"image": "registry/runtime:latest"}, 2, "image: expected a tag that is a version, got "
         "registry/runtime:latest; add runtime_version"),
        ({"image": f"registry/runtime@sha256:{'0' * 64}"}, 2, "add runtime_version"),
        ({"node_selector": {"pool": "none"}}, 3,
         "needs 16 nvidia.com/gpu, allocatable 0 on the nodes that the profile selects (none)"),
        ({"limits": {"replay_s": 100}}, 2, "limits.replay_s: expected at least"),
    ],
)  # fmt: skip
def test_a_wrong_profile_is_refused(emulated, small_trace, profile, code, expected):
    emulated.profile(**profile)
    error = refused(emulated, small_trace)
    assert error.exit_code == code
    assert expected in str(error)


def test_more_gpus_than_exist_are_refused(emulated, small_trace):
    emulated.server.do(emulated.store.delete, "nodes", "", "gpu-2")
    error = refused(emulated, small_trace)
    assert error.exit_code == 3
    assert (
        "needs 16 nvidia.com/gpu, allocatable 8 on the nodes that the profile selects (8 NVIDIA"
        in str(error)
    )


def test_an_unknown_field_is_refused_under_strict_validation(emulated, small_trace):
    edit(
        emulated,
        "vllm/disagg-kv-router/deploy.yaml",
        "replicas: 2",
        "replicas: 2\n      replica: 2",
    )
    error = refused(emulated, small_trace)
    assert "strict decoding error" in str(error)
    assert "replica" in str(error)


def test_an_unknown_field_of_the_benchmark_is_refused(emulated, small_trace):
    edit(emulated, "vllm/disagg-kv-router/perf.yaml", "backoffLimit: 0", "backofLimit: 0")
    assert 'unknown field "spec.backofLimit"' in str(refused(emulated, small_trace))


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_configuration_is_valid_under_each_operator(
    tmp_path, checkout, monkeypatch, operator
):
    made = Emulated(tmp_path, checkout, operator)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    try:
        assert [each.ok for each in dry_runs(made)] == [True] * 5
    finally:
        made.stop()


# --- access ------------------------------------------------------------------------------------


def rules(emulated):
    """Return the rules of recipes/rbac.yaml, with the profile's storage class and secret."""
    path = emulated.checkout / "recipes" / "rbac.yaml"
    parts = [part for part in yaml.safe_load_all(path.read_text()) if "rules" in part]
    return [rule for part in parts for rule in part["rules"]]


def granted(found):
    return {
        (group, resource, verb)
        for rule in found
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_suffices_and_grants_nothing_that_no_run_uses(emulated, small_trace):
    emulated.server.rules = rules(emulated)
    emulated.scripts(**{"run.sh": "those of an earlier version, which a run replaces"})
    emulated.run(small_trace)
    assert emulated.left() == []
    assert granted(emulated.server.rules) == emulated.server.used


@pytest.mark.parametrize(
    ("resource", "verb"),
    [("pods/exec", "create"), ("dynamographdeployments", "delete"), ("leases", "update")],
)
def test_a_missing_permission_is_named_before_anything_is_created(
    emulated, small_trace, resource, verb
):
    found = copy.deepcopy(rules(emulated))
    for rule in found:
        if resource in rule["resources"]:
            rule["verbs"].remove(verb)
    emulated.server.rules = found
    error = refused(emulated, small_trace)
    assert error.exit_code == 3
    assert f"not allowed: {verb} {resource}; have recipes/rbac.yaml applied" in str(error)


def test_the_profile_names_what_the_role_names(emulated):
    path = emulated.checkout / "recipes" / "clusters" / "example-h200.yaml"
    profile = yaml.safe_load(path.read_text())
    named = {n for rule in rules(emulated) for n in rule.get("resourceNames", [])}
    assert {profile["namespace"], profile["hf_token_secret"]} <= named
    assert NAMESPACE == profile["namespace"]


def test_a_token_that_is_refused_says_so(emulated, small_trace):
    text = emulated.kubeconfig.read_text()
    emulated.kubeconfig.write_text(text.replace("secret-token-of-the-test", "another"))
    assert os.environ["KUBECONFIG"] == str(emulated.kubeconfig)
    error = refused(emulated, small_trace)
    assert "not allowed: Unauthorized; log in again" in str(error)
