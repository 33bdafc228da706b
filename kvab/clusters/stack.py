"""Dynamo's programs on this machine, serving a topology; started together, stopped together.

Input: a topology read from ``deploy.yaml`` and a live cluster's profile. Output: a frontend that
answers for all of its workers, a log of each program, and what the frontend measured. What is left
of them when this process ends, in whatever way, is stopped by `kvab.clusters.guard`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import httpx
import psutil

from kvab.clusters import guard
from kvab.clusters.base import Finding, last_lines, missing_to_serve
from kvab.console import mask
from kvab.errors import DependencyError, InputError
from kvab.requests.aiperf import server_series
from kvab.study import Live
from kvab.study.topology import Topology, WorkerGroup

TAIL_LINES = 8
GRACE_S = 10.0
LONGEST_FOLDER = 30  # characters: below it lie sockets of AIPerf, whose paths end at 107


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Program:
    """A program that was started, and its log."""

    name: str
    process: subprocess.Popen
    session: guard.Session
    log: Path

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of its log, on one line."""
        printed = mask(self.log.read_text(encoding="utf-8", errors="replace"))
        return last_lines(printed, lines) or "it printed nothing"


class Programs:
    """Programs that share a folder, gone when this object is closed or its process ends."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        parent = parent if len(parent) <= LONGEST_FOLDER else "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="kvab-live-", dir=parent))
        self.started: list[Program] = []
        self._guard = subprocess.Popen(
            [sys.executable, "-P", guard.__file__, self.folder], stdin=subprocess.PIPE, text=True,
            start_new_session=True, cwd="/",
        )  # fmt: skip

    def start(self, name: str, command: list[str], environment: dict[str, str]) -> Program:
        """Start a program in a session of its own, its output going to ``<name>.log``.

        Raises
        ------
        DependencyError
            If it cannot be started.
        """
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    cwd=self.folder, env={**os.environ, **environment}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise DependencyError(f"{name} did not start: {error}") from None
        session = guard.Session(process.pid, psutil.Process(process.pid).create_time())
        print(*session, file=self._guard.stdin, flush=True)
        self.started.append(Program(name, process, session, log))
        return self.started[-1]

    def check(self, *, but: Program | None = None) -> None:
        """Raise if a program has ended, except one that may.

        Raises
        ------
        DependencyError
            Naming the program, its exit code and the last lines of its log.
        """
        for program in self.started:
            code = program.process.poll()
            if code is not None and program is not but:
                raise DependencyError(f"{program.name} ended with {code}: {program.tail()}")

    def memory_gb(self) -> float:
        """Return what their processes hold (RSS; a page that two share counts twice), in GB."""
        held = 0
        for process in (p for program in self.started for p in guard.members(program.session)):
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        return round(held / 1e9, 2)

    def logs(self) -> dict[str, bytes]:
        """Return what every program has printed, by file name."""
        return {program.log.name: program.log.read_bytes() for program in self.started}

    def close(self) -> None:
        """Stop everything and remove the folder; safe to call again."""
        guard.stop([program.session for program in self.started], GRACE_S)
        for program in self.started:
            program.process.wait()
        self.started.clear()
        self._guard.communicate()  # the end of its input
        shutil.rmtree(self.folder, ignore_errors=True)


# --- Dynamo's programs -------------------------------------------------------------------------

LOOPBACK = "127.0.0.1"
READY_S = 180.0
POLL_S = 0.5
PLANES = "--discovery-backend file --request-plane tcp --event-plane zmq".split()
CORES, MEMORY_GB = 2, 6
STAGES = "dynamo_frontend_stage_duration_seconds"
PROMPTS = "dynamo_frontend_input_sequence_tokens"
LAST_TTFT = "dynamo_frontend_worker_last_time_to_first_token_seconds"
LAST_ITL = "dynamo_frontend_worker_last_inter_token_latency_seconds"
REVISION = "0" * 40
VOCABULARY = 8192  # the engines sample answer tokens up to about this id
IDEOGRAPHS = 0x4E00  # first code point of the CJK ideographs that fill the vocabulary
ASCII = range(0x20, 0x7F)
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class Stack(Programs):
    """Frontend and workers of a topology, and what runs beside them; ``url`` is the frontend's."""

    def __init__(self) -> None:
        super().__init__()
        self.environment = environment(self.folder)

    def serve(self, topology: Topology, profile: Live) -> None:
        """Start frontend and workers and wait until each of them serves.

        Raises
        ------
        DependencyError
            If one ends, or they do not serve in time; the last lines of the log are in the text.
        """
        first, port = next(iter(topology.groups.values())), free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        write_model(self.folder / "hub", first.model, first.context_length)
        for name, command in commands(topology, profile, port).items():
            self.start(name, command, self.environment)
        deadline = time.monotonic() + READY_S
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while missing := next(missing_to_serve(partial(_ask, client), topology), ""):
                self.check()
                if time.monotonic() > deadline:
                    tails = "; ".join(f"{one.name}: {one.tail(2)}" for one in self.started)
                    raise DependencyError(
                        f"not ready within {READY_S:.0f} s, waits for {missing}; {tails}"
                    )
                time.sleep(POLL_S)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that keep every file in a folder and every port on this machine."""
    (folder / "tmp").mkdir()
    return {
        "HOME": str(folder),  # Dynamo keeps model cards there
        "TMPDIR": str(folder / "tmp"),
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "DYN_FILE_KV": str(folder / "discovery"),
        "DYN_LOG": "error",
        "DYN_TCP_RPC_HOST": LOOPBACK,
        "DYN_TCP_RESPONSE_STREAM_HOST": LOOPBACK,
        "DYN_EVENT_PLANE_HOST": LOOPBACK,
        # By default AIPerf takes prompts that another tokenizer of the same name made.
        "AIPERF_DATASET_MMAP_CACHE_DIR": str(folder / "prompts"),
    }


def machine() -> list[Finding]:
    """Return whether this machine can carry a live run, and what it has of each thing needed."""
    cores, free_gb = os.cpu_count() or 1, psutil.virtual_memory().available / 1e9
    idle = max(cores - os.getloadavg()[0], 0.0)
    return [
        Finding(cores >= CORES, f"{cores} cores; a live run needs {CORES}"),
        Finding(
            idle > CORES / 2,
            f"{idle:.1f} cores idle in the last minute; other work makes requests late",
        ),
        Finding(
            free_gb > MEMORY_GB, f"{free_gb:.0f} GB of memory free; a live run needs {MEMORY_GB}"
        ),
        Finding(True, f"port {free_port()} is free for the frontend"),
    ]


def commands(topology: Topology, profile: Live, port: int) -> dict[str, list[str]]:
    """Return the command of the frontend and of each role's workers, by name."""
    python = [sys.executable, "-m"]
    address = ["--http-host", LOOPBACK, "--http-port", str(port)]
    router = ["--router-mode", topology.router.replace("_", "-")]
    workers = {
        role: [*python, *_mocker(role, group, profile)] for role, group in topology.groups.items()
    }
    return {"frontend": [*python, "dynamo.frontend", *address, *router, *PLANES], **workers}


def _mocker(role: str, group: WorkerGroup, profile: Live) -> list[str]:
    options = {
        "--model-path": group.model,
        "--model-name": group.model,
        "--num-workers": group.replicas,
        "--disaggregation-mode": "agg" if role == "aggregated" else role,
        "--block-size": group.block_size,
        "--max-model-len": group.context_length,
        "--max-num-seqs": group.max_sequences,
        "--max-num-batched-tokens": group.max_batched_tokens,
        "--gpu-memory-utilization": group.gpu_memory_fraction,
        "--ais-system": profile.hardware,
        "--ais-backend": profile.backend,
        "--ais-tp-size": group.tensor_parallel,
    }
    if role != "aggregated":
        # Of one GPU, as in the simulator; 0 is free.
        per_gpu = (profile.kv_transfer_gb_per_s or 0) / group.tensor_parallel
        options |= {
            "--kv-transfer-bandwidth": per_gpu,
            "--kv-transfer-timing-mode": "destination_missing",  # as in the simulator
        }
    caching = [] if group.prefix_caching else ["--no-enable-prefix-caching"]
    given = [str(part) for option in options.items() for part in option]
    return ["dynamo.mocker", "--ais-perf-model", *given, *caching, *PLANES]


def model_config(model: str, context_length: int) -> dict:
    """Return a model's published configuration, as the simulator carries it.

    Raises
    ------
    InputError
        If the simulator does not carry it.
    """
    folder = resources.files("aisimulate_core") / "model_configs"
    path = folder / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        raise InputError(
            f"model {model}: expected its sizes among those that the simulator carries; "
            f"choose one of the models in {folder}"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    return {**config, "max_position_embeddings": context_length}


def write_model(home: Path, model: str, context_length: int) -> None:
    """Write a model's files under ``home`` (an ``HF_HOME``).

    They are made in code, with no weights and no download, in the layout of the Hugging Face
    hub's cache, from which Dynamo's frontend and engines and AIPerf load configuration and
    tokenizer. The tokenizer has one token for each Unicode code point and merges nothing, so a
    text of n tokens is n tokens wherever it is counted: in AIPerf, which makes the prompts, in
    the frontend, which counts them, and in the answers.
    """
    from tokenizers import Tokenizer, decoders, models

    config = model_config(model, context_length)
    repository = home / "hub" / f"models--{model.replace('/', '--')}"
    folder = repository / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
    points = [*ASCII, *range(IDEOGRAPHS, IDEOGRAPHS + VOCABULARY - len(ASCII))]
    tokenizer = Tokenizer(models.BPE({chr(point): n for n, point in enumerate(points)}, []))
    tokenizer.decoder = decoders.Fuse()
    # The library's own saving hides what the system said, such as a full disk.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    described = {
        "config.json": config,
        "generation_config.json": {name: config[name] for name in ("bos_token_id", "eos_token_id")},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context_length,
            "chat_template": CHAT,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, content in described.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _ask(client: httpx.Client, path: str, body: object = None) -> tuple[int, str]:
    """Return status and text of the frontend's answer, 0 and why if it cannot be reached."""
    try:
        answer = client.post(path, json=body) if body else client.get(path)
    except httpx.HTTPError as error:
        return 0, f"{type(error).__name__}: {error}"
    return answer.status_code, answer.text


def frontend_ms_per_1k_tokens(artifacts: Path) -> float | None:
    """Return what the frontend took to prepare a thousand prompt tokens, in ms; None if not known.

    Its own histogram of the stage ``preprocess`` (template and tokenizer), summed over the replay,
    over the prompt tokens of the same requests.
    """
    took = server_series(artifacts, STAGES, stage="preprocess")
    prompts = server_series(artifacts, PROMPTS)
    tokens = sum(stats["sum"] for stats in prompts)
    return round(1e6 * sum(stats["sum"] for stats in took) / tokens, 3) if took and tokens else None


def workers_served(artifacts: Path, roles: list[str]) -> dict[str, int]:
    """Return how many workers of each role served the replay, as the frontend measured them.

    AIPerf's records name no worker, but it reads the frontend's metrics while it replays: what is
    last measured of a worker changes if that worker serves.
    """
    served = {}
    for role in roles:
        metric, kind = (LAST_TTFT, role) if role == "prefill" else (LAST_ITL, "decode")
        series = server_series(artifacts, metric, worker_type=kind)
        served[role] = sum(stats["max"] > stats["min"] for stats in series)
    return served
