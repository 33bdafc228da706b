"""Reading manifests: what a topology says, what is listed, what is refused and how."""

import re
import shutil
from pathlib import Path

import pytest

from kvab.errors import InputError
from kvab.study.manifests import read_configuration
from kvab.study.topology import VLLM_DEFAULTS, flatten, read_topology

VLLM = Path(__file__).parents[2] / "recipes" / "qwen3-32b" / "vllm"


@pytest.fixture
def edited(tmp_path):
    """Copy a recipe folder with texts replaced in its manifests; returns the folder."""

    def edit(arm, *replacements, file="deploy.yaml"):
        folder = tmp_path / arm
        shutil.copytree(VLLM / arm, folder, dirs_exist_ok=True)
        text = (folder / file).read_text()
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / file).write_text(text)
        return folder

    return edit


def read(folder):
    return read_topology(read_configuration(folder))


def refused(folder, *parts):
    """Return nothing; check that the topology is refused in one line with these parts."""
    with pytest.raises(InputError) as error:
        read(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


ARG_BLOCK = '- --block-size\n            - "64"'
GPU = 'requests:\n          gpu: "2"\n        limits:\n          gpu: "2"'


# --- what is read ----------------------------------------------------------------------------


def test_aggregated_round_robin():
    got = read(VLLM / "agg-round-robin")
    assert (got.deployment, got.mode, got.router) == ("agg-8xtp2", "aggregated", "round_robin")
    assert got.gpus == 16
    group = got.groups["aggregated"]
    assert (group.component, group.replicas, group.tensor_parallel) == ("VllmDecodeWorker", 8, 2)
    assert (group.block_size, group.gpu_memory_fraction) == (64, 0.9)
    assert (group.context_length, group.model) == (131072, "Qwen/Qwen3-32B")
    assert (group.prefix_caching, group.kv_events) == (True, False)
    assert group.image == "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1"


def test_disaggregated_kv():
    got = read(VLLM / "disagg-kv-router")
    assert (got.mode, got.router, got.gpus) == ("disaggregated", "kv", 16)
    assert list(got.groups) == ["prefill", "decode"]
    assert [group.replicas for group in got.groups.values()] == [6, 2]
    assert [group.prefix_caching for group in got.groups.values()] == [True, False]
    assert [group.kv_events for group in got.groups.values()] == [True, False]


def test_describe_says_workers_router_and_gpus():
    assert read(VLLM / "disagg-kv-router").describe() == (
        "disagg-router-6p-2d: 6 prefill workers of 2 GPUs and 2 decode workers of 2 GPUs, "
        "kv routing, 16 GPUs."
    )


def test_replicas_change_the_topology(edited):
    got = read(edited("disagg-kv-router", ("replicas: 6", "replicas: 5")))
    assert (got.groups["prefill"].replicas, got.gpus) == (5, 14)


def test_router_mode_changes_the_topology(edited):
    folder = edited("disagg-kv-router", ("            - --router-mode\n            - kv\n", ""))
    assert read(folder).router == "round_robin"


def test_block_size_changes_the_topology(edited):
    folder = edited("agg-round-robin", (ARG_BLOCK, '- --block-size\n            - "32"'))
    assert read(folder).groups["aggregated"].block_size == 32


def test_no_prefix_caching_changes_the_topology(edited):
    folder = edited(
        "agg-round-robin", ("- --async-", "- --no-enable-prefix-caching\n            - --async-")
    )
    assert read(folder).groups["aggregated"].prefix_caching is False


def test_absent_flags_take_the_engines_defaults(edited):
    folder = edited(
        "agg-round-robin",
        (ARG_BLOCK, ""),
        ('- --gpu-memory-utilization\n            - "0.90"', ""),
    )
    group = read(folder).groups["aggregated"]
    assert group.block_size == VLLM_DEFAULTS["block_size"]
    assert group.gpu_memory_fraction == VLLM_DEFAULTS["gpu_memory_fraction"]
    assert (group.max_batched_tokens, group.max_sequences) == (8192, 1024)


def test_scheduler_limits_are_read(edited):
    limits = "- --max-num-batched-tokens=4096\n            - --max_num_seqs\n            - '128'"
    group = read(edited("agg-round-robin", (ARG_BLOCK, limits))).groups["aggregated"]
    assert (group.max_batched_tokens, group.max_sequences) == (4096, 128)


def test_short_flag_is_an_alias(edited):
    folder = edited("agg-round-robin", ("--tensor-parallel-size", "-tp"))
    assert read(folder).groups["aggregated"].tensor_parallel == 2


def test_shell_command_is_parsed(edited):
    shell = 'command: [sh, -c, "exec python3 -m dynamo.frontend --router-mode=kv"]'
    plain = "command: [python3, -m, dynamo.frontend]"
    args = (
        "          args:\n            - --router-mode\n            - kv\n"
        "            - --router-reset-states  # gone from 1.4.0 on: drop it with a newer image\n"
    )
    assert read(edited("disagg-kv-router", (plain, shell), (args, ""))).router == "kv"


def test_router_mode_may_come_from_the_environment(edited):
    variable = "envs:\n        - name: DYN_ROUTER_MODE\n          value: kv"
    assert (
        read(
            edited(
                "agg-kv-router",
                ("envs:", variable),
                ("- --router-mode\n", ""),
                ("            - kv\n", ""),
            )
        ).router
        == "kv"
    )


def test_the_argument_wins_over_the_environment(edited):
    variable = "envs:\n        - name: DYN_ROUTER_MODE\n          value: random"
    assert read(edited("agg-kv-router", ("envs:", variable))).router == "kv"


def test_groups_may_differ_in_tensor_parallelism(edited):
    folder = edited(
        "disagg-kv-router",
        (GPU, GPU.replace('"2"', '"4"')),
        (
            '- --tensor-parallel-size\n            - "2"',
            '- --tensor-parallel-size\n            - "4"',
        ),
    )
    assert [group.tensor_parallel for group in read(folder).groups.values()] == [2, 4]


# --- what the simulator cannot express ---------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "field"),
    [
        ("Frontend", "args.--router-reset-states"),
        ("VllmPrefillWorker", "args.--async-scheduling"),
        ("VllmPrefillWorker", "args.--kv-transfer-config"),
        ("VllmPrefillWorker", "args.--kv-events-config"),
        ("VllmPrefillWorker", "args.--hf-overrides"),
        ("VllmPrefillWorker", "args.--no-enable-log-requests"),
        ("VllmPrefillWorker", "resources.limits.custom.rdma/ib"),
        ("VllmPrefillWorker", "env.DYN_HEALTH_CHECK_ENABLED"),
        ("VllmPrefillWorker", "envFromSecret"),
        ("VllmPrefillWorker", "image"),
        ("DynamoGraphDeployment", "spec.pvcs.model-cache.create"),
    ],
)
def test_inexpressible_field_is_listed_with_a_reason(component, field):
    listed = {
        (item.component, item.field): item for item in read(VLLM / "disagg-kv-router").unexpressed
    }
    assert listed[component, field].why


def test_every_field_is_either_expressed_or_listed():
    configuration = read_configuration(VLLM / "disagg-kv-router")
    listed = {
        f"{item.component}.{item.field}".removeprefix("DynamoGraphDeployment.")
        for item in read_topology(configuration).unexpressed
    }
    expressed = {field.rpartition(".")[2] for field in set(flatten(configuration)) - listed}
    assert expressed == {
        *("apiVersion", "kind", "name", "componentType", "subComponentType", "replicas"),
        *("gpu", "command", "--router-mode", "--model", "--disaggregation-mode"),
        *("--tensor-parallel-size", "--gpu-memory-utilization", "--block-size"),
        *("--no-enable-prefix-caching", "--max-model-len"),
    }


def test_an_added_kubernetes_setting_is_listed(edited):
    folder = edited(
        "agg-round-robin",
        ("      replicas: 8", "      replicas: 8\n      sharedMemory: {size: 16Gi}"),
    )
    assert ("VllmDecodeWorker", "sharedMemory.size", "16Gi") in {
        item[:3] for item in read(folder).unexpressed
    }


# --- what is refused ---------------------------------------------------------------------------


def test_unknown_flag_is_named(edited):
    folder = edited("agg-round-robin", ("--async-scheduling", "--enforce-eager"))
    refused(folder, str(folder / "deploy.yaml"), "VllmDecodeWorker.args.--enforce-eager")


def test_worker_flag_on_the_frontend_is_named(edited):
    folder = edited("agg-round-robin", ("--router-reset-states", "--block-size=64"))
    refused(folder, "Frontend.args.--block-size")


@pytest.mark.parametrize(
    ("arm", "old", "new", "parts"),
    [
        (
            "agg-kv-router",
            "            - kv\n",
            "            - random\n",
            ["--router-mode", "random"],
        ),
        (
            "agg-round-robin",
            "- --async-scheduling",
            "- --async-scheduling=true",
            ["no value, got true"],
        ),
        ("agg-round-robin", ARG_BLOCK, "- --block-size", ["--block-size", "a value"]),
        (
            "agg-round-robin",
            ARG_BLOCK,
            ARG_BLOCK + "\n            - -tp=2",
            ["tensor-parallel-size", "twice"],
        ),
        ("agg-round-robin", "- --async-scheduling", "- '&&'", ["a flag, got &&"]),
        ("agg-round-robin", ARG_BLOCK, "- --block-size=48", ["--block-size", "power of two", "48"]),
        ("agg-round-robin", ARG_BLOCK, "- --block-size=1024", ["--block-size", "512"]),
        ("agg-round-robin", ARG_BLOCK, "- --block-size=big", ["--block-size", "big"]),
        ("agg-round-robin", '"0.90"', '"1.5"', ["--gpu-memory-utilization", "1.5"]),
        ("agg-round-robin", '"0.90"', '"0"', ["--gpu-memory-utilization", "'0'"]),
        ("agg-round-robin", "replicas: 8", "replicas: 0", ["VllmDecodeWorker.replicas", "0"]),
        (
            "agg-round-robin",
            "replicas: 8",
            "replicas: 8\n      multinode: {nodeCount: 2}",
            ["multinode"],
        ),
        ("agg-round-robin", "replicas: 1", "replicas: 2", ["one frontend"]),
        (
            "agg-round-robin",
            GPU,
            GPU.replace('"2"', '"4"'),
            ["--tensor-parallel-size", "4 (resources"],
        ),
        (
            "agg-round-robin",
            'gpu: "2"\n        limits',
            'gpu: "1"\n        limits',
            ["requests.gpu", "got 1"],
        ),
        ("agg-round-robin", GPU, GPU.replace('"2"', "2"), ["resources.limits.gpu", "quote it"]),
        (
            "agg-round-robin",
            '- "131072"',
            '- "262144"',
            ["--max-model-len", "at most 131072", "262144"],
        ),
        ("agg-round-robin", '- "131072"', '- "0"', ["--max-model-len"]),
        (
            "agg-round-robin",
            '- --max-model-len\n            - "131072"',
            "",
            ["--max-model-len", "got nothing"],
        ),
        ("agg-round-robin", "- '{\"rope", "- '{rope", ["--hf-overrides", "JSON"]),
        ("agg-round-robin", '- "131072"', "- 131072", ["args.13", "quote it"]),
        (
            "agg-round-robin",
            "subComponentType: decode",
            "subComponentType: prefill",
            ["subComponentType", "prefill"],
        ),
        (
            "agg-kv-router",
            "--async-scheduling",
            "--no-enable-prefix-caching",
            ["prefix caching", "KV router"],
        ),
        (
            "agg-kv-router",
            '"enable_kv_cache_events":true',
            '"enable_kv_cache_events":false',
            ["KV events"],
        ),
        (
            "disagg-kv-router",
            '"enable_kv_cache_events":true',
            '"enable_kv_cache_events":false',
            ["VllmPrefillWorker", "KV events"],
        ),
        ("disagg-kv-router", ARG_BLOCK, "- --block-size=32", ["one block size", "[32, 64]"]),
        (
            "disagg-kv-router",
            "            - decode\n",
            "            - encode\n",
            ["--disaggregation-mode", "encode"],
        ),
        (
            "disagg-kv-router",
            "            - decode\n",
            "            - prefill\n",
            ["VllmDecodeWorker.subComponentType", "decode"],
        ),
        (
            "agg-round-robin",
            "name: DYN_HEALTH_CHECK_ENABLED",
            "name: DYN_VLLM_DISAGGREGATION_MODE",
            ["DYN_VLLM_DISAGGREGATION_MODE"],
        ),
        (
            "agg-kv-router",
            "name: HF_HOME",
            "name: DYN_ROUTER_TEMPERATURE",
            ["DYN_ROUTER_TEMPERATURE"],
        ),
        (
            "agg-round-robin",
            "dynamo.vllm",
            "dynamo.sglang",
            ["python3 -m dynamo.vllm", "dynamo.sglang"],
        ),
        (
            "agg-round-robin",
            "componentType: worker",
            "componentType: planner",
            ["componentType", "planner"],
        ),
        (
            "agg-round-robin",
            "DynamoGraphDeployment",
            "Deployment",
            ["kind", "DynamoGraphDeployment", "got 'Deployment'"],
        ),
        (
            "agg-round-robin",
            "nvidia.com/v1alpha1",
            "nvidia.com/v1",
            ["apiVersion", "got 'nvidia.com/v1';"],
        ),
        ("agg-round-robin", "metadata:", "metadata: [", ["deploy.yaml:6", "YAML"]),
        (
            "agg-round-robin",
            "- name: HF_HOME\n",
            "- nome: HF_HOME\n",
            ["Frontend.envs.0.name: expected a value, got nothing"],
        ),
    ],
)
def test_manifest_is_refused(edited, arm, old, new, parts):
    refused(edited(arm, (old, new)), "deploy.yaml", *parts)


def test_prefill_without_decode_is_refused(edited):
    folder = edited("disagg-kv-router")
    text = (folder / "deploy.yaml").read_text()
    head, rest = text.split("    VllmDecodeWorker:")
    (folder / "deploy.yaml").write_text(
        head + "    VllmPrefillWorker:" + rest.split("    VllmPrefillWorker:")[1]
    )
    refused(folder, "prefill and decode, got prefill")


@pytest.mark.parametrize(
    ("keep", "missing"), [("Frontend", "vllm"), ("VllmDecodeWorker", "frontend")]
)
def test_missing_service_is_refused(edited, keep, missing):
    folder = edited("agg-round-robin")
    text = (folder / "deploy.yaml").read_text()
    head, frontend, worker = re.split(r"    (?:Frontend|VllmDecodeWorker):\n", text)
    kept = {"Frontend": frontend, "VllmDecodeWorker": worker}[keep]
    (folder / "deploy.yaml").write_text(f"{head}    {keep}:\n{kept}")
    refused(folder, f"a service that runs dynamo.{missing}, got none")


@pytest.mark.parametrize("file", ["deploy.yaml", "perf.yaml"])
def test_missing_manifest_is_named(edited, file):
    folder = edited("agg-round-robin")
    (folder / file).unlink()
    refused(folder, str(folder / file))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("", "apiVersion"),
        ("[]", ""),
        ("just text", ""),
        ("spec: {services: [1]}", "apiVersion"),
    ],
)
def test_manifest_that_is_something_else_is_rejected(edited, content, key):
    folder = edited("agg-round-robin")
    (folder / "deploy.yaml").write_text(content)
    with pytest.raises(InputError) as error:
        read(folder)
    assert (error.value.path, error.value.key) == (folder / "deploy.yaml", key)


def test_two_deployments_are_refused(edited):
    folder = edited("agg-round-robin")
    text = (folder / "deploy.yaml").read_text()
    (folder / "deploy.yaml").write_text(f"{text}---\n{text}")
    refused(folder, "one DynamoGraphDeployment, got 2 documents")


# --- perf.yaml ---------------------------------------------------------------------------------


def test_command_is_read_from_the_job():
    command = read_configuration(VLLM / "agg-round-robin").benchmark.command
    assert command[:4] == ["aiperf", "profile", "-m", "Qwen/Qwen3-32B"]
    assert command[command.index("--url") + 1] == "http://agg-8xtp2-frontend:8000"


def test_goodput_bounds_are_read():
    assert read_configuration(VLLM / "agg-kv-router").benchmark.slo() == {
        "ttft_ms": 2000,
        "itl_ms": 25,
    }


@pytest.mark.parametrize(
    "bounds", ["time_to_first_token:2000", "time_to_first_token:fast inter_token_latency:25"]
)
def test_other_goodput_bounds_are_refused(edited, bounds):
    text = "time_to_first_token:2000 inter_token_latency:25"
    folder = edited("agg-round-robin", (text, bounds), file="perf.yaml")
    with pytest.raises(InputError, match=r"perf\.yaml: --goodput: expected .*inter_token_latency"):
        read_configuration(folder).benchmark.slo()


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("http://agg-8xtp2-frontend", "http://other-frontend", "http://agg-8xtp2-frontend:8000"),
        ("-m, Qwen/Qwen3-32B", "-m, Qwen/Qwen3-8B", "Qwen/Qwen3-32B as in deploy.yaml"),
        ("            --url, ", "", "--url in the AIPerf command"),
        ("aiperf, profile", "aiperf, kube", "args: expected 'aiperf profile'"),
        ("kind: Job", "kind: Pod", "kind: expected one Job, got Pod"),
        (
            "  name: agg-8xtp2-benchmark\n  labels:",
            "  labels:",
            "metadata.name: expected a value, got nothing",
        ),
        ("- name: READY_S", "- name: READY", "env: expected READY_S among the names, got RUN_ID"),
        ('value: "1800"', 'value: "soon"', "env.READY_S: expected seconds, got 'soon'"),
        ("            --artifact-dir, ", "", "--artifact-dir in the AIPerf command"),
        (
            "        - name: perf-cache\n          pers",
            "        - name: other\n          pers",
            "volumes: expected perf-cache among the names",
        ),
    ],
)
def test_perf_that_does_not_fit_is_refused(edited, old, new, part):
    refused(edited("agg-round-robin", (old, new), file="perf.yaml"), "perf.yaml", part)


# --- digests and fields ------------------------------------------------------------------------


def test_digest_ignores_comments_and_order_of_keys(edited):
    published = read_configuration(VLLM / "agg-round-robin")
    folder = edited(
        "agg-round-robin",
        ("# Baseline", "# A comment"),
        ("      replicas: 8\n", ""),
        ("subComponentType", "replicas: 8\n      subComponentType"),
    )
    copy = read_configuration(folder)
    assert (copy.digest, copy.benchmark.digest) == (published.digest, published.benchmark.digest)


def test_digest_changes_with_a_value(edited):
    copy = read_configuration(edited("agg-round-robin", ("replicas: 8", "replicas: 7")))
    assert copy.digest != read_configuration(VLLM / "agg-round-robin").digest
    assert copy.benchmark.digest == read_configuration(VLLM / "agg-round-robin").benchmark.digest


def test_configuration_is_named_after_its_folder():
    assert read_configuration(VLLM / "agg-round-robin").name == "agg-round-robin"
    assert read_configuration(VLLM / "agg-round-robin", "mine").name == "mine"


def test_flatten_names_arguments_by_flag():
    flat = flatten(read_configuration(VLLM / "disagg-kv-router"))
    assert flat["VllmDecodeWorker.args.--block-size"] == "64"
    assert flat["VllmDecodeWorker.args.--no-enable-prefix-caching"] == "true"
    assert flat["VllmDecodeWorker.env.HF_HOME"] == "/home/dynamo/.cache/huggingface"


def test_flatten_ignores_the_order_of_arguments(edited):
    moved = '- --async-scheduling\n            - --block-size\n            - "64"'
    folder = edited("agg-round-robin", (moved, f"{ARG_BLOCK}\n            - --async-scheduling"))
    assert flatten(read_configuration(folder)) == flatten(
        read_configuration(VLLM / "agg-round-robin")
    )
