"""What is deployed: manifests read, changed, rendered, compared."""

from kvab.recipes.reading import (
    VLLM_DEFAULTS,
    Configuration,
    Topology,
    WorkerGroup,
    aiperf_command,
    difference,
    flatten,
    goodput_slo,
    read_configuration,
    topology,
)

__all__ = [
    "VLLM_DEFAULTS",
    "Configuration",
    "Topology",
    "WorkerGroup",
    "aiperf_command",
    "difference",
    "flatten",
    "goodput_slo",
    "read_configuration",
    "topology",
]
