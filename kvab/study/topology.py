"""What a configuration deploys, as every kind of cluster is given it.

Input: a `Configuration`. Output: a checked `Topology`, with every field of ``deploy.yaml`` that
the simulator cannot express; held against what the study declares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from kvab.console import counted
from kvab.declarations import Declared, Json, checked
from kvab.errors import InputError
from kvab.study import Count, Study
from kvab.study.manifests import (
    FIX,
    FRONTEND,
    KIND,
    VLLM,
    Component,
    Configuration,
    at,
    read_configuration,
)

Router = Literal["round_robin", "kv"]
ROUTERS: dict[str, Router] = {"round-robin": "round_robin", "kv": "kv"}
ROLES = {"agg": "aggregated", "prefill": "prefill", "decode": "decode"}


class Flag(NamedTuple):
    """A known argument: its program, the field that it sets, and why the simulator has none.

    ``default`` is what the engine does on an H200 where the flag is absent. Source: vLLM 0.23
    (vllm-runtime 1.3.1), EngineArgs.get_batch_defaults (served through the API, 70 GiB or more)
    and CacheConfig. A ``switch`` takes no value.
    """

    program: str
    sets: str = ""
    default: float | None = None
    switch: bool = False
    why: str = ""


NO_LOG = Flag(VLLM, switch=True, why="a simulated engine writes no log")
FLAGS = {
    "--router-mode": Flag(FRONTEND, "router"),
    "--router-reset-states": Flag(
        FRONTEND, switch=True, why="a simulated router always starts empty"
    ),
    "--model": Flag(VLLM, "model"),
    "--disaggregation-mode": Flag(VLLM, "role"),
    "--tensor-parallel-size": Flag(VLLM, "tensor_parallel", 1),
    "--block-size": Flag(VLLM, "block_size", 16),
    "--gpu-memory-utilization": Flag(VLLM, "gpu_memory_fraction", 0.92),
    "--max-model-len": Flag(VLLM, "context_length"),
    "--max-num-batched-tokens": Flag(VLLM, "max_batched_tokens", 8192),
    "--max-num-seqs": Flag(VLLM, "max_sequences", 1024),
    "--enable-prefix-caching": Flag(VLLM, "prefix_caching", True, switch=True),
    "--no-enable-prefix-caching": Flag(VLLM, "prefix_caching", True, switch=True),
    "--async-scheduling": Flag(VLLM, switch=True, why="scheduling takes no time in the simulator"),
    "--hf-overrides": Flag(VLLM, why="no rope scaling is simulated, only the context length"),
    "--kv-events-config": Flag(VLLM, why="implied by the router mode"),
    "--kv-transfer-config": Flag(
        VLLM, why="no connector is simulated; the profile says how fast KV blocks move"
    ),
    "--no-enable-log-requests": NO_LOG,
    "--disable-log-requests": NO_LOG,
}
VLLM_DEFAULTS = {flag.sets: flag.default for flag in FLAGS.values() if flag.default is not None}
# Why the simulator cannot express a field; "" where it can. The first pattern that fits counts.
FIELDS = {
    **dict.fromkeys(("apiVersion", "kind", "metadata.name"), ""),
    **dict.fromkeys(("componentType", "subComponentType", "replicas", "command"), ""),
    **dict.fromkeys(("resources.limits.gpu", "resources.requests.gpu", "env.DYN_ROUTER_MODE"), ""),
    **{f"args.{name}": flag.why for name, flag in FLAGS.items()},
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


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("expected a power of two")
    return value


class Engine(Declared):
    """Settings of an engine; lengths in tokens, the memory fraction a share of 1."""

    model: str
    context_length: Count
    block_size: Annotated[int, Field(ge=1, le=512), AfterValidator(_power_of_two)]
    gpu_memory_fraction: Annotated[float, Field(gt=0, le=1)]
    prefix_caching: bool
    max_batched_tokens: Count
    max_sequences: Count


class WorkerGroup(Engine):
    """The identical workers of one role."""

    component: str
    replicas: Count
    gpus_per_worker: Count
    image: str
    kv_events: bool
    tensor_parallel: Count


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
    router: Router
    groups: dict[str, WorkerGroup]
    unexpressed: tuple[Unexpressed, ...] = ()

    @property
    def mode(self) -> Literal["aggregated", "disaggregated"]:
        """Whether the same workers prefill and decode."""
        return "aggregated" if "aggregated" in self.groups else "disaggregated"

    @property
    def gpus(self) -> int:
        """GPUs of all workers."""
        return sum(group.replicas * group.gpus_per_worker for group in self.groups.values())

    def with_workers(self, **changes: int) -> Topology:
        """Return the topology with the same changes of all workers."""
        groups = {role: one.model_copy(update=changes) for role, one in self.groups.items()}
        return replace(self, groups=groups)

    def describe(self) -> str:
        """Return the topology in one sentence."""
        workers = " and ".join(
            f"{counted(group.replicas, role + ' worker')} of "
            + counted(group.gpus_per_worker, "GPU")
            for role, group in self.groups.items()
        )
        router = self.router.replace("_", "-")
        return f"{self.deployment}: {workers}, {router} routing, {counted(self.gpus, 'GPU')}."


def read_topology(configuration: Configuration) -> Topology:
    """Return what ``deploy.yaml`` deploys, with the fields that the simulator cannot express.

    Raises
    ------
    InputError
        If a flag is unknown, a value is out of range or fields contradict each other.
    """
    parts = configuration.components().values()
    for part in parts:
        _check_known(part)
    frontends = [part for part in parts if part.program == FRONTEND]
    right = [part.declared.replicas for part in frontends] == [1]
    expected, got = "one frontend with one replica", "another number"
    configuration.expect(right, "spec.services", expected, got)
    router = _router(frontends[0])
    groups: dict[str, WorkerGroup] = {}
    for part in parts:
        if part.program == VLLM:
            role = _role(part)
            expected = f"one service with the role {role}"
            configuration.expect(role not in groups, part.name, expected, "two")
            groups[role] = _group(part)
    right = set(groups) in ({"aggregated"}, {"prefill", "decode"})
    expected, got = "aggregated, or prefill and decode", " and ".join(sorted(groups))
    configuration.expect(right, "spec.services", expected, got)
    if router == "kv":
        _check_kv_routing(configuration, groups)
    return Topology(
        deployment=configuration.deployment,
        router=router,
        groups={role: groups[role] for role in ROLES.values() if role in groups},
        unexpressed=tuple(_unexpressed(configuration)),
    )


def _check_known(part: Component) -> None:
    for field in INEXPRESSIBLE:
        part.expect(not part.service.get(field), field, "none: it cannot be simulated")
    for name in part.environment:  # variables that stand for arguments
        stands = name.startswith(("DYN_ROUTER_", "DYN_VLLM_")) and name != "DYN_ROUTER_MODE"
        part.expect(not stands, f"env.{name}", "an argument instead of this variable")
    flags = {name: flag for name, flag in FLAGS.items() if flag.program == part.program}
    for name, value in part.flags.items():
        key = f"args.{name}"
        part.expect(name in flags, key, f"only flags that the study knows ({', '.join(flags)})")
        switch = flags[name].switch
        part.expect(switch == (value is None), key, f"{'no' if switch else 'a'} value", value)


def _router(frontend: Component) -> Router:
    # As in the frontend, the argument wins over the variable.
    default = frontend.environment.get("DYN_ROUTER_MODE", "round-robin")
    mode = frontend.flags.get("--router-mode") or default
    frontend.expect(mode in ROUTERS, "args.--router-mode", " or ".join(ROUTERS), mode)
    return ROUTERS[mode]


def _role(part: Component) -> str:
    mode, flag = part.flags.get("--disaggregation-mode") or "agg", "args.--disaggregation-mode"
    part.expect(mode in ROLES, flag, f"one of {', '.join(ROLES)}", mode)
    # The published aggregated workers have the subtype decode.
    others = {"prefill", "decode"} - {"decode" if mode == "agg" else mode}
    types = {"componentType": part.declared.kind, "subComponentType": part.declared.role}
    for field, kind in types.items():
        expected = f"a worker of --disaggregation-mode {mode}"
        part.expect(kind not in others, field, expected, kind)
    return ROLES[mode]


def _group(part: Component) -> WorkerGroup:
    flags = {FLAGS[name].sets: name for name in part.flags}
    values: Json = VLLM_DEFAULTS | {
        field: part.flags[name] for field, name in flags.items() if field not in ("", "role")
    }
    if "prefix_caching" in flags:
        values["prefix_caching"] = "--no-enable-prefix-caching" not in part.flags
    events = _json(part, "--kv-events-config")
    values |= {
        "component": part.name,
        "replicas": part.declared.replicas,
        "gpus_per_worker": part.declared.resources.limits.gpu or 0,
        "image": part.declared.image,
        "kv_events": events.get("enable_kv_cache_events") is True,
    }
    try:
        group = checked(values, WorkerGroup, part.path, FIX)
    except InputError as error:
        keys = {flag.sets: f"args.{name}" for name, flag in FLAGS.items()}
        keys["gpus_per_worker"] = "resources.limits.gpu"
        error.key = f"{part.name}.{keys.get(error.key, error.key)}"
        raise
    _check_group(part, group)
    return group


def _check_group(part: Component, group: WorkerGroup) -> None:
    both = {"--enable-prefix-caching", "--no-enable-prefix-caching"} <= set(part.flags)
    part.expect(not both, "args", "prefix caching either on or off", "both")
    gpus, parallel = group.gpus_per_worker, group.tensor_parallel
    expected = f"{gpus} (resources.limits.gpu)"
    part.expect(gpus == parallel, "args.--tensor-parallel-size", expected, parallel)
    asked = part.declared.resources.requests.gpu or str(gpus)
    part.expect(asked == str(gpus), "resources.requests.gpu", f"{gpus}, as in its limits", asked)
    length = group.context_length
    longest = _json(part, "--hf-overrides").get("max_position_embeddings", length)
    right = type(longest) is int and length <= longest
    part.expect(right, "args.--max-model-len", f"at most {longest} (--hf-overrides)", length)


def _json(part: Component, flag: str) -> dict[str, object]:
    text = part.flags.get(flag) or "{}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    part.expect(isinstance(value, dict), f"args.{flag}", "a JSON object", text)
    found: dict[str, object] = value
    return found


def _check_kv_routing(configuration: Configuration, groups: dict[str, WorkerGroup]) -> None:
    caching = groups.get("prefill") or groups["aggregated"]
    sizes = sorted({group.block_size for group in groups.values()})
    for right, key, expected, got in (
        (caching.prefix_caching, f"{caching.component}.args", "prefix caching", "it switched off"),
        (caching.kv_events, f"{caching.component}.args", "KV events (--kv-events-config)", "none"),
        (len(sizes) == 1, "args.--block-size", "one block size", sizes),
    ):
        configuration.expect(right, key, f"{expected} behind a KV router", got)


def _unexpressed(configuration: Configuration) -> Iterator[Unexpressed]:
    for path, value in flatten(configuration).items():
        component, _, field = path.partition(".")
        if component not in configuration.declared.services:
            component, field = KIND, path
        why = next(why for pattern, why in FIELDS.items() if fnmatchcase(field, pattern))
        if why:
            yield Unexpressed(component, field, value, why)


def flatten(configuration: Configuration) -> dict[str, str]:
    """Return every field of ``deploy.yaml``, such as ``VllmDecodeWorker.args.--block-size``.

    Arguments are keyed by flag (a bare switch reads ``true``), environment and other named lists
    by name, so that order does not matter.
    """
    spec = {**configuration.deploy["spec"], "services": {}}
    flat = dict(_leaves({**configuration.deploy, "spec": spec}))
    hoisted = ("image", "workingDir", "command", "args", "env")
    for name, part in configuration.components().items():
        container = part.container
        rest = {key: value for key, value in container.items() if key not in hoisted}
        service = {key: value for key, value in part.service.items() if key != "envs"}
        service["extraPodSpec"] = {**part.service["extraPodSpec"], "mainContainer": rest}
        service |= {key: container[key] for key in hoisted[:2] if key in container}
        service |= {"command": part.program, "env": part.environment}
        service["args"] = {flag: value or "true" for flag, value in part.flags.items()}
        flat |= dict(_leaves(service, name))
    return flat


def _leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and all(isinstance(at(item, "name"), str) for item in value):
        value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    elif isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def check_gpus(study: Study) -> None:
    """Reject a study that would compare unequal hardware without saying so.

    Raises
    ------
    InputError
        If configurations fill different numbers of GPUs and ``gpus.differ`` is not declared, or
        the largest is not ``gpus.count``.
    """
    gpus = {name: declared_topology(study, name).gpus for name in study.configurations}
    least, most = min(gpus, key=gpus.__getitem__), max(gpus, key=gpus.__getitem__)
    if gpus[least] != gpus[most] and not study.gpus.differ:
        expected = "configurations of equal hardware"
        got = f"{least} with {gpus[least]} GPUs and {most} with {gpus[most]}"
        same = "give both the same in deploy.yaml (replicas x tensor parallelism)"
        fix = f"{same}, or declare gpus.differ: true"
        raise InputError(expected=expected, got=got, path=study.file, fix=fix)
    if gpus[most] != study.gpus.count:
        expected, got = f"{gpus[most]}, which {most} fills", f"{study.gpus.count}"
        fix = "correct it or deploy.yaml"
        raise InputError(expected=expected, got=got, path=study.file, key="gpus.count", fix=fix)


def declared_topology(study: Study, name: str) -> Topology:
    """Return the topology of a configuration's manifests.

    Raises
    ------
    InputError
        If a manifest is wrong in itself, or another split, routing, model or goodput
        than ``study.yaml`` declares.
    """
    recipe = read_configuration(study.configuration_folder(name), name)
    topology, factors, slo = read_topology(recipe), study.configurations[name].factors, study.slo
    declared = (factors.split, factors.routing.replace("-", "_"))
    expected = f"{' and '.join(declared)}, as study.yaml declares {name}"
    got = f"{topology.mode} and {topology.router}"
    recipe.expect((topology.mode, topology.router) == declared, "", expected, got)
    models, model = {group.model for group in topology.groups.values()}, study.model.name
    recipe.expect(models == {model}, "--model", f"model {model}", ", ".join(models))
    benchmark = recipe.benchmark
    expected = f"the goodput of study.yaml ({slo.ttft_ms:g} ms, {slo.itl_ms:g} ms)"
    got = benchmark.option("--goodput")
    benchmark.expect(benchmark.slo() == slo.model_dump(), "--goodput", expected, got)
    return topology
