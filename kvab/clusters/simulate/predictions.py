"""What the simulator is told: the prediction of a topology, and the trace as it is sent.

Input: a topology read from ``deploy.yaml`` and a trace. Output: the prediction that
``aisimulate predict`` reads too, and the file of the requests.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.study import Live, Simulated
from kvab.study.recipes import Topology, WorkerGroup
from kvab.trace import Trace

ALIKE_STEP_MS = 0.001
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


def prediction(
    topology: Topology, profile: Simulated | Live, trace_path: Path, block_tokens: int
) -> dict:
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


def write_trace(path: Path, trace: Trace, order: np.ndarray, at_ms: np.ndarray) -> None:
    """Write the rows of ``order`` as a Mooncake trace, each at its time of ``at_ms``."""
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
