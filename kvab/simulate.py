"""The simulated cluster: NVIDIA's simulator with Dynamo's own router, in this process.

Input: a topology read from ``deploy.yaml`` and a trace. Output: the requests table and the
simulator's summary. Nothing here is measured on hardware.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab.errors import DependencyError, InputError
from kvab.recipes import Topology, WorkerGroup
from kvab.study import Simulated
from kvab.tidy import from_simulator
from kvab.trace import Trace

ALIKE_STEP_MS = 0.001
PROGRESS_INTERVAL_MS = 30_000.0
ROUTER_POLICIES = {"round_robin": "round_robin", "kv": "kv_router"}


def sent_ms(trace: Trace, order: np.ndarray) -> np.ndarray:
    """Return when each row of ``order`` is sent, in ms, so that its record can be recognised.

    The simulator's records carry no row id. Within a burst a row is known by its two lengths; a
    row whose lengths an earlier row of its burst has too is sent a microsecond later. Giving every
    row a step of its own would change the result: an engine would start on the first request of a
    burst alone instead of batching it (5 % of the mean TTFT behind the KV router).

    Parameters
    ----------
    trace : Trace
        The workload.
    order : ndarray of int
        Trace rows in sending order; arrivals do not fall along it.

    Returns
    -------
    ndarray of float64
        Times aligned with ``order``.
    """
    sent = pd.DataFrame(
        {
            "at_ms": trace.arrival_ms[order],
            "input": trace.input_tokens[order],
            "output": trace.output_tokens[order],
        }
    )
    alike = sent.groupby(["at_ms", "input", "output"]).cumcount()
    return (sent["at_ms"] + alike * ALIKE_STEP_MS).to_numpy()


def prediction(topology: Topology, profile: Simulated, trace_path: Path, block_tokens: int) -> dict:
    """Return the simulator's prediction file for a topology, as ``aisimulate predict`` reads it.

    Raises
    ------
    InputError
        If the worker groups differ in what the simulator takes once for all of them.
    """
    groups = topology.groups
    for field in ("model", "context_length"):
        values = {getattr(group, field) for group in groups.values()}
        if len(values) > 1:
            raise InputError(
                f"{topology.deployment}: the simulator takes one {field} for all workers, got "
                f"{sorted(values)}; give every worker of deploy.yaml the same"
            )
    first = next(iter(groups.values()))
    return {
        "traffic": {
            "source": {
                "type": "trace",
                "paths": [str(trace_path)],
                "format": "mooncake",
                "block_size": block_tokens,
            },
            "load": {"type": "trace_timestamps"},
        },
        "engine": {
            "mode": topology.mode,
            "model": first.model,
            "hardware": profile.hardware,
            "backend": profile.backend,
            "context_length": first.context_length,
            "workers": {role: _workers(group) for role, group in groups.items()},
        },
        "router": {"policy": ROUTER_POLICIES[topology.router]},
    }


def _workers(group: WorkerGroup) -> dict[str, Any]:
    return {
        "parallelism": {
            "replicas": group.replicas,
            "tensor": group.tensor_parallel,
            "pipeline": 1,
            "attention_data": 1,
            "moe_tensor": 1,
            "moe_expert": 1,
        },
        "kv_cache": {
            "block_size": group.block_size,
            "prefix_caching": group.prefix_caching,
            "capacity": {"type": "default", "memory_fraction": group.gpu_memory_fraction},
        },
        "scheduler": {
            "max_batched_tokens": group.max_batched_tokens,
            "max_sequences": group.max_sequences,
        },
    }


class Simulator:
    """A simulated cluster; its five steps are those of every kind of cluster."""

    def __init__(self, profile: Simulated) -> None:
        self.profile = profile

    def identity(self) -> dict[str, str]:
        """Return what a result depends on beside the manifests and the trace.

        Raises
        ------
        DependencyError
            If the simulator is not installed.
        """
        try:
            versions = {
                name: importlib.metadata.version(name) for name in ("ai-dynamo", "aisimulate")
            }
        except importlib.metadata.PackageNotFoundError as error:
            raise DependencyError(
                f"the simulator's package {error.name} is not installed; run `make env`, "
                "or install kvab with its extra `simulate`"
            ) from None
        return {"hardware": self.profile.hardware, "backend": self.profile.backend, **versions}

    def prepare(self) -> dict[str, str]:
        """Load the simulator and return the versions in use."""
        identity = self.identity()
        os.environ.update(HF_HUB_OFFLINE="1")
        os.environ.setdefault("DYN_LOG", "error")
        from aisimulate_core.sdk.perf_database import get_version_slots

        data = (get_version_slots(self.profile.hardware, self.profile.backend) or {}).get("current")
        if data is None:
            raise InputError(
                f"cluster {self.profile.name}: the simulator has no measured data for hardware "
                f"{self.profile.hardware} with backend {self.profile.backend}; mend the profile"
            )
        return {name: identity[name] for name in ("ai-dynamo", "aisimulate")} | {
            "kernel data": data
        }

    def deploy(self, topology: Topology) -> None:
        """Keep the topology that the replay simulates; there is nothing to wait for."""
        self.topology = topology

    def replay(
        self, trace: Trace, order: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> None:
        """Replay the rows of ``order``; ``progress`` gets the number of requests done so far."""
        at_ms = sent_ms(trace, order)
        # A file without a name: nothing is left of it, however this process ends.
        with tempfile.TemporaryFile(prefix="kvab-") as file:
            path = Path(f"/proc/self/fd/{file.fileno()}")
            _write_trace(path, trace, order, at_ms)
            config = prediction(self.topology, self.profile, path, trace.block_tokens)
            report = _run(config, progress)
        self.requests = from_simulator(report.per_request, trace, order, at_ms)
        self.summary = {"prediction": config, "summary": report.summary}

    def collect(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """Return the requests table and the artifacts by file name."""
        text = json.dumps(self.summary, indent=2, default=str)
        return self.requests, {"simulation.json": text.encode()}

    def teardown(self) -> None:
        """Nothing to stop: the simulation ended with the replay."""


def _write_trace(path: Path, trace: Trace, order: np.ndarray, at_ms: np.ndarray) -> None:
    with path.open("w", encoding="utf-8") as file:
        for place in np.argsort(at_ms, kind="stable").tolist():
            row = order[place]
            record = {
                "timestamp": float(at_ms[place]),
                "input_length": int(trace.input_tokens[row]),
                "output_length": int(trace.output_tokens[row]),
                "hash_ids": list(trace.hash_ids[row]),
            }
            file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def _interrupted_later() -> Iterator[None]:
    """Hold Ctrl-C back for a while: the simulator would take it for missing timing data."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    came: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        raise KeyboardInterrupt


def _run(config: dict, progress: Callable[[int], None] | None) -> Any:
    """Run one prediction on Dynamo's replay; what ``aisimulate predict --stack dynamo`` runs."""
    from aisimulate.compiler import prediction_to_replay_spec
    from aisimulate.config.cli import CorePredictionConfig
    from aisimulate.config_adapter import PredictionAdapterContext
    from aisimulate.runner import materialize_engine_launch_config
    from dynamo.llm import KvRouterConfig
    from dynamo.mocker.config import normalize_mocker_config
    from dynamo.replay.api import TelemetryOptions, run_trace_replay
    from dynamo.router.simulation import create_provider

    core = CorePredictionConfig.model_validate({k: config[k] for k in ("traffic", "engine")})
    sections = core.model_dump(mode="json", exclude_none=True)
    context = PredictionAdapterContext(
        **{name: sections[name] for name in ("engine", "traffic", "evaluation")}
    )
    router = create_provider().compile_prediction(config["router"], context)
    spec = prediction_to_replay_spec(core, adapter_specs={"dynamo.router": router})
    deployment = spec.backend_deployment

    def engine(role: str, payload: Any) -> Any:
        with _interrupted_later():
            return normalize_mocker_config(
                materialize_engine_launch_config(
                    deployment.backend,
                    deployment.backend_version,
                    deployment.parallel_config,
                    payload,
                    role,
                )
            )

    if deployment.deployment_mode == "agg":
        workers = {
            "extra_engine_args": engine("aggregated", deployment.agg_engine_args),
            "num_workers": deployment.num_workers,
        }
    else:
        workers = {
            "prefill_engine_args": engine("prefill", deployment.prefill_engine_args),
            "decode_engine_args": engine("decode", deployment.decode_engine_args),
            "num_prefill_workers": deployment.num_prefill_workers,
            "num_decode_workers": deployment.num_decode_workers,
        }
    hook = router.runtime_hooks[0].config if router.runtime_hooks else {}
    done = 0

    def tell(sample: dict[str, Any]) -> None:
        nonlocal done
        done += sample["traffic"]["completed_requests"]
        progress(done)

    return run_trace_replay(
        trace_files=spec.workload["trace_paths"],
        trace_format="mooncake",
        trace_block_size=spec.workload["trace_block_size"],
        router_mode=hook.get("router_mode", "round_robin"),
        router_config=(
            KvRouterConfig.from_json(json.dumps(hook["router_config"])) if hook else None
        ),
        performance_model_metadata=deployment.performance_model_metadata,
        capture_per_request=True,
        capture_planner_details=False,
        telemetry_options=(
            TelemetryOptions(sample_interval_ms=PROGRESS_INTERVAL_MS, callback=tell)
            if progress
            else None
        ),
        **workers,
    )
