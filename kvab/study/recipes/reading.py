"""Recipes: the topology that the manifests of a configuration deploy.

Input: a `Configuration`. Output: a checked `Topology`, with every field of ``deploy.yaml`` that
the simulator cannot express.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import ValidationError

from kvab.study.recipes.fields import flatten
from kvab.study.recipes.flags import (
    EXPRESSED,
    FLAGS,
    INEXPRESSIBLE,
    UNEXPRESSED,
    VLLM_DEFAULTS,
    Flag,
)
from kvab.study.recipes.manifests import FRONTEND, KIND, VLLM, Component, Configuration
from kvab.study.topology import Topology, Unexpressed, WorkerGroup

ROLES = {"agg": "aggregated", "prefill": "prefill", "decode": "decode"}
ROUTERS: dict[str | None, Literal["round_robin", "kv"]] = {"round-robin": "round_robin", "kv": "kv"}


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


def _router(configuration: Configuration, frontend: Component) -> Literal["round_robin", "kv"]:
    # As in the frontend, the argument wins over the variable.
    told = frontend.environment.get("DYN_ROUTER_MODE", "round-robin")
    mode = frontend.flags.get("--router-mode", told)
    if mode not in ROUTERS:
        where = f"{frontend.name}.args.--router-mode"
        configuration.refuse(where, f"{' or '.join(map(str, ROUTERS))}, got {mode}")
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
    values: dict[str, Any] = VLLM_DEFAULTS | {
        field: value for name, value in part.flags.items() if (field := sets[name])
    }
    values.pop("role", None)
    if "prefix_caching" in sets.values():
        values["prefix_caching"] = "--no-enable-prefix-caching" not in part.flags
    gpus = configuration.get(part.service, "resources.limits.gpu", str, f"{part.name}.")
    events = _json(configuration, part, "--kv-events-config")
    try:
        group = WorkerGroup(
            component=part.name,
            replicas=part.service.get("replicas", 1),
            gpus_per_worker=gpus or 0,
            image=part.container.get("image"),  # type: ignore[arg-type]  # it is validated
            kv_events=events.get("enable_kv_cache_events") is True,
            **values,
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
    if type(longest) is not int or group.context_length > longest:
        expected = f"at most {longest} (--hf-overrides), got {group.context_length}"
        configuration.refuse(f"{part.name}.args.--max-model-len", expected)


def _json(configuration: Configuration, part: Component, flag: str) -> dict[str, Any]:
    text = part.flags.get(flag) or "{}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
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
