"""The manifests themselves: values, strict schemas, and the benchmark's scripts at work."""

import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from kvab.cli.doctor import check_declarations
from kvab.errors import InputError
from kvab.study.manifests import read_configuration, read_scripts
from kvab.study.topology import flatten, read_topology

RECIPES = Path(__file__).parents[2] / "recipes" / "qwen3-32b"
STUDY = yaml.safe_load((RECIPES / "study.yaml").read_text())
WORKLOAD = STUDY["workloads"]["conversation"]
ARMS = tuple(STUDY["configurations"])
NAMES = {
    "agg-round-robin": "agg-8xtp2",
    "agg-kv-router": "agg-router-8xtp2",
    "disagg-round-robin": "disagg-6p-2d",
    "disagg-kv-router": "disagg-router-6p-2d",
}


@pytest.fixture(scope="module")
def arms():
    return {arm: read_configuration(RECIPES / "vllm" / arm) for arm in ARMS}


def documents(path):
    return list(yaml.safe_load_all((RECIPES / path).read_text()))


def job(arm):
    (found,) = documents(f"vllm/{arm}/perf.yaml")
    return found


def container(manifest):
    return manifest["spec"]["template"]["spec"]["containers"][0]


def environment(manifest):
    return {entry["name"]: entry.get("value") for entry in container(manifest)["env"]}


# --- deploy.yaml -----------------------------------------------------------------------------

WORKER = {
    "componentType": "worker",
    "envFromSecret": "hf-token-secret",
    "image": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1",
    "workingDir": "/workspace",
    "env.DYN_HEALTH_CHECK_ENABLED": "false",
    "env.HF_HOME": "/home/dynamo/.cache/huggingface",
    "resources.limits.gpu": "2",
    "resources.requests.gpu": "2",
    "resources.limits.custom.rdma/ib": "2",
    "volumeMounts.model-cache.mountPoint": "/home/dynamo/.cache/huggingface",
    "volumeMounts.compilation-cache.mountPoint": "/home/dynamo/.cache/vllm",
    "volumeMounts.compilation-cache.useAsCompilationCache": "true",
    "args.--model": "Qwen/Qwen3-32B",
    "args.--tensor-parallel-size": "2",
    "args.--no-enable-log-requests": "true",
    "args.--gpu-memory-utilization": "0.90",
    "args.--async-scheduling": "true",
    "args.--block-size": "64",
    "args.--hf-overrides": '{"rope_scaling":{"rope_type":"yarn","factor":4.0,'
    '"original_max_position_embeddings":32768},"max_position_embeddings":131072}',
    "args.--max-model-len": "131072",
}
FRONTEND = {
    "componentType": "frontend",
    "replicas": "1",
    "image": "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1",
    "workingDir": "/workspace",
    "command": "dynamo.frontend",
    "resources.requests.cpu": "8",
    "resources.limits.cpu": "8",
    "env.HF_HOME": "/home/dynamo/.cache/huggingface",
    "args.--router-reset-states": "true",
}
TRANSFER = {"args.--kv-transfer-config": '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'}
EVENTS = {
    "args.--kv-events-config": '{"publisher":"zmq","topic":"kv-events",'
    '"endpoint":"tcp://*:20080","enable_kv_cache_events":true}'
}
PUBLISHED = {
    "agg-round-robin": {
        "Frontend": FRONTEND,
        "VllmDecodeWorker": WORKER | {"replicas": "8", "subComponentType": "decode"},
    },
    "disagg-kv-router": {
        "Frontend": FRONTEND | {"args.--router-mode": "kv"},
        "VllmDecodeWorker": WORKER
        | TRANSFER
        | {
            "replicas": "2",
            "subComponentType": "decode",
            "args.--disaggregation-mode": "decode",
            "args.--no-enable-prefix-caching": "true",
        },
        "VllmPrefillWorker": WORKER
        | TRANSFER
        | EVENTS
        | {
            "replicas": "6",
            "subComponentType": "prefill",
            "args.--disaggregation-mode": "prefill",
            "extraPodMetadata.annotations.prometheus.io/scrape": "true",
            "extraPodMetadata.annotations.prometheus.io/port": "9400",
            "extraPodMetadata.annotations.prometheus.io/path": "/metrics",
        },
    },
}


@pytest.mark.parametrize("arm", PUBLISHED)
def test_published_recipe_is_there_field_by_field(arms, arm):
    """Values: the published recipe at runtime 1.3.1 (ai-dynamo/dynamo 04521f47, 2ac51dda)."""
    expected = {
        f"{component}.{field}": value
        for component, fields in PUBLISHED[arm].items()
        for field, value in fields.items()
    }
    expected |= {
        "apiVersion": "nvidia.com/v1alpha1",
        "metadata.name": NAMES[arm],
        "spec.pvcs.model-cache.create": "false",
        "spec.pvcs.compilation-cache.create": "false",
    }
    flat = flatten(arms[arm])
    assert {field: flat.get(field) for field in expected} == expected


@pytest.mark.parametrize("arm", PUBLISHED)
def test_nothing_is_added_to_the_published_arguments(arms, arm):
    got = {field for field in flatten(arms[arm]) if ".args." in field}
    expected = {
        f"{component}.{field}"
        for component, fields in PUBLISHED[arm].items()
        for field in fields
        if field.startswith("args.")
    }
    assert got == expected


def differing(a, b):
    """The fields in which two deploy.yaml differ."""
    return {field for field, _ in flatten(a).items() ^ flatten(b).items()}


def test_arms_of_one_split_differ_only_in_routing(arms):
    fields = {"metadata.name", "Frontend.args.--router-mode"}
    split = differing(arms["disagg-round-robin"], arms["disagg-kv-router"])
    aggregated = differing(arms["agg-round-robin"], arms["agg-kv-router"])
    assert split == fields
    assert aggregated == fields | {"VllmDecodeWorker.args.--kv-events-config"}


def test_arms_of_one_router_differ_only_in_the_workers_roles(arms):
    for a, b in (("agg-round-robin", "disagg-round-robin"), ("agg-kv-router", "disagg-kv-router")):
        fields = differing(arms[a], arms[b])
        shared = {field for field in fields if not field.startswith("VllmPrefillWorker.")}
        assert shared - {"VllmDecodeWorker.args.--kv-events-config"} == {
            "metadata.name",
            "VllmDecodeWorker.replicas",
            "VllmDecodeWorker.args.--disaggregation-mode",
            "VllmDecodeWorker.args.--kv-transfer-config",
            "VllmDecodeWorker.args.--no-enable-prefix-caching",
        }


def test_prefill_workers_differ_from_aggregated_ones_only_in_their_role(arms):
    aggregated, split = flatten(arms["agg-kv-router"]), flatten(arms["disagg-kv-router"])
    ours = {k.partition(".")[2]: v for k, v in aggregated.items() if k.startswith("VllmDecode")}
    theirs = {k.partition(".")[2]: v for k, v in split.items() if k.startswith("VllmPrefill")}
    differing = {k for k in ours | theirs if ours.get(k) != theirs.get(k)}
    assert {k for k in differing if not k.startswith("extraPodMetadata")} == {
        "replicas",
        "subComponentType",
        "args.--disaggregation-mode",
        "args.--kv-transfer-config",
    }


@pytest.mark.parametrize("arm", ARMS)
def test_arm_is_what_the_study_declares(arms, arm):
    got = read_topology(arms[arm])
    factors = STUDY["configurations"][arm]["factors"]
    assert got.deployment == NAMES[arm]
    assert got.mode == factors["split"]
    assert got.router == factors["routing"].replace("-", "_")
    assert got.gpus == STUDY["gpus"]["count"]
    assert {group.model for group in got.groups.values()} == {STUDY["model"]["name"]}


FORMS = [("1.1", "v1alpha1"), ("1.2", "v1alpha1"), ("1.5", "v1alpha1"), ("1.5", "v1beta1")]
FILES = {"v1alpha1": "deploy.yaml", "v1beta1": "deploy.v1beta1.yaml"}


@pytest.fixture(scope="module")
def schema():
    pytest.importorskip("kubernetes", reason="the Kubernetes client (extra `cluster`) is missing")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "cluster"))
        from schemas import deployment_validator
    return deployment_validator


@pytest.mark.parametrize(("operator", "version"), FORMS)
@pytest.mark.parametrize("arm", ARMS)
def test_deploy_is_valid_under_each_operator(schema, operator, version, arm):
    (manifest,) = documents(f"vllm/{arm}/{FILES[version]}")
    found = schema(operator, version).iter_errors(manifest)
    assert [f"{error.json_path}: {error.message}" for error in found] == []


@pytest.mark.parametrize("operator", ["1.1", "1.2", "1.5"])
def test_schema_check_refuses_what_strict_validation_refuses(schema, operator):
    (manifest,) = documents("vllm/agg-round-robin/deploy.yaml")
    manifest["spec"]["services"]["Frontend"]["subComponentType"] = None
    manifest["spec"]["services"]["VllmDecodeWorker"]["replica"] = 8
    paths = [error.json_path for error in schema(operator, "v1alpha1").iter_errors(manifest)]
    assert sorted(paths) == [
        "$.spec.services.Frontend.subComponentType",
        "$.spec.services.VllmDecodeWorker",
    ]


# --- model-cache -----------------------------------------------------------------------------


def test_storage_is_shared_and_its_class_is_a_placeholder():
    claims = {
        claim["metadata"]["name"]: claim["spec"] for claim in documents("model-cache/cache.yaml")
    }
    sizes = {name: claim["resources"]["requests"]["storage"] for name, claim in claims.items()}
    assert sizes == {"model-cache": "100Gi", "compilation-cache": "50Gi", "perf-cache": "50Gi"}
    assert {tuple(claim["accessModes"]) for claim in claims.values()} == {("ReadWriteMany",)}
    assert {claim["storageClassName"] for claim in claims.values()} == {
        "replace-with-your-rwx-class"
    }


def test_model_download_is_pinned_and_bounded():
    (manifest,) = documents("model-cache/model-download.yaml")
    script = container(manifest)["args"][0]
    assert environment(manifest)["MODEL_REVISION"] == STUDY["model"]["revision"]
    assert environment(manifest)["MODEL_NAME"] == STUDY["model"]["name"]
    assert "huggingface_hub==1.11.0" in script
    assert manifest["spec"]["backoffLimit"] == 3
    assert manifest["spec"]["activeDeadlineSeconds"] == 7200
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    compile(script.split("<<'PYTHON'\n")[1].split("\nPYTHON")[0], "model-download.yaml", "exec")


# --- perf.yaml -------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_benchmark_runs_the_pages_command(arms, arm):
    assert arms[arm].benchmark.command == [
        *("aiperf", "profile", "-m", "Qwen/Qwen3-32B"),
        *("--input-file", "/perf-cache/traces/conversation_trace.jsonl"),
        *("--custom-dataset-type", "mooncake_trace", "--fixed-schedule"),
        *("--url", f"http://{NAMES[arm]}-frontend:8000", "--streaming"),
        *("--goodput", "time_to_first_token:2000 inter_token_latency:25"),
        *("--extra-inputs", "ignore_eos:true", "--use-server-token-count"),
        *("--random-seed", "42", "--request-timeout-seconds", "1800"),
        *("--artifact-dir", f"/perf-cache/artifacts/qwen3-32b/{arm}/$(RUN_ID)"),
        *("--ui", "simple"),
    ]


def test_benchmarks_differ_only_in_names():
    texts = {
        (RECIPES / "vllm" / arm / "perf.yaml")
        .read_text()
        .replace(NAMES[arm], "NAME")
        .replace(arm, "ARM")
        for arm in ARMS
    }
    assert len(texts) == 1
    assert max(len(text.splitlines()) for text in texts) <= 110


def test_benchmark_outlasts_its_steps_and_is_tried_once():
    manifest = job("disagg-kv-router")
    command = container(manifest)["args"]
    timeout_s = int(command[command.index("--request-timeout-seconds") + 1])
    trace_s = 3537  # last timestamp of the trace
    steps_s = int(environment(manifest)["READY_S"]) + trace_s + timeout_s
    assert manifest["spec"]["activeDeadlineSeconds"] > steps_s + 1800
    assert manifest["spec"]["backoffLimit"] == 0
    assert manifest["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_benchmark_checks_the_declared_trace():
    values = environment(job("agg-round-robin"))
    assert values["TRACE_URL"] == WORKLOAD["url"]
    assert values["TRACE_SHA256"] == WORKLOAD["sha256"]


def test_benchmark_installs_what_the_lock_pins():
    lock = (RECIPES.parents[1] / "requirements.lock").read_text()
    wanted = environment(job("agg-round-robin"))["REQUIREMENTS"].split()
    assert "aiperf==0.13.0" in wanted
    assert [pin for pin in wanted if f"\n{pin} " not in f"\n{lock}"] == []


def test_benchmark_reads_the_tokenizer_offline_and_read_only():
    manifest = job("agg-round-robin")
    values = environment(manifest)
    mounts = {mount["name"]: mount for mount in container(manifest)["volumeMounts"]}
    assert (values["HF_HOME"], values["HF_HUB_OFFLINE"]) == ("/model-cache", "1")
    assert mounts["model-cache"]["mountPath"] == "/model-cache"
    assert mounts["model-cache"]["readOnly"] is True


@pytest.mark.parametrize("path", sorted(RECIPES.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_images_have_exact_tags(path):
    images = re.findall(r"image: (\S+)", path.read_text())
    assert [image for image in images if not re.search(r":\d+\.\d+\.\d+(-[\w-]+)?$", image)] == []


def test_options_exist_in_the_installed_aiperf(arms):
    program = Path(sys.executable).with_name("aiperf")
    if not program.exists():
        pytest.skip("aiperf is not installed (pip install .[live])")
    text = subprocess.run(
        [program, "profile", "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout
    options = {word for word in arms["agg-round-robin"].benchmark.command if word.startswith("-")}
    assert {option for option in options if not re.search(rf"(?<!\S){option}(?!\S)", text)} == set()


def test_router_modes_exist_in_the_installed_frontend():
    if importlib.util.find_spec("dynamo") is None:
        pytest.skip("ai-dynamo is not installed (pip install .[simulate])")
    text = subprocess.run(
        [sys.executable, "-m", "dynamo.frontend", "--help"], capture_output=True, text=True
    ).stdout
    choices = re.search(r"--router-mode \{([^}]*)\}", text)
    assert {"kv", "round-robin"} <= set(choices[1].split(","))


# --- the benchmark's scripts at work, with a small command in the place of AIPerf --------------

SCRIPTS = RECIPES / "benchmark"

TRACE = b'{"timestamp": 0, "input_length": 512, "output_length": 2, "hash_ids": [0]}\n'


class Serving(http.server.BaseHTTPRequestHandler):
    """A frontend that lists a model, streams an answer and hands out the trace."""

    models = ("Qwen/Qwen3-32B",)
    answer = 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'

    def do_GET(self):
        listed = json.dumps({"data": [{"id": name} for name in self.models]})
        self.reply(TRACE if self.path == "/trace" else listed.encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(self.answer.encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The folder of a Python with pip and nothing else, as in the benchmark's image."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("ensurepip is not installed")
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, with_pip=True)
    return folder / "bin"


@pytest.fixture
def pod(tmp_path, python):
    """Run the benchmark's script on a root of its own; returns how."""
    missing = [tool for tool in ("tmux", "bash") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    handler = type("Handler", (Serving,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    sockets = tempfile.mkdtemp(dir="/tmp")  # a socket's path is short
    variables = {
        "PATH": f"{python}:{os.environ['PATH']}",
        "TMUX_TMPDIR": sockets,
        "RUN_ID": "run-1",
        "TRACE_URL": f"{url}/trace",
        "TRACE_SHA256": hashlib.sha256(TRACE).hexdigest(),
        "REQUIREMENTS": "pip",
        "READY_S": "1",
        "RETRY_S": "0.1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def run(script, **changed):
        command = ["bash", str(SCRIPTS / "run.sh"), "bash", "-c", script, "aiperf"]
        command += ["-m", "Qwen/Qwen3-32B", "--url", url]
        command += ["--input-file", str(tmp_path / "traces" / "trace.jsonl")]
        command += ["--artifact-dir", str(tmp_path / "run-1")]
        return subprocess.run(
            command,
            env={k: v for k, v in os.environ.items() if k != "TMUX"} | variables | changed,
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.root, run.artifacts, run.handler = tmp_path, tmp_path / "run-1", handler
    yield run
    server.shutdown()
    server.server_close()
    shutil.rmtree(sockets)


WRITE = 'echo measured; echo 42 > "${@: -1}/records.jsonl"'


def test_benchmark_leaves_its_artifacts_and_a_marker(pod):
    done = pod(WRITE)
    assert done.returncode == 0, done.stderr
    marker = json.loads((pod.artifacts / "finished.json").read_text())
    assert (marker["exit_code"], marker["run_id"]) == (0, "run-1")
    assert set(marker["files"]) == {"console.log", "pip-freeze.txt", "records.jsonl"}
    assert marker["files"]["records.jsonl"] == {
        "bytes": 3,
        "sha256": hashlib.sha256(b"42\n").hexdigest(),
    }


def test_benchmark_ends_with_the_exit_code_of_its_command(pod):
    done = pod("exit 7")
    assert done.returncode == 7
    assert json.loads((pod.artifacts / "finished.json").read_text())["exit_code"] == 7


def test_benchmark_runs_in_the_session_benchmark_and_logs_its_output(pod):
    done = pod("tmux display-message -p 'in session #S'; echo to stderr >&2")
    assert "in session benchmark\n" in done.stdout
    assert "to stderr\n" in done.stdout
    assert "in session benchmark\n" in (pod.artifacts / "console.log").read_text()


def test_benchmark_refuses_a_finished_run(pod):
    pod(WRITE)
    again = pod("echo again")
    assert again.returncode == 2
    assert "finished already" in again.stderr
    assert "again" not in (pod.artifacts / "console.log").read_text()


def test_benchmark_puts_an_unfinished_run_aside(pod):
    pod.artifacts.mkdir()
    (pod.artifacts / "records.jsonl").write_text("half")
    assert pod("true").returncode == 0
    assert not (pod.artifacts / "records.jsonl").exists()
    (aside,) = pod.root.glob("run-1.unfinished-*")
    assert (aside / "records.jsonl").read_text() == "half"


def test_benchmark_whose_session_is_killed_fails_without_a_marker(pod):
    done = pod("tmux kill-session")
    assert done.returncode == 125
    assert not (pod.artifacts / "finished.json").exists()


def test_benchmark_fetches_a_truncated_trace_anew(pod):
    trace = pod.root / "traces" / "trace.jsonl"
    trace.parent.mkdir()
    trace.write_bytes(TRACE[:20])
    assert pod("true").returncode == 0
    assert trace.read_bytes() == TRACE
    assert [path.name for path in trace.parent.iterdir()] == ["trace.jsonl"]


def test_benchmark_keeps_a_whole_trace(pod):
    trace = pod.root / "traces" / "trace.jsonl"
    trace.parent.mkdir()
    trace.write_bytes(TRACE)
    assert pod("true", TRACE_URL="http://127.0.0.1:9/none").returncode == 0


def test_benchmark_gives_up_on_another_trace(pod):
    done = pod("true", TRACE_SHA256="0" * 64)
    assert done.returncode == 1
    assert f"no trace with sha256 {'0' * 64}" in done.stderr
    assert list((pod.root / "traces").iterdir()) == []
    assert not pod.artifacts.exists()


def test_benchmark_does_not_start_before_the_model_is_listed(pod):
    pod.handler.models = ("another",)
    done = pod("true")
    assert done.returncode == 1
    assert "did not serve Qwen/Qwen3-32B in time: models ['another']" in done.stderr


def test_benchmark_does_not_start_before_an_answer_is_complete(pod):
    pod.handler.answer = 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
    done = pod("true")
    assert done.returncode == 1
    assert "an answer without tokens or without an end" in done.stderr


def test_shellcheck_finds_nothing_in_the_shell_scripts():
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([program, *SCRIPTS.glob("*.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_makes_the_same_configmap_of_the_folder():
    done = subprocess.run(["kubectl", "kustomize", SCRIPTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout) == read_scripts(RECIPES)
    assert read_scripts(RECIPES)["metadata"]["labels"]["kvab-study"] == "qwen3-32b"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: benchmark\n        - name: model", "name: other\n        - name: model",
         "volumes: expected the ConfigMap benchmark of ../../benchmark, got none"),
        ("mountPath: /opt/benchmark", "mountPath: /opt/scripts",
         "command: expected bash and /opt/scripts/run.sh or /opt/scripts/steps.py, got"),
        ("- name: scripts\n              mount", "- name: perf-cache\n              mount",
         "command: expected bash and a script of the volume scripts, mounted, got"),
    ],
)  # fmt: skip
def test_a_job_that_does_not_run_the_scripts_is_rejected(checkout, old, new, said):
    path = checkout / "recipes/qwen3-32b/vllm/agg-kv-router/perf.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=rf"perf\.yaml: {re.escape(said)}"):
        check_declarations()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("run.sh", None, None), ("kustomization.yaml", "configMapGenerator", "resources")],
)
def test_a_folder_of_scripts_that_is_not_whole_is_rejected(checkout, file, old, new):
    path = checkout / "recipes/qwen3-32b/benchmark" / file
    if old:
        path.write_text(path.read_text().replace(old, new))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"kustomization\.yaml: expected one configMapGenerator"):
        check_declarations()


def test_no_two_arms_share_a_name_or_a_folder():
    for a, b in combinations(ARMS, 2):
        first, second = job(a), job(b)
        assert first["metadata"]["name"] != second["metadata"]["name"]
        assert (
            first["spec"]["template"]["metadata"]["labels"]
            != second["spec"]["template"]["metadata"]["labels"]
        )
