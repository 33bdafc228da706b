"""What a configuration deploys, as every kind of cluster is told.

Read from manifests by `kvab.study.recipes`; a sweep varies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass as checked

from kvab.console import counted


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("expected a power of two")
    return value


Count = Annotated[int, Field(ge=1)]


@checked(frozen=True)
class WorkerGroup:
    """The identical workers of one role; lengths in tokens, the memory fraction a share of 1."""

    component: str
    replicas: Count
    gpus_per_worker: Count
    image: str
    model: str
    context_length: Count
    kv_events: bool
    tensor_parallel: Count
    block_size: Annotated[int, Field(ge=1, le=512), AfterValidator(_power_of_two)]
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)]
    prefix_caching: bool
    max_batched_tokens: Count
    max_sequences: Count


class Unexpressed(NamedTuple):
    """A field of the manifest that the simulator cannot express, and why."""

    component: str
    field: str
    value: str
    why: str


@dataclass(frozen=True)
class Topology:
    """What a ``deploy.yaml`` deploys; ``groups`` are keyed by role."""

    deployment: str
    mode: Literal["aggregated", "disaggregated"]
    router: Literal["round_robin", "kv"]
    groups: dict[str, WorkerGroup]
    unexpressed: tuple[Unexpressed, ...]

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(group.replicas * group.gpus_per_worker for group in self.groups.values())

    def describe(self) -> str:
        """Return the topology in one sentence."""
        workers = " and ".join(
            f"{counted(group.replicas, role + ' worker')} of "
            + counted(group.gpus_per_worker, "GPU")
            for role, group in self.groups.items()
        )
        router = self.router.replace("_", "-")
        return f"{self.deployment}: {workers}, {router} routing, {counted(self.gpus, 'GPU')}."
