"""Dynamo's programs on this machine: their commands for a topology, and when they serve.

Input: a topology read from ``deploy.yaml`` and a live cluster's profile. Output: command lines and
environment for `kvab.clusters.live.processes`, and what is still missing before every worker
serves.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import httpx
import psutil

from kvab.clusters.live.processes import free_port
from kvab.study import Live
from kvab.study.recipes import Topology, WorkerGroup

LOOPBACK = "127.0.0.1"
PLANES = "--discovery-backend file --request-plane tcp --event-plane zmq".split()
COMPONENTS = {"aggregated": "backend", "prefill": "prefill", "decode": "backend"}
ROUTERS = {"round_robin": "round-robin", "kv": "kv"}
ENDPOINT = "generate"
CORES, MEMORY_GB = 2, 6
METRICS = "server_metrics_export.json"
LAST_TTFT = "dynamo_frontend_worker_last_time_to_first_token_seconds"
LAST_ITL = "dynamo_frontend_worker_last_inter_token_latency_seconds"
FIRST_PROMPT = "Hello"  # shorter than a block: no cache is warm afterwards


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


def machine() -> list[tuple[bool, str]]:
    """Return whether this machine can carry a live run, and what it has of each thing needed."""
    cores, free_gb = os.cpu_count() or 1, psutil.virtual_memory().available / 1e9
    idle = max(cores - os.getloadavg()[0], 0.0)
    return [
        (cores >= CORES, f"{cores} cores; a live run needs {CORES}"),
        (
            idle > CORES / 2,
            f"{idle:.1f} cores idle in the last minute; other work makes requests late",
        ),
        (free_gb > MEMORY_GB, f"{free_gb:.0f} GB of memory free; a live run needs {MEMORY_GB}"),
        (True, f"port {free_port()} is free for the frontend"),
    ]


def commands(topology: Topology, profile: Live, port: int) -> dict[str, list[str]]:
    """Return the command of the frontend and of each role's workers, by name."""
    python = [sys.executable, "-m"]
    address = ["--http-host", LOOPBACK, "--http-port", str(port)]
    router = ["--router-mode", ROUTERS[topology.router]]
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
    caching = [] if group.prefix_caching else ["--no-enable-prefix-caching"]
    given = [str(part) for option in options.items() for part in option]
    return ["dynamo.mocker", "--ais-perf-model", *given, *caching, *PLANES]


def missing(client: httpx.Client, topology: Topology) -> str:
    """Return what is still missing before every worker serves, empty if nothing is.

    The last of the answers asked for comes from an engine that is warm: the first one of each
    program takes seconds longer, because it loads the kernel data.

    Raises
    ------
    httpx.HTTPError, ValueError, LookupError
        If the frontend does not answer yet, or not as it should.
    """
    model = next(iter(topology.groups.values())).model
    models = [each["id"] for each in client.get("/v1/models").raise_for_status().json()["data"]]
    if model not in models:
        return f"models served: {', '.join(models) or 'none'}"
    wanted = Counter[str]()
    for role, group in topology.groups.items():
        wanted[COMPONENTS[role]] += group.replicas
    instances = client.get("/health").json()["instances"]
    found = Counter(i["component"] for i in instances if i["endpoint"] == ENDPOINT)
    if found != wanted:
        return f"workers registered: {dict(found)}, expected {dict(wanted)}"
    for _ in range(2 * wanted.total()):  # a model is listed before every worker can serve it
        _complete(client, model)
    return ""


def _complete(client: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": FIRST_PROMPT}],
        "max_tokens": 2,
        "stream": True,
    }
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().text
    if "[DONE]" not in answer or '"content"' not in answer:
        raise ValueError("an answer without tokens or without an end")


def workers_served(artifacts: Path, roles: list[str]) -> dict[str, int]:
    """Return how many workers of each role served the replay, as the frontend measured them.

    AIPerf's records name no worker, but it reads the frontend's metrics while it replays: what is
    last measured of a worker changes if that worker serves.
    """
    path = artifacts / METRICS
    metrics = json.loads(path.read_text(encoding="utf-8"))["metrics"] if path.is_file() else {}

    def changed(metric: str, worker_type: str) -> int:
        series = metrics.get(metric, {}).get("series", [])
        own = [each["stats"] for each in series if each["labels"]["worker_type"] == worker_type]
        return sum(stats["max"] > stats["min"] for stats in own)

    return {
        role: changed(LAST_TTFT, "prefill") if role == "prefill" else changed(LAST_ITL, "decode")
        for role in roles
    }
