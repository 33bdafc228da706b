"""The simulated cluster: its five steps are those of every kind of cluster.

Input: a profile, a topology and a trace. Output: the requests table and the simulator's summary.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.clusters.simulate import engine
from kvab.clusters.simulate.predictions import prediction, sent_ms, write_trace
from kvab.errors import DependencyError, InputError
from kvab.requests.simulator import from_simulator
from kvab.study import Live, Simulated
from kvab.study.recipes import Topology
from kvab.trace import Trace


def _measured() -> list[dict[str, str]]:
    """Return the simulator's own list of what it has measured data of."""
    from aisimulate_core.sdk.common import get_support_matrix

    return get_support_matrix()


class Simulator:
    """NVIDIA's simulator as a cluster."""

    def __init__(self, profile: Simulated | Live) -> None:
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
            has = {row["System"] for row in _measured() if row["Backend"] == self.profile.backend}
            which = has or {row["Backend"] for row in _measured()}
            raise InputError(
                f"cluster {self.profile.name}: the simulator has no measured data for hardware "
                f"{self.profile.hardware} with backend {self.profile.backend}; it has "
                f"{'hardware' if has else 'backends'} {', '.join(sorted(which))}"
            )
        return {name: identity[name] for name in ("ai-dynamo", "aisimulate")} | {
            "kernel data": data
        }

    def check(self, topology: Topology) -> str:
        """Return that the simulator can time a topology; loads its engines, replays nothing.

        Raises
        ------
        InputError
            If it has no data of the model on this hardware and backend, or the model does not fit.
        """
        self.prepare()
        hardware, backend = self.profile.hardware, self.profile.backend
        model = next(iter(topology.groups.values())).model
        try:
            engine.check(prediction(topology, self.profile, Path(os.devnull), 1))
        except ValueError as error:
            place = {"System": hardware, "Backend": backend, "Status": "PASS"}
            models = {row["HuggingFaceID"] for row in _measured() if place.items() <= row.items()}
            if model in models:
                reason = str(error).rstrip(".")
                raise InputError(
                    f"{topology.deployment}: the simulator cannot serve {model} on {hardware}: "
                    f"{reason}; change deploy.yaml or the profile"
                ) from None
            near = difflib.get_close_matches(model, models, 3, 0) if models else ["none"]
            raise InputError(
                f"{topology.deployment}: the simulator has no measured data of {model} on "
                f"{hardware} with {backend}; of the {len(models)} models that it has there the "
                f"nearest are {', '.join(near)}"
            ) from None
        return f"the simulator has {model} on {hardware} with {backend}"

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
            write_trace(path, trace, order, at_ms)
            config = prediction(self.topology, self.profile, path, trace.block_tokens)
            report = engine.run(config, progress)
        self.requests = from_simulator(report.per_request, trace, order, at_ms)
        self.summary = {"prediction": config, "summary": report.summary}

    def collect(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """Return the requests table and the artifacts by file name."""
        text = json.dumps(self.summary, indent=2, default=str)
        return self.requests, {"simulation.json": text.encode()}

    def teardown(self) -> None:
        """Nothing to stop: the simulation ended with the replay."""
