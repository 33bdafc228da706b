"""What a cell of a capacity sweep changes of a configuration.

Input: a speed, a split or the spreading of bursts. Output: a workload or topology so changed.
Nothing here names a GPU or a worker type: it changes numbers of what ``deploy.yaml`` deploys.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvab.errors import InputError
from kvab.study.declaration import Split
from kvab.study.topology import Topology
from kvab.trace.reading import Trace

CLOCK_DECIMALS = 3  # of sped-up arrivals in ms: the simulator's records come back as exact


def tick_ms(timestamp_ms: np.ndarray) -> float:
    """Return the step of a trace's clock: the smallest time between two of its bursts, in ms."""
    steps = np.diff(np.unique(timestamp_ms))
    return float(steps.min()) if steps.size else 0.0


def _share_of_burst(timestamp_ms: np.ndarray) -> np.ndarray:
    """Return where each row stands in its burst, as a share of 1: k / n for the k-th of n."""
    _, first, inverse, size = np.unique(
        timestamp_ms, return_index=True, return_inverse=True, return_counts=True
    )
    return (np.arange(len(timestamp_ms)) - first[inverse]) / size[inverse]


@dataclass(frozen=True)
class Variant:
    """What a replay changes, by default nothing.

    ``speed`` of arrivals, the workers' ``split``, or ``spread``: each burst evenly over the time
    to the next tick of the trace's clock, in file order, instead of all at once.
    """

    speed: float = 1.0
    split: Split | None = None
    spread: bool = False

    @property
    def place(self) -> str:
        """Folder of a cell among the cells of its configuration, such as x1.25 or 3P5D."""
        speed = [f"x{self.speed:g}"] if self.speed != 1 else []
        spread = ["spread"] if self.spread else []
        return "-".join(([self.split.label] if self.split else []) + speed + spread)

    def depends_on(self) -> dict[str, object]:
        """Return what a run depends on beside its configuration; nothing where nothing differs."""
        speed = {"arrival speed": self.speed} if self.speed != 1 else {}
        spread = {"bursts": "spread"} if self.spread else {}
        return speed | spread | ({"replicas": self.split.model_dump()} if self.split else {})

    def trace(self, trace: Trace) -> Trace:
        """Return the trace with arrivals at this speed; name and sha256 stay the source's."""
        at_ms = trace.timestamp_ms
        if self.spread:
            at_ms = at_ms + tick_ms(at_ms) * _share_of_burst(at_ms)
        if self.speed != 1:
            at_ms = at_ms / self.speed
        return trace if at_ms is trace.timestamp_ms else replace(
            trace, timestamp_ms=at_ms.round(CLOCK_DECIMALS)
        )  # fmt: skip

    def topology(self, topology: Topology) -> Topology:
        """Return the topology with this split; everything else stays ``deploy.yaml``'s.

        Raises
        ------
        InputError
            If it has no prefill and decode workers, or would use another number of GPUs.
        """
        if self.split is None:
            return topology
        numbers = self.split.model_dump()
        if set(topology.groups) != set(numbers):
            raise InputError(
                expected=f"prefill and decode workers for the split {self.split.label}",
                got=" and ".join(topology.groups),
                path=topology.deployment,
                fix="sweep a disaggregated configuration",
            )
        groups = {
            role: replace(group, replicas=numbers[role]) for role, group in topology.groups.items()
        }
        varied = replace(topology, groups=groups)
        if varied.gpus != topology.gpus:
            raise InputError(
                expected=f"the {topology.gpus} GPUs of deploy.yaml",
                got=f"{varied.gpus} for the split {self.split.label}",
                path=topology.deployment,
                fix="compare splits of equal hardware",
            )
        return varied


AS_DECLARED = Variant()
