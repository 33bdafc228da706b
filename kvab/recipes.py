"""Recipe folders: the manifests of a configuration, and the topology that they write down.

Input: ``deploy.yaml`` and ``perf.yaml``. Output: a checked `Topology`, the AIPerf command, and
the difference of two configurations, field by field.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import pandas as pd
from pydantic import AfterValidator, Field, ValidationError
from pydantic.dataclasses import dataclass as checked

from kvab.declare import digest, read_yaml
from kvab.errors import InputError

DEPLOY, PERF = "deploy.yaml", "perf.yaml"
KIND = {"apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment"}
FRONTEND, VLLM = "dynamo.frontend", "dynamo.vllm"
PROGRAMS = {"frontend": FRONTEND, "worker": VLLM, "prefill": VLLM, "decode": VLLM}
ALIASES = {"-tp": "--tensor-parallel-size"}
TYPES = {str: "a text (quote it)", list: "a list of texts (quote numbers)", dict: "a mapping"}
SLOS = {"time_to_first_token": "ttft_ms", "inter_token_latency": "itl_ms"}


class Component(NamedTuple):
    """A service of a deployment; ``flags`` are its arguments, None for a bare switch."""

    name: str
    service: dict[str, Any]
    program: str
    flags: dict[str, str | None]
    environment: dict[str, str]

    @property
    def container(self) -> dict[str, Any]:
        """The main container, as written."""
        return self.service["extraPodSpec"]["mainContainer"]


@dataclass(frozen=True)
class Configuration:
    """The parsed manifests of a recipe folder."""

    name: str
    folder: Path
    deploy: dict[str, Any]
    perf: list[dict[str, Any]]

    @property
    def digest(self) -> str:
        """SHA-256 of the parsed ``deploy.yaml`` as canonical JSON."""
        return digest(self.deploy)

    @property
    def perf_digest(self) -> str:
        """SHA-256 of the parsed ``perf.yaml`` as canonical JSON."""
        return digest(self.perf)

    def refuse(self, where: str, expected: str, file: str = DEPLOY) -> NoReturn:
        """Raise the error of a manifest: the place, what was expected and what came."""
        raise InputError(f"{self.folder / file}: {where}: expected {expected}; mend it there")

    def get(self, value: Any, path: str, kind: type, prefix: str = "") -> Any:
        """Return the nested value of a type in ``deploy.yaml``, an empty one if nothing stands."""
        value = _at(value, path)
        value = kind() if value is None else value
        if not (_texts(value) if kind is list else isinstance(value, kind)):
            got = json.dumps(value, default=str)[:60]
            self.refuse(f"{prefix}{path}", f"{TYPES[kind]}, got {got}")
        return value

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.get(self.deploy, "metadata.name", str)

    def components(self) -> dict[str, Component]:
        """Return the services by name, with their command lines parsed."""
        services = self.get(self.deploy, "spec.services", dict)
        return {name: _component(self, name, service) for name, service in services.items()}


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def read_configuration(folder: Path | str, name: str | None = None) -> Configuration:
    """Return the manifests of a recipe folder; the name is the folder's unless given.

    Raises
    ------
    InputError
        If a manifest is missing, not YAML or of another kind, has no frontend, worker or AIPerf
        command, or if the two manifests are not about the same deployment and model.
    """
    folder = Path(folder)
    deploy, perf = (read_yaml(folder / file) for file in (DEPLOY, PERF))
    configuration = Configuration(name or folder.name, folder, deploy[0] if deploy else {}, perf)
    for key, expected in KIND.items():
        if (got := configuration.get(configuration.deploy, key, str)) != expected:
            configuration.refuse(key, f"{expected}, got {got or 'nothing'}")
    if len(deploy) != 1:
        configuration.refuse("the file", f"one {KIND['kind']}, got {len(deploy)} documents")
    programs = {part.program: part for part in configuration.components().values()}
    for program in (FRONTEND, VLLM):
        if program not in programs:
            configuration.refuse("spec.services", f"a service that runs {program}, got none")
    host = f"{configuration.deployment}-{programs[FRONTEND].name.lower()}"
    served = {"--url": f"http://{host}:8000", "-m": programs[VLLM].flags.get("--model")}
    for option, expected in served.items():
        if (got := _option(configuration, option)) != expected:
            configuration.refuse(option, f"{expected} as in {DEPLOY}, got {got}", PERF)
    return configuration


def _component(configuration: Configuration, name: str, service: Any) -> Component:
    def get(path: str, kind: type = list) -> Any:
        return configuration.get(service, path, kind, f"{name}.")

    kind, container = get("componentType", str), "extraPodSpec.mainContainer"
    if kind not in PROGRAMS:
        expected = f"one of {', '.join(PROGRAMS)}, got {kind or 'nothing'}"
        configuration.refuse(f"{name}.componentType", expected)
    tokens = [*get(f"{container}.command"), *get(f"{container}.args")]
    if tokens[1:2] == ["-c"] and Path(tokens[0]).name in ("sh", "bash"):
        try:
            tokens = shlex.split(" ".join(tokens[2:3]))
        except ValueError as error:
            configuration.refuse(f"{name}.command", f"one plain command, got {error}")
    program = PROGRAMS[kind]
    if program not in tokens:
        got = " ".join(tokens[:3]) or "nothing"
        configuration.refuse(f"{name}.command", f"python3 -m {program}, got {got}")
    flags = _flags(configuration, name, tokens[tokens.index(program) + 1 :])
    own, environment = _at(service, f"{container}.env"), {}
    for scope in (_at(configuration.deploy, "spec.envs"), service.get("envs"), own):
        for entry in scope or []:
            if not isinstance(_at(entry, "name"), str):
                configuration.refuse(f"{name}.env", f"variables with a name, got {entry}")
            environment[entry["name"]] = str(entry.get("value") or entry.get("valueFrom", ""))
    return Component(name, service, program, flags, environment)


def _flags(configuration: Configuration, name: str, tokens: list[str]) -> dict[str, str | None]:
    flags: dict[str, str | None] = {}
    flag = ""
    for token in tokens:
        if token.startswith("-") and not token[1:2].isdigit():
            text, equals, value = token.partition("=")
            flag = ALIASES.get(text, text.replace("_", "-"))
            if flag in flags:
                configuration.refuse(f"{name}.args.{flag}", "it once, got it twice")
            flags[flag] = value if equals else None
        elif flags.get(flag, token) is not None:
            configuration.refuse(f"{name}.args", f"a flag, got {token}")
        else:
            flags[flag] = token
    return flags


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


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and all(_at(item, "name") for item in value):
        value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    elif isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def difference(a: Configuration, b: Configuration) -> pd.DataFrame:
    """Return the fields in which two ``deploy.yaml`` differ.

    Returns
    -------
    DataFrame
        Columns ``field`` and the names of the two, all text; empty where one has no such field.
    """
    left, right = flatten(a), flatten(b)
    rows = [
        (field, left.get(field, ""), right.get(field, ""))
        for field in dict.fromkeys([*left, *right])
        if left.get(field) != right.get(field)
    ]
    return pd.DataFrame(rows, columns=["field", a.name, b.name])


def aiperf_command(configuration: Configuration) -> list[str]:
    """Return the AIPerf command of ``perf.yaml``, as written in the arguments of its Job."""
    jobs = [part for part in configuration.perf if _at(part, "kind") == "Job"]
    containers = _at(jobs[0], "spec.template.spec.containers") if len(jobs) == 1 else None
    command = _at(containers[0], "args") if isinstance(containers, list) and containers else None
    if not _texts(command) or command[:2] != ["aiperf", "profile"]:
        expected = "one Job whose args are 'aiperf profile' and its options, all texts"
        configuration.refuse("kind", f"{expected}, got something else", PERF)
    return command


def goodput_slo(configuration: Configuration) -> dict[str, float]:
    """Return the bounds of ``--goodput`` in ms, as ``{"ttft_ms": ..., "itl_ms": ...}``."""
    text = _option(configuration, "--goodput")
    try:
        bounds = {SLOS[metric]: float(ms) for metric, ms in (w.split(":") for w in text.split())}
    except (ValueError, KeyError):
        bounds = {}
    if set(bounds) != set(SLOS.values()):
        expected = f"{':<ms> '.join(SLOS)}:<ms>"
        configuration.refuse("--goodput", f"{expected}, got '{text}'", PERF)
    return bounds


def _option(configuration: Configuration, name: str) -> str:
    command = aiperf_command(configuration)
    if name not in command[:-1]:
        configuration.refuse("args", f"the option {name} in the AIPerf command, got none", PERF)
    return command[command.index(name) + 1]


# From here on: what the manifests mean, for a simulation or for local processes.

ROLES = {"agg": "aggregated", "prefill": "prefill", "decode": "decode"}
ROUTERS = {"round-robin": "round_robin", "kv": "kv"}

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
            f"{group.replicas} {role} workers of {group.gpus_per_worker} GPUs"
            for role, group in self.groups.items()
        )
        router = self.router.replace("_", "-")
        return f"{self.deployment}: {workers}, {router} routing, {self.gpus} GPUs."


def topology(configuration: Configuration) -> Topology:
    """Return what ``deploy.yaml`` deploys, with the fields that the simulator cannot express.

    Raises
    ------
    InputError
        If a flag is unknown, a value is out of range or fields contradict each other.
    """
    parts = configuration.components().values()
    for part in parts:
        _check_known(configuration, part)
    frontends = [part for part in parts if part.program == FRONTEND]
    if len(frontends) > 1 or frontends[0].service.get("replicas", 1) != 1:
        configuration.refuse("spec.services", "one frontend with one replica, got another number")
    router, groups = _router(configuration, frontends[0]), {}
    for part in parts:
        if part.program == VLLM:
            role = _role(configuration, part)
            if role in groups:
                configuration.refuse(part.name, f"one service with the role {role}, got two")
            groups[role] = _group(configuration, part)
    if set(groups) not in ({"aggregated"}, {"prefill", "decode"}):
        got = " and ".join(sorted(groups))
        configuration.refuse("spec.services", f"aggregated, or prefill and decode, got {got}")
    if router == "kv":
        _check_kv_routing(configuration, groups)
    return Topology(
        deployment=configuration.deployment,
        mode="aggregated" if "aggregated" in groups else "disaggregated",
        router=router,
        groups={role: groups[role] for role in ROLES.values() if role in groups},
        unexpressed=tuple(_unexpressed(configuration)),
    )


def _check_known(configuration: Configuration, part: Component) -> None:
    for field in INEXPRESSIBLE:
        if part.service.get(field):
            configuration.refuse(f"{part.name}.{field}", "none: it cannot be simulated")
    for name in part.environment:  # variables that stand for arguments
        if name.startswith(("DYN_ROUTER_", "DYN_VLLM_")) and name != "DYN_ROUTER_MODE":
            configuration.refuse(f"{part.name}.env.{name}", "an argument instead of this variable")
    for flag, value in part.flags.items():
        known, where = FLAGS.get(flag), f"{part.name}.args.{flag}"
        if known is None or known.program != part.program:
            names = ", ".join(name for name in FLAGS if FLAGS[name].program == part.program)
            configuration.refuse(where, f"only flags that the study knows ({names})")
        if known.switch != (value is None):
            configuration.refuse(where, f"{'no' if known.switch else 'a'} value, got {value}")


def _router(configuration: Configuration, frontend: Component) -> str:
    # As in the frontend, the argument wins over the variable.
    mode = frontend.environment.get("DYN_ROUTER_MODE", "round-robin")
    mode = frontend.flags.get("--router-mode", mode)
    if mode not in ROUTERS:
        where = f"{frontend.name}.args.--router-mode"
        configuration.refuse(where, f"{' or '.join(ROUTERS)}, got {mode}")
    return ROUTERS[mode]


def _role(configuration: Configuration, part: Component) -> str:
    mode = part.flags.get("--disaggregation-mode", "agg")
    if mode not in ROLES:
        where = f"{part.name}.args.--disaggregation-mode"
        configuration.refuse(where, f"one of {', '.join(ROLES)}, got {mode}")
    # The published aggregated workers have the subtype decode.
    allowed = {"agg": ("decode",)}.get(mode, (mode,))
    for field in ("componentType", "subComponentType"):
        said = part.service.get(field)
        if said in ("prefill", "decode") and said not in allowed:
            expected = f"a worker of --disaggregation-mode {mode}, got {said}"
            configuration.refuse(f"{part.name}.{field}", expected)
    return ROLES[mode]


def _group(configuration: Configuration, part: Component) -> WorkerGroup:
    sets = {name: FLAGS[name].sets for name in part.flags}
    values = {sets[name]: value for name, value in part.flags.items() if sets[name]}
    values.pop("role", None)
    if "prefix_caching" in values:
        values["prefix_caching"] = "--no-enable-prefix-caching" not in part.flags
    gpus = configuration.get(part.service, "resources.limits.gpu", str, f"{part.name}.")
    events = _json(configuration, part, "--kv-events-config")
    try:
        group = WorkerGroup(
            component=part.name,
            replicas=part.service.get("replicas", 1),
            gpus_per_worker=gpus or 0,
            image=part.container.get("image"),
            kv_events=events.get("enable_kv_cache_events") is True,
            **(VLLM_DEFAULTS | values),
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][-1])
        flags = {flag.sets: f"args.{name}" for name, flag in FLAGS.items()}
        where = flags.get(field, field.replace("gpus_per_worker", "resources.limits.gpu"))
        got = "nothing" if first["type"] == "missing" else repr(first["input"])
        configuration.refuse(f"{part.name}.{where}", f"a valid value ({first['msg']}), got {got}")
    _check_group(configuration, part, group)
    return group


def _check_group(configuration: Configuration, part: Component, group: WorkerGroup) -> None:
    if {"--enable-prefix-caching", "--no-enable-prefix-caching"} <= set(part.flags):
        configuration.refuse(f"{part.name}.args", "prefix caching either on or off, got both")
    gpus = group.gpus_per_worker
    if gpus != group.tensor_parallel:
        expected = f"{gpus} (resources.limits.gpu), got {group.tensor_parallel}"
        configuration.refuse(f"{part.name}.args.--tensor-parallel-size", expected)
    requested = configuration.get(part.service, "resources.requests.gpu", str, f"{part.name}.")
    if requested not in ("", str(gpus)):
        expected = f"{gpus}, as in its limits, got {requested}"
        configuration.refuse(f"{part.name}.resources.requests.gpu", expected)
    overrides = _json(configuration, part, "--hf-overrides")
    longest = overrides.get("max_position_embeddings", group.context_length)
    if group.context_length > longest:
        expected = f"at most {longest} (--hf-overrides), got {group.context_length}"
        configuration.refuse(f"{part.name}.args.--max-model-len", expected)


def _json(configuration: Configuration, part: Component, flag: str) -> dict[str, Any]:
    text = part.flags.get(flag, "{}")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        configuration.refuse(f"{part.name}.args.{flag}", f"a JSON object, got {text}")
    return value


def _check_kv_routing(configuration: Configuration, groups: dict[str, WorkerGroup]) -> None:
    caching = groups.get("prefill") or groups["aggregated"]
    where = f"{caching.component}.args"
    if not caching.prefix_caching:
        configuration.refuse(where, "prefix caching behind a KV router, got it switched off")
    if not caching.kv_events:
        expected = "KV events (--kv-events-config) behind a KV router, got none"
        configuration.refuse(where, expected)
    sizes = {group.block_size for group in groups.values()}
    if len(sizes) > 1:
        expected = f"one block size behind a KV router, got {sorted(sizes)}"
        configuration.refuse("args.--block-size", expected)


def _unexpressed(configuration: Configuration) -> Iterator[Unexpressed]:
    components = configuration.components()
    for path, value in flatten(configuration).items():
        component, _, field = path.partition(".")
        if component not in components:
            component, field = KIND["kind"], path
        flag = FLAGS.get(field.removeprefix("args."), Flag(""))
        if field in EXPRESSED or flag.sets:
            continue
        reasons = (why for pattern, why in UNEXPRESSED.items() if fnmatchcase(field, pattern))
        yield Unexpressed(component, field, value, flag.why or next(reasons))
