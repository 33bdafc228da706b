"""Declarations: what is accepted, and what is refused by name."""

import hashlib
import json
import re
from contextlib import nullcontext

import pytest
import yaml

from kvab.cli import main
from kvab.cli.doctor import check_declarations, findings
from kvab.errors import InputError
from kvab.runs.cell import Cell, cell_text, checkout_of
from kvab.runs.replay import plan_job
from kvab.runs.sources import study_of
from kvab.study import check_product, load_cluster, load_study, root
from kvab.trace.reading import read_trace

STUDY = "recipes/qwen3-32b/study.yaml"


def change(checkout, edit, name=STUDY):
    path = checkout / name
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))


def workload(content):
    return content["workloads"]["conversation"]


def test_a_study_on_another_workload_has_a_name_of_its_own():
    study = load_study()
    other = study.on("toolagent")
    assert (study.workload, study.trace.rows) == ("conversation", 12031)
    assert (other.name, other.workload) == ("qwen3-32b+toolagent", "toolagent")
    assert (other.base, other.trace.rows, other.trace.first) == ("qwen3-32b", 23608, False)
    assert other.on("toolagent") == other == load_study(f"{STUDY}#toolagent")
    assert other.on("conversation") == study == load_study(f"{STUDY}#conversation")
    assert other.digest != study.digest


def test_an_unknown_workload_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no workload 'code'; choose one of conversation, moonc"):
        load_study().on("code")


def test_runs_of_another_workload_have_folders_of_their_own(checkout, small_trace):
    study = load_study(STUDY).on("toolagent")
    job = plan_job(study, "simulated-h200", "agg-round-robin", trace=read_trace(small_trace))
    assert job.path.parts[:2] == ("runs", "qwen3-32b+toolagent")


def test_a_pod_replays_the_workload_that_was_asked_for(checkout, small_trace, tmp_path):
    study = load_study(STUDY).on("toolagent")
    job = plan_job(study, "simulated-h200", "agg-round-robin", trace=read_trace(small_trace))
    (tmp_path / "study.yaml").write_text(checkout_of(job)["recipes/qwen3-32b/study.yaml"])
    cell = Cell.model_validate_json(cell_text(job))
    there = load_study(tmp_path / "study.yaml").on(cell.workload)
    assert (there.name, there.digest) == (study.name, study.digest)


def test_a_run_is_read_by_the_study_of_its_workload(small_runs, tmp_path):
    path = small_runs / "qwen3-32b/simulated-h200/agg-round-robin/r1/run.json"
    run = json.loads(path.read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"study": "qwen3-32b+toolagent"}))
    assert study_of([tmp_path], None).name == "qwen3-32b+toolagent"


def test_the_study_names_one_baseline_and_one_comparison():
    study = load_study()
    assert (study.baseline, study.comparison) == ("agg-round-robin", "disagg-kv-router")


def test_the_digest_ignores_comments_and_order(checkout):
    before = load_study().digest
    change(checkout, lambda content: None)
    assert load_study().digest == before


def test_the_digest_changes_with_the_content(checkout):
    before = load_study().digest
    change(checkout, lambda content: content["slo"].update(ttft_ms=1000))
    assert load_study().digest != before


@pytest.mark.parametrize(
    ("edit", "key"),
    [
        (lambda c: c.update(colour="red"), "colour"),
        (lambda c: c["slo"].update(tpot_ms=1), "slo.tpot_ms"),
        (lambda c: workload(c).pop("sha256"), "workloads.conversation.sha256"),
        (lambda c: c.update(trace=c.pop("workloads")["conversation"]), "workloads"),
        (lambda c: c["workloads"].clear(), "workloads"),
        (lambda c: c["slo"].update(ttft_ms=-1), "slo.ttft_ms"),
        (lambda c: c.update(schema=2), "schema"),
    ],
)
def test_a_wrong_key_is_rejected_by_name(checkout, edit, key):
    change(checkout, edit)
    with pytest.raises(InputError) as caught:
        load_study()
    assert (caught.value.path, caught.value.key) == (checkout / STUDY, key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda c: c["configurations"]["agg-kv-router"].update(role="baseline"), "exactly one"),
        (lambda c: c.update(seeds=[0, 0, 1]), "seeds"),
        (lambda c: c["margins"].pop("itl_ms"), "margins"),
    ],
)
def test_keys_that_contradict_each_other_are_rejected(checkout, edit, expected):
    change(checkout, edit)
    with pytest.raises(InputError) as caught:
        load_study()
    assert caught.value.path == checkout / STUDY
    assert expected in caught.value.expected


def wider(checkout, name="disagg-kv-router", prefill=9, decode=1):
    """Split the workers of a configuration otherwise; 9 and 1 of two GPUs make 20."""
    deploy = checkout / "recipes/qwen3-32b/vllm" / name / "deploy.yaml"
    text = deploy.read_text().replace("replicas: 6", f"replicas: {prefill}")
    deploy.write_text(text.replace("replicas: 2", f"replicas: {decode}"))


def test_unequal_hardware_is_rejected_with_both_and_the_remedy(checkout, small_trace, capsys):
    wider(checkout)
    for look in (
        check_declarations,
        lambda: plan_job(load_study(STUDY), "simulated-h200", "agg-round-robin",
                         trace=read_trace(small_trace)),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            look()
        assert (
            "agg-round-robin with 16 GPUs and disagg-kv-router with 20; give both the same in "
            "deploy.yaml (replicas x tensor parallelism), or declare gpus.differ: true"
        ) in str(caught.value)
    with pytest.raises(SystemExit, match="2"):
        main(["check"])
    assert capsys.readouterr().err.count("\n") == 1
    found = [each.what for each in findings(STUDY, "live-cpu") if not each.ok]
    assert found[0].startswith("gpus: ")


def test_unequal_hardware_may_be_declared(checkout):
    wider(checkout)
    change(checkout, lambda content: content["gpus"].update(differ=True))
    with pytest.raises(InputError, match=r"gpus\.count: expected 20, which disagg-kv-router fills"):
        check_declarations()
    change(checkout, lambda content: content["gpus"].update(count=20))
    with pytest.raises(InputError, match=r"v1beta1\.yaml: not what deploy\.yaml says; run `kvab c"):
        check_declarations()
    told = check_declarations(fix=True)
    assert "qwen3-32b: disagg-router-6p-2d: 9 prefill" in "\n".join(told)
    assert check_declarations() == [line for line in told if "written anew" not in line]


def test_more_gpus_than_any_configuration_fills_are_rejected(checkout):
    change(checkout, lambda content: content["gpus"].update(count=32))
    with pytest.raises(InputError, match=r"gpus\.count: expected 16, .* got 32; correct it"):
        check_declarations()


# --- hardware, model and trace against each other ------------------------------------------------


@pytest.mark.parametrize("cluster", ["simulated-h200", "live-cpu", "example-h200"])
def test_a_cluster_of_other_gpus_is_rejected_and_both_are_named(checkout, small_trace, cluster):
    change(checkout, lambda content: content["gpus"].update(product="H100"))
    with pytest.raises(
        InputError, match=rf"product is H100, but cluster {cluster} has .*200"
    ) as no:
        plan_job(load_study(STUDY), cluster, "agg-round-robin", trace=read_trace(small_trace))
    assert "--cluster" in str(no.value)
    assert f"cluster: {no.value}" in wrong(cluster)


@pytest.mark.parametrize(
    ("product", "hardware", "fits"),
    [
        ("H200", "h200_sxm", True),
        ("NVIDIA-H100-80GB-HBM3", "h100_sxm", True),
        ("A100 80GB", "h100_sxm", False),
        ("GB200", "b200_sxm", False),
        ("L40S", "l40s", True),
        ("RTX PRO 6000", "rtx_pro_6000_server", True),
        ("Hopper", "h200_sxm", False),
    ],
)
def test_a_chip_is_known_by_vendor_and_form_or_without(product, hardware, fits):
    study, profile = load_study(STUDY), load_cluster("simulated-h200")
    gpus = study.gpus.model_copy(update={"product": product})
    study = study.model_copy(update={"gpus": gpus})
    profile = profile.model_copy(update={"hardware": hardware})
    with nullcontext() if fits else pytest.raises(InputError, match=product):
        check_product(study, profile)


def test_a_cluster_that_does_not_name_its_gpus_is_judged_when_its_nodes_are_seen(checkout):
    profile = load_cluster("example-h200").model_copy(update={"node_selector": {}})
    change(checkout, lambda content: content["gpus"].update(product="H100"))
    assert check_product(load_study(STUDY), profile) is None


def everywhere(checkout, old, new):
    for path in (checkout / "recipes").rglob("*.yaml"):
        path.write_text(path.read_text().replace(old, new))


def wrong(cluster="simulated-h200"):
    return [each.what for each in findings(STUDY, cluster) if not each.ok]


@pytest.fixture
def simulator():
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")


def test_doctor_asks_the_simulator_for_the_model(checkout, simulator):
    before = [each.what for each in findings(STUDY, "simulated-h200") if each.ok]
    assert "disagg-kv-router: the simulator has Qwen/Qwen3-32B on h200_sxm with vllm" in before
    everywhere(checkout, "Qwen/Qwen3-32B", "Qwen/Qwen3-4B")
    said = [what for what in wrong() if "no measured data of Qwen/Qwen3-4B on h200_sxm" in what]
    assert len(said) == 4
    assert "the nearest are Qwen/Qwen3-8B," in said[0]


def test_doctor_asks_the_simulator_whether_the_model_fits(checkout, simulator):
    everywhere(checkout, "Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3.1-405B")
    assert len([what for what in wrong() if "405B on h200_sxm: no KV budget" in what]) == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("h200_sxm", "h200_pcie", "it has hardware a100_sxm, "),
        ("backend: vllm", "backend: tgi", "it has backends sglang, trtllm, vllm"),
    ],
)
def test_doctor_lists_what_the_simulator_has(checkout, simulator, old, new, said):
    everywhere(checkout, old, new)
    assert [what for what in wrong() if what.startswith("cluster") and said in what]


def test_doctor_counts_the_rows_that_are_longer_than_the_context(
    checkout, monkeypatch, small_trace
):
    monkeypatch.setenv("KVAB_TRACE", str(small_trace))
    digest = hashlib.sha256(small_trace.read_bytes()).hexdigest()
    change(checkout, lambda content: workload(content).update(sha256=digest, rows=40))
    assert not [what for what in wrong() if "longer than" in what]
    deploy = checkout / "recipes/qwen3-32b/vllm/disagg-kv-router/deploy.yaml"
    deploy.write_text(re.sub(r'(--max-model-len\n +- )"131072"', r'\1"2048"', deploy.read_text()))
    trace = read_trace(small_trace)
    tokens = trace.input_tokens + trace.output_tokens
    (what,) = [what for what in wrong() if "longer than" in what]
    assert f"disagg-kv-router: {(tokens > 2048).sum()} of 40 trace rows" in what
    assert "context of 2,048 tokens" in what and f"the longest {tokens.max():,}" in what


def test_a_key_that_stands_twice_is_refused_with_its_line(checkout):
    path = checkout / STUDY
    path.write_text(path.read_text() + "\nrepeats: 4\n")
    with pytest.raises(InputError, match=r"study\.yaml:\d+: .*'repeats' stands twice"):
        load_study()


def test_what_is_not_yaml_is_refused_with_its_line(checkout):
    path = checkout / STUDY
    path.write_text("name: [1,\n")
    with pytest.raises(InputError, match=r"study\.yaml:\d+: expected YAML"):
        load_study()


def test_a_study_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match=r"none\.yaml: expected a file"):
        load_study("recipes/none.yaml")


def test_an_unknown_configuration_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no configuration 'fast'; choose one of agg-round-robin"):
        load_study().configuration_folder("fast")


def test_a_repeat_without_a_seed_is_refused():
    with pytest.raises(InputError, match="expected a repeat from 1 to 20"):
        load_study().seed(21)


def test_every_profile_is_read(checkout):
    folder = checkout / "recipes" / "clusters"
    assert {load_cluster(path.stem).kind for path in folder.glob("*.yaml")} >= {
        "simulated",
        "kubernetes",
    }


def test_an_unknown_cluster_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no cluster 'mine'; choose one of example-h200"):
        load_cluster("mine")


def test_an_unknown_key_of_a_profile_is_refused_by_name(checkout):
    name = "recipes/clusters/simulated-h200.yaml"
    change(checkout, lambda content: content.update(gpus=16), name)
    with pytest.raises(InputError, match="unknown key") as caught:
        load_cluster("simulated-h200")
    assert (caught.value.path, caught.value.key) == (checkout / name, "simulated.gpus")


def test_a_copied_profile_must_carry_its_own_name(checkout):
    folder = checkout / "recipes" / "clusters"
    (folder / "mine.yaml").write_text((folder / "simulated-h200.yaml").read_text())
    with pytest.raises(InputError, match="name: expected mine"):
        load_cluster("mine")


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KVAB_ROOT", str(tmp_path))
    with pytest.raises(InputError, match="expected a checkout"):
        root()
