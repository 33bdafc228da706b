"""What is deployed: manifests read and checked, as fields or as a topology."""

from kvab.study.recipes.benchmark import aiperf_command, goodput_slo
from kvab.study.recipes.declared import check_gpus, declared_topology
from kvab.study.recipes.fields import flatten
from kvab.study.recipes.flags import VLLM_DEFAULTS
from kvab.study.recipes.folder import read_configuration
from kvab.study.recipes.manifests import Configuration
from kvab.study.recipes.reading import topology
from kvab.study.topology import Topology, WorkerGroup

__all__ = [
    "VLLM_DEFAULTS",
    "Configuration",
    "Topology",
    "WorkerGroup",
    "aiperf_command",
    "check_gpus",
    "declared_topology",
    "flatten",
    "goodput_slo",
    "read_configuration",
    "topology",
]
