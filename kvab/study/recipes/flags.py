"""What is known of every argument and field of a manifest: what it sets, or why it cannot.

Input: nothing. Output: the tables from which a topology is read.
"""

from __future__ import annotations

from typing import NamedTuple

from kvab.study.recipes.manifests import FRONTEND, KIND, VLLM

# What the engine does on an H200 where a flag is absent. Source: vLLM 0.23 (vllm-runtime 1.3.1),
# EngineArgs.get_batch_defaults (served through the API, 70 GiB or more) and CacheConfig.
VLLM_DEFAULTS = {"tensor_parallel": 1, "block_size": 16, "gpu_memory_fraction": 0.92}
VLLM_DEFAULTS |= {"prefix_caching": True, "max_batched_tokens": 8192, "max_sequences": 1024}


class Flag(NamedTuple):
    """A known argument: its program, the field that it sets or why the simulator has none."""

    program: str
    sets: str = ""
    why: str = ""
    switch: bool = False


FLAGS = {
    "--router-mode": Flag(FRONTEND, "router"),
    "--router-reset-states": Flag(FRONTEND, "", "a simulated router always starts empty", True),
    "--model": Flag(VLLM, "model"),
    "--disaggregation-mode": Flag(VLLM, "role"),
    "--tensor-parallel-size": Flag(VLLM, "tensor_parallel"),
    "--block-size": Flag(VLLM, "block_size"),
    "--gpu-memory-utilization": Flag(VLLM, "gpu_memory_fraction"),
    "--max-model-len": Flag(VLLM, "context_length"),
    "--max-num-batched-tokens": Flag(VLLM, "max_batched_tokens"),
    "--max-num-seqs": Flag(VLLM, "max_sequences"),
    "--enable-prefix-caching": Flag(VLLM, "prefix_caching", "", True),
    "--no-enable-prefix-caching": Flag(VLLM, "prefix_caching", "", True),
    "--async-scheduling": Flag(VLLM, "", "scheduling takes no time in the simulator", True),
    "--hf-overrides": Flag(VLLM, "", "no rope scaling is simulated, only the context length"),
    "--kv-events-config": Flag(VLLM, "", "implied by the router mode"),
    "--kv-transfer-config": Flag(VLLM, "", "the simulator moves KV blocks by its own model"),
    "--no-enable-log-requests": Flag(VLLM, "", "a simulated engine writes no log", True),
    "--disable-log-requests": Flag(VLLM, "", "a simulated engine writes no log", True),
}
EXPRESSED = {"metadata.name", *KIND, "componentType", "subComponentType", "replicas", "command"}
EXPRESSED |= {"resources.limits.gpu", "resources.requests.gpu", "env.DYN_ROUTER_MODE"}
UNEXPRESSED = {  # the first pattern that fits gives the reason
    "env*": "the simulator starts no process that reads it",
    "image": "no image runs in the simulator",
    "workingDir": "no image runs in the simulator",
    "resources.*.custom.*": "the simulated nodes have no network devices",
    "resources.*": "host CPU and memory are not simulated",
    "volumeMounts.*": "the simulator reads no model files",
    "spec.pvcs.*": "the simulator reads no model files",
    "extraPodMetadata.*": "labels and annotations do not change how a pod serves",
    "*": "a Kubernetes setting without a counterpart in the simulator",
}
INEXPRESSIBLE = ("autoscaling", "failover", "multinode", "scalingAdapter")
