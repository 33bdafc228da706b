"""What a cell of a sweep changes: of the workload, of a configuration or of the simulated cluster.

Input: a speed, the spreading of bursts, a split, a chunk size, or what a profile says of timing.
Output: a workload, topology or profile so changed. Nothing here names a GPU or a worker type: it
changes numbers of what ``deploy.yaml`` and the profile declare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kvab.errors import InputError
from kvab.study import Profile, Simulated, Split
from kvab.study.topology import Topology
from kvab.trace.conversations import with_reuse
from kvab.trace.reading import Trace, burst_order

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

    Attributes
    ----------
    speed : float
        Of arrivals, in multiples of the trace's.
    split : Split or None
        The workers.
    spread : bool
        Each burst evenly over the time to the next tick of the trace's clock, in the order of
        sending, instead of all at once.
    chunk_tokens : int or None
        Tokens that a step batches at most (``--max-num-batched-tokens``).
    tensor_parallel : int or None
        GPUs of each aggregated worker, of as many workers as the same GPUs make.
    kv_transfer_gb_per_s, frontend_ms_per_1k_tokens : float or None
        As in the profile; a transfer of infinite bandwidth is free.
    prefill_time_ratio, decode_time_ratio : float
        As in the profile.
    reuse : float
        Share of the conversations that keep their blocks, see `with_reuse`.
    again : int
        Which replay more of the very same: behind the KV router no two are alike.
    counted : bool
        One of many orders, of which only statistics are kept.
    """

    speed: float = 1.0
    split: Split | None = None
    spread: bool = False
    chunk_tokens: int | None = None
    tensor_parallel: int | None = None
    kv_transfer_gb_per_s: float | None = None
    frontend_ms_per_1k_tokens: float | None = None
    prefill_time_ratio: float = 1.0
    decode_time_ratio: float = 1.0
    reuse: float = 1.0
    again: int = 0
    counted: bool = False

    @property
    def place(self) -> str:
        """Folder of a cell among the cells of its configuration, such as x1.25 or 3P5D."""
        parts = {
            self.split.label if self.split else "": True,
            f"x{self.speed:g}": self.speed != 1,
            "spread": self.spread,
            f"chunk{self.chunk_tokens}": self.chunk_tokens,
            f"tp{self.tensor_parallel}": self.tensor_parallel,
            f"kv{self.kv_transfer_gb_per_s}": self.kv_transfer_gb_per_s,
            f"frontend{self.frontend_ms_per_1k_tokens}": self.frontend_ms_per_1k_tokens is not None,
            f"prefill{self.prefill_time_ratio:g}": self.prefill_time_ratio != 1,
            f"decode{self.decode_time_ratio:g}": self.decode_time_ratio != 1,
            f"reuse{self.reuse:g}": self.reuse != 1,
            f"again{self.again}": self.again,
            "order": self.counted,
        }
        return "-".join(part for part, changed in parts.items() if part and changed)

    def depends_on(self) -> dict[str, object]:
        """Return what a run depends on beside configuration and profile; nothing by default."""
        changes: dict[str, tuple[object, object]] = {
            "arrival speed": (self.speed != 1, self.speed),
            "bursts": (self.spread, "spread"),
            "chunk tokens": (self.chunk_tokens, self.chunk_tokens),
            "reuse": (self.reuse != 1, self.reuse),
            "tensor parallel": (self.tensor_parallel, self.tensor_parallel),
            "again": (self.again, self.again),
            "replicas": (self.split, self.split and self.split.model_dump()),
        }
        return {name: value for name, (changed, value) in changes.items() if changed}

    def profile(self, profile: Profile) -> Profile:
        """Return the profile with what is changed of it; of a simulated cluster alone."""
        if not isinstance(profile, Simulated):
            return profile
        changes: dict[str, float | None] = {}
        if self.kv_transfer_gb_per_s:
            free = np.isinf(self.kv_transfer_gb_per_s)
            changes["kv_transfer_gb_per_s"] = None if free else self.kv_transfer_gb_per_s
        if self.frontend_ms_per_1k_tokens is not None:
            changes["frontend_ms_per_1k_tokens"] = self.frontend_ms_per_1k_tokens
        for key in ("prefill_time_ratio", "decode_time_ratio"):
            changes[key] = getattr(profile, key) * getattr(self, key)
        return profile.model_copy(update=changes)

    def trace(self, trace: Trace, seed: int) -> Trace:
        """Return the trace with these arrivals and blocks; name and sha256 stay the source's.

        ``seed`` is that of the repeat: with bursts spread it shuffles who is sent when.
        """
        if self.reuse != 1:
            trace = with_reuse(trace, self.reuse)
        at_ms = trace.timestamp_ms
        if self.spread:
            share = np.empty(len(at_ms))
            share[burst_order(at_ms, seed)] = _share_of_burst(at_ms)
            at_ms = at_ms + tick_ms(at_ms) * share
        if self.speed != 1:
            at_ms = at_ms / self.speed
        return trace if at_ms is trace.timestamp_ms else replace(
            trace, timestamp_ms=at_ms.round(CLOCK_DECIMALS)
        )  # fmt: skip

    def topology(self, topology: Topology) -> Topology:
        """Return the topology with these workers and chunks; all else stays ``deploy.yaml``'s.

        Raises
        ------
        InputError
            If it has no prefill and decode workers, or would use another number of GPUs.
        """
        varied, gpus = topology, self.tensor_parallel
        if self.chunk_tokens:
            varied = varied.with_workers(max_batched_tokens=self.chunk_tokens)
        if gpus and topology.mode == "aggregated":  # as many workers as the same GPUs make
            replicas = topology.gpus // gpus
            varied = varied.with_workers(
                replicas=replicas, gpus_per_worker=gpus, tensor_parallel=gpus
            )
        if self.split:
            numbers = self.split.model_dump()
            if set(topology.groups) != set(numbers):
                expected = f"prefill and decode workers for the split {self.split.label}"
                got, fix = " and ".join(topology.groups), "sweep a disaggregated configuration"
                raise InputError(expected=expected, got=got, path=topology.deployment, fix=fix)
            groups = {
                role: group.model_copy(update={"replicas": numbers[role]})
                for role, group in varied.groups.items()
            }
            varied = replace(varied, groups=groups)
        if varied.gpus != topology.gpus:
            expected = f"the {topology.gpus} GPUs of deploy.yaml"
            got, fix = f"{varied.gpus} for {self.place}", "compare workers on equal hardware"
            raise InputError(expected=expected, got=got, path=topology.deployment, fix=fix)
        return varied


AS_DECLARED = Variant()
