"""One prediction on Dynamo's offline replay, with Dynamo's router.

Input: a prediction. Output: the simulator's report, a record for each request. It calls what
``aisimulate predict --stack dynamo`` calls (``aisimulate.compiler``, ``dynamo.replay.api``), and
asks beside that for every request's record and for progress.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

PROGRESS_INTERVAL_MS = 30_000.0


def run(config: dict, progress: Callable[[int], None] | None) -> Any:
    """Run one prediction; ``progress`` gets the number of requests done so far."""
    from dynamo.llm import KvRouterConfig
    from dynamo.replay.api import TelemetryOptions, run_trace_replay

    spec, hook = _compiled(config)
    deployment, done = spec.backend_deployment, 0

    def tell(sample: dict[str, Any]) -> None:
        nonlocal done
        done += sample["traffic"]["completed_requests"]
        if progress:
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
        **_workers(deployment),
    )


def check(config: dict) -> None:
    """Load the engines of a prediction as a replay does, and replay nothing.

    Raises
    ------
    ValueError
        The simulator's own words on what it cannot time, or on what does not fit.
    """
    _workers(_compiled(config)[0].backend_deployment)


def _compiled(config: dict) -> tuple[Any, dict[str, Any]]:
    """Return the replay's specification, and what the router is told."""
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


def _workers(deployment: Any) -> dict[str, Any]:
    """Return how many workers of each role there are, and the arguments of their engines."""
    if deployment.deployment_mode == "agg":
        return {
            "extra_engine_args": _engine(deployment, "aggregated", deployment.agg_engine_args),
            "num_workers": deployment.num_workers,
        }
    return {
        "prefill_engine_args": _engine(deployment, "prefill", deployment.prefill_engine_args),
        "decode_engine_args": _engine(deployment, "decode", deployment.decode_engine_args),
        "num_prefill_workers": deployment.num_prefill_workers,
        "num_decode_workers": deployment.num_decode_workers,
    }


def _engine(deployment: Any, role: str, arguments: Any) -> Any:
    from aisimulate.runner import materialize_engine_launch_config
    from dynamo.mocker.config import normalize_mocker_config

    with interrupted_later():
        return normalize_mocker_config(
            materialize_engine_launch_config(
                deployment.backend,
                deployment.backend_version,
                deployment.parallel_config,
                arguments,
                role,
            )
        )


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
