"""The simulated cluster: NVIDIA's simulator with Dynamo's own router, in this process.

Input: a topology read from ``deploy.yaml``, a profile and a trace. Output: the requests table and
the simulator's summary; nothing is measured. It calls what ``aisimulate predict --stack dynamo``
calls (``aisimulate.compiler``, ``dynamo.replay.api``), and asks beside that for every request's
record and for progress.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from kvab.clusters.base import (
    Cluster,
    ClusterRun,
    Collected,
    Finding,
    Job,
    Progress,
    installed,
    look,
)
from kvab.declarations import Json
from kvab.errors import DependencyError, InputError
from kvab.requests.table import itl_ms, typed
from kvab.study import Live, Simulated, Study
from kvab.study.topology import Topology, WorkerGroup, declared_topology
from kvab.trace.reading import Trace, row_lines

if TYPE_CHECKING:
    from aisimulate.sweeper.replay import BackendDeploymentSpec, ReplaySpec

PACKAGES = ("ai-dynamo", "aisimulate")
ALIKE_STEP_MS = 0.001
CLOCK_DECIMALS = 4  # of times in ms: the simulator's records come back as exact
PROGRESS_INTERVAL_MS = 30_000.0
ROUTER_POLICIES = {"round_robin": "round_robin", "kv": "kv_router"}


class Report(Protocol):
    """What the simulator returns of a replay: a record of each request, and their summary."""

    per_request: list[Json] | None
    summary: Json


class SimulatedCluster(Cluster):
    """NVIDIA's simulator as a cluster."""

    def __init__(self, profile: Simulated) -> None:
        self.profile = profile

    def identity(self) -> dict[str, object]:
        """Return what the profile says of timing, and the versions of the simulator's packages."""
        timing = self.profile.model_dump(exclude={"kind", "name", "description"})
        return {**timing, **installed("simulate", *PACKAGES)}

    def check(self, study: Study) -> list[Finding]:
        """Return whether the simulator is here, and whether it can time each configuration."""
        name = f"cluster {self.profile.name} ({self.profile.kind})"
        found = look(name, lambda: ", ".join(map(" ".join, versions(self.profile).items())))
        return [found, *(check_times(study, self.profile) if found.ok else ())]

    def start(self, job: Job, *, take_over: bool = False) -> SimulatedRun:
        """Return the run of a job; nothing of it outlives this process."""
        return SimulatedRun(self.profile, job)


class SimulatedRun(ClusterRun):
    """One simulation; it ends with `replay`, so that there is nothing to stop."""

    def __init__(self, profile: Simulated, job: Job) -> None:
        self.profile, self.job = profile, job

    def prepare(self) -> dict[str, str]:
        """Load the simulator and return the versions in use."""
        return versions(self.profile)

    def deploy(self) -> None:
        """Do nothing: the topology is built when it is simulated."""

    def replay(self, on_progress: Progress | None = None) -> None:
        """Simulate the job's rows."""
        job = self.job
        self.requests, self.summary = simulate(
            self.profile, job.topology, job.trace, job.order(), on_progress
        )

    def collect(self) -> Collected:
        """Return the requests table and the simulator's summary."""
        text = json.dumps(self.summary, indent=2, default=str)
        return Collected(requests=self.requests, files={"simulation.json": text.encode()})

    def diagnostics(self) -> Collected:
        """Return nothing: the error says all."""
        return Collected(requests=None)

    def teardown(self, *, keep_answers: bool) -> str:
        """Do nothing: a later start begins anew."""
        return ""


def versions(profile: Simulated | Live) -> dict[str, str]:
    """Load the simulator; return the versions of its packages and of its measured kernel data.

    Raises
    ------
    InputError
        If it has no data of the hardware with the backend.
    """
    packages = installed("simulate", *PACKAGES)
    os.environ.update(HF_HUB_OFFLINE="1")
    os.environ.setdefault("DYN_LOG", "error")
    from aisimulate_core.sdk.perf_database import get_version_slots

    data = (get_version_slots(profile.hardware, profile.backend) or {}).get("current")
    if data is None:
        has = _measured("System", Backend=profile.backend)
        which = has or _measured("Backend")
        raise InputError(
            f"cluster {profile.name}: the simulator has no measured data for hardware "
            f"{profile.hardware} with backend {profile.backend}; it has "
            f"{'hardware' if has else 'backends'} {', '.join(sorted(which))}"
        )
    return {**packages, "kernel data": data}


def _measured(column: str, **of: str) -> set[str]:
    """Return what the simulator has measured data of, by a column of its own list."""
    from aisimulate_core.sdk.common import get_support_matrix

    return {row[column] for row in get_support_matrix() if of.items() <= row.items()}


def check_times(study: Study, profile: Simulated | Live) -> Iterator[Finding]:
    """Yield for each configuration whether the simulator can time it; replays nothing."""
    for name in study.configurations:
        yield look(name, lambda: timed(declared_topology(study, name), profile))  # noqa: B023


def timed(topology: Topology, profile: Simulated | Live) -> str:
    """Return that the simulator can time a topology; loads its engines.

    Raises
    ------
    InputError
        If it has no data of the model on this hardware and backend, or the model does not fit.
    """
    versions(profile)
    hardware, backend = profile.hardware, profile.backend
    model = next(iter(topology.groups.values())).model
    try:
        # A transfer takes sizes of the model, which are asked for before its times are.
        free = profile.model_copy(update={"kv_transfer_gb_per_s": None})
        config = prediction(topology, free, Path(os.devnull), 1)
        _engines(_compiled(config)[0].backend_deployment, {})
    except ValueError as error:
        models = _measured("HuggingFaceID", System=hardware, Backend=backend, Status="PASS")
        near = ", ".join(difflib.get_close_matches(model, models, 3, 0)) or "none"
        problem = (
            f"has no measured data of {model} on {hardware} with {backend}; of the {len(models)} "
            f"models that it has there the nearest are {near}"
        )
        if model in models:
            reason = str(error).rstrip(".")
            problem = (
                f"cannot serve {model} on {hardware}: {reason}; change deploy.yaml or the profile"
            )
        raise InputError(f"{topology.deployment}: the simulator {problem}") from None
    return f"the simulator has {model} on {hardware} with {backend}"


def simulate(
    profile: Simulated,
    topology: Topology,
    trace: Trace,
    order: np.ndarray,
    on_progress: Progress | None = None,
) -> tuple[pd.DataFrame, Json]:
    """Return the requests table of a simulated replay, and what was asked and summarized."""
    sent = sending(trace, order, profile.frontend_ms_per_1k_tokens)
    at_ms = sent["reached_ms"].to_numpy()
    report, config = simulated(profile, topology, trace, order, at_ms, on_progress=on_progress)
    requests = from_simulator(report.per_request or [], sent)
    return requests, {"prediction": config, "summary": report.summary}


def simulated(
    profile: Simulated,
    topology: Topology,
    trace: Trace,
    order: np.ndarray,
    at_ms: np.ndarray,
    users: int | None = None,
    on_progress: Progress | None = None,
) -> tuple[Report, Json]:
    """Return the simulator's report on the rows of ``order``, and what it was asked.

    They reach the router at the times of ``at_ms``; with ``users`` instead as soon as fewer than
    so many are under way.
    """
    # A file without a name: nothing is left of it, however this process ends.
    with tempfile.TemporaryFile(prefix="kvab-") as file:
        path = Path(f"/proc/self/fd/{file.fileno()}")
        timestamp_ms = np.empty(len(trace))
        timestamp_ms[order] = at_ms
        moved = replace(trace, timestamp_ms=timestamp_ms, synthetic=False)
        path.write_text("\n".join(row_lines(moved, order[np.argsort(at_ms, kind="stable")])))
        config = prediction(topology, profile, path, trace.block_tokens)
        if users:
            config["traffic"]["load"] = {"type": "concurrency", "concurrency": users}
        return run_prediction(config, on_progress), config


def reached_ms(sent: np.ndarray, input_tokens: np.ndarray, ms_per_1k_tokens: float) -> np.ndarray:
    """Return when each request reaches the router through a frontend that reads one at a time.

    Parameters
    ----------
    sent : ndarray of float64
        When each is sent, in ms; those of one instant are read in the order given.
    input_tokens : ndarray of int
        Their prompts.
    ms_per_1k_tokens : float
        How long the frontend takes for a thousand prompt tokens, in ms; 0 is at once.

    Returns
    -------
    ndarray of float64
        In ms, aligned with ``sent``: a read begins when the request is there and the one before it
        is read.

    Examples
    --------
    >>> reached_ms(np.array([0.0, 0.0, 50.0]), np.array([2000, 6000, 1000]), 1.0).tolist()
    [2.0, 8.0, 51.0]
    """
    if not ms_per_1k_tokens:
        return sent
    by_time = np.argsort(sent, kind="stable")
    takes = input_tokens[by_time] * ms_per_1k_tokens / 1000
    # Ends of a queue with one server: max over i <= k of arrival i and all that is read since.
    read = np.cumsum(takes)
    ends = np.maximum.accumulate(sent[by_time] - (read - takes)) + read
    reached = np.empty_like(ends)
    reached[by_time] = ends.round(CLOCK_DECIMALS)
    return reached


def sending(
    trace: Trace, order: np.ndarray, frontend_ms_per_1k_tokens: float = 0.0
) -> pd.DataFrame:
    """Return when each row of ``order`` is sent, so that its record can be recognised.

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
    frontend_ms_per_1k_tokens : float
        See `reached_ms`.

    Returns
    -------
    DataFrame
        A row for each of ``order``: row, arrival_ms, input_tokens, requested_output_tokens, sent_ms
        and reached_ms (at the router).
    """
    sent = pd.DataFrame(
        {
            "row": order,
            "arrival_ms": trace.arrival_ms[order],
            "input_tokens": trace.input_tokens[order],
            "requested_output_tokens": trace.output_tokens[order],
        }
    )
    alike = sent.groupby(["arrival_ms", "input_tokens", "requested_output_tokens"]).cumcount()
    sent["sent_ms"] = sent["arrival_ms"] + alike * ALIKE_STEP_MS
    at_ms, tokens = sent["sent_ms"].to_numpy(), trace.input_tokens[order]
    sent["reached_ms"] = reached_ms(at_ms, tokens, frontend_ms_per_1k_tokens)
    return sent


def prediction(
    topology: Topology, profile: Simulated | Live, trace_path: Path, block_tokens: int
) -> dict:
    """Return the simulator's prediction file for a topology, as ``aisimulate predict`` reads it.

    Raises
    ------
    InputError
        If the worker groups differ in length of context, which the simulator takes once.
    """
    groups = topology.groups
    lengths = {group.context_length for group in groups.values()}
    if len(lengths) > 1:
        raise InputError(
            f"{topology.deployment}: the simulator takes one context_length for all workers, got "
            f"{sorted(lengths)}; give every worker of deploy.yaml the same"
        )
    first = next(iter(groups.values()))
    transfer = {}
    if profile.kv_transfer_gb_per_s and topology.mode == "disaggregated":
        # The simulator counts what one GPU of the sending worker holds and sends.
        per_gpu = profile.kv_transfer_gb_per_s / groups["prefill"].tensor_parallel
        transfer = {"kv_transfer": {"bandwidth_gb_per_second": per_gpu}}
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
            **transfer,
        },
        "router": {"policy": ROUTER_POLICIES[topology.router]},
        "speedup": _speedup(topology, profile),
    }


def _speedup(topology: Topology, profile: Simulated | Live) -> dict[str, dict[str, float]]:
    """Return the engines' own settings that stretch the times of their steps, by role."""
    if isinstance(profile, Live) or profile.prefill_time_ratio == profile.decode_time_ratio == 1:
        return {}
    prefill, decode = profile.prefill_time_ratio, profile.decode_time_ratio
    steps = {
        "aggregated": {"speedup_ratio": 1 / prefill, "decode_speedup_ratio": prefill / decode},
        "prefill": {"speedup_ratio": 1 / prefill},
        "decode": {"speedup_ratio": 1 / decode},
    }
    return {role: steps[role] for role in topology.groups}


def _workers(group: WorkerGroup) -> Json:
    return {
        "parallelism": {
            "replicas": group.replicas,
            "tensor": group.tensor_parallel,
            **dict.fromkeys(("pipeline", "attention_data", "moe_tensor", "moe_expert"), 1),
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


def run_prediction(config: dict, on_progress: Progress | None) -> Report:
    """Run one prediction on Dynamo's offline replay; return its report, with every request."""
    from dynamo.llm import KvRouterConfig
    from dynamo.replay.api import TelemetryOptions, run_trace_replay

    spec, hook = _compiled(config)
    deployment, done = spec.backend_deployment, 0

    def count(sample: Json) -> None:
        nonlocal done
        done += sample["traffic"]["completed_requests"]
        if on_progress:
            on_progress(done)

    telemetry = TelemetryOptions(sample_interval_ms=PROGRESS_INTERVAL_MS, callback=count)
    return run_trace_replay(
        trace_files=spec.workload["trace_paths"],
        trace_format="mooncake",
        trace_block_size=spec.workload["trace_block_size"],
        replay_concurrency=spec.workload.get("replay_concurrency"),
        router_mode=hook.get("router_mode", "round_robin"),
        router_config=KvRouterConfig.from_json(json.dumps(hook["router_config"])) if hook else None,
        performance_model_metadata=deployment.performance_model_metadata,
        capture_per_request=True,
        capture_planner_details=False,
        telemetry_options=telemetry if on_progress else None,
        **_engines(deployment, config["speedup"]),
    )


def _compiled(config: Json) -> tuple[ReplaySpec, Json]:
    """Return the replay's specification, and the router's settings."""
    from aisimulate.compiler import prediction_to_replay_spec
    from aisimulate.config.cli import CorePredictionConfig
    from aisimulate.config_adapter import PredictionAdapterContext
    from dynamo.router.simulation import create_provider

    core = CorePredictionConfig.model_validate({k: config[k] for k in ("traffic", "engine")})
    sections = core.model_dump(mode="json", exclude_none=True)
    context = PredictionAdapterContext(
        **{name: sections[name] for name in ("engine", "traffic", "evaluation")}
    )
    router = create_provider().compile_prediction(config["router"], context)
    spec = prediction_to_replay_spec(core, adapter_specs={"dynamo.router": router})
    return spec, router.runtime_hooks[0].config if router.runtime_hooks else {}


def _engines(deployment: BackendDeploymentSpec, speedup: dict[str, dict[str, float]]) -> Json:
    """Return how many workers of each role there are, and the arguments of their engines."""
    from aisimulate.runner import materialize_engine_launch_config
    from dynamo.mocker.config import normalize_mocker_config

    def engine(role: str, given: Json | None) -> object:
        settings = deployment.backend, deployment.backend_version, deployment.parallel_config
        arguments = (given or {}) | speedup.get(role, {})
        with interrupted_later():
            return normalize_mocker_config(
                materialize_engine_launch_config(*settings, arguments, role)
            )

    if deployment.deployment_mode == "agg":
        return {
            "extra_engine_args": engine("aggregated", deployment.agg_engine_args),
            "num_workers": deployment.num_workers,
        }
    return {
        "prefill_engine_args": engine("prefill", deployment.prefill_engine_args),
        "decode_engine_args": engine("decode", deployment.decode_engine_args),
        "num_prefill_workers": deployment.num_prefill_workers,
        "num_decode_workers": deployment.num_decode_workers,
    }


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
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


# --- its records as the requests table ---------------------------------------------------------

FIELDS = [
    "arrival_time_ms", "input_length", "requested_output_length", "output_length", "ttft_ms",
    "e2e_latency_ms", "first_token_ms", "first_admit_ms", "source_held_ms", "decode_admit_ms",
    "reused_input_tokens", "prefill_worker_idx", "decode_worker_idx", "terminal_status",
]  # fmt: skip


def from_simulator(records: list[dict], sent: pd.DataFrame) -> pd.DataFrame:
    """Return the requests table of a simulated replay.

    Parameters
    ----------
    records : list of dict
        The simulator's per-request records, in completion order and without row ids.
    sent : DataFrame
        See `sending`; a record belongs to the row that reached the router at the record's arrival
        time with its lengths. The simulator counts from the first of these times.

    Returns
    -------
    DataFrame
        Columns of `kvab.requests.table.SCHEMA`, sorted by row. A row without a record is lost and
        says so in ``error``. Times count from the sending. A request waits (``queue_ms``, the
        frontend's share included) until a worker admits it first; ``prefill_ms`` ends with the
        prompt's last step, of an aggregated worker with the first token; ``transfer_ms`` is until
        the decode worker admits the request, the wait for its room included; ``first_decode_ms``
        is the decode worker's step to the first token.

    Raises
    ------
    DependencyError
        If a record fits no row.
    """
    got = pd.DataFrame.from_records(records, columns=FIELDS)
    got["at_ms"] = got["arrival_time_ms"].round(CLOCK_DECIMALS)
    at_ms = (sent["reached_ms"] - sent["reached_ms"].min()).round(CLOCK_DECIMALS)
    joined = sent.assign(at_ms=at_ms).merge(
        got,
        left_on=["at_ms", "input_tokens", "requested_output_tokens"],
        right_on=["at_ms", "input_length", "requested_output_length"],
        how="left",
        validate="one_to_one",
        indicator=True,
    )
    matched = (joined["_merge"] == "both").sum()
    if len(got) > matched:
        raise DependencyError(
            f"the simulator returned {len(got)} records, but only {matched} are a row of the trace "
            "by time and lengths"
        )
    return _requests(joined.sort_values("row", ignore_index=True))


def _requests(joined: pd.DataFrame) -> pd.DataFrame:
    """Return the requests table of rows and their records; NaN where a request was not served."""
    served = joined["terminal_status"] == "completed"
    aggregated = joined["prefill_worker_idx"].isna().all()
    frontend_ms = joined["reached_ms"] - joined["sent_ms"]
    ttft_ms, latency_ms = (
        (joined[c] + frontend_ms).where(served) for c in ("ttft_ms", "e2e_latency_ms")
    )
    output_tokens = joined["output_length"].fillna(0)
    status = joined["terminal_status"].fillna("lost: the simulator returned no record")
    status = status.replace("rejected", "rejected: longer than a worker takes")
    done = joined[served]
    admitted, first = done["first_admit_ms"], done["first_token_ms"]
    held = first if aggregated else done["source_held_ms"]
    decoding = first if aggregated else done["decode_admit_ms"]
    table = joined.assign(
        output_tokens=output_tokens,
        ttft_ms=ttft_ms,
        itl_ms=itl_ms(latency_ms, ttft_ms, output_tokens.to_numpy()),
        latency_ms=latency_ms,
        cached_tokens=joined["reused_input_tokens"],
        prefill_worker=joined[f"{'decode' if aggregated else 'prefill'}_worker_idx"],
        decode_worker=joined["decode_worker_idx"],
        send_lag_ms=joined["sent_ms"] - joined["arrival_ms"],
        error=status.mask(served),
        # the parts of the TTFT, which add up to it
        queue_ms=admitted - done["arrival_time_ms"] + frontend_ms[served],
        prefill_ms=held - admitted,
        transfer_ms=decoding - held,
        first_decode_ms=first - decoding,
    )
    return typed(table.to_dict("series"))
