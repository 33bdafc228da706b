"""The two manifests of a configuration, and the services in them.

Input: parsed ``deploy.yaml`` and ``perf.yaml``. Output: a `Configuration` with its components.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kvab.declarations import digest
from kvab.errors import InputError

DEPLOY, PERF = "deploy.yaml", "perf.yaml"
KIND = {"apiVersion": "nvidia.com/v1alpha1", "kind": "DynamoGraphDeployment"}
FRONTEND, VLLM = "dynamo.frontend", "dynamo.vllm"
PROGRAMS = {"frontend": FRONTEND, "worker": VLLM, "prefill": VLLM, "decode": VLLM}
ALIASES = {"-tp": "--tensor-parallel-size"}
TYPES: dict[type, str] = {
    str: "a text (quote it)",
    list: "a list of texts (quote numbers)",
    dict: "a mapping",
}


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

    @property
    def job(self) -> dict[str, Any]:
        """The Job of ``perf.yaml``; in that of an older run the scripts' ConfigMap is beside it."""
        jobs = [part for part in self.perf if at(part, "kind") == "Job"]
        if len(jobs) != 1:
            kinds = ", ".join(str(at(part, "kind")) for part in self.perf) or "nothing"
            self.refuse("kind", f"one Job, got {kinds}", PERF)
        return jobs[0]

    def refuse(self, where: str, expected: str, file: str = DEPLOY) -> NoReturn:
        """Raise the error of a manifest: the place, what was expected and what came."""
        raise InputError(f"{self.folder / file}: {where}: expected {expected}; fix it there")

    def get(self, value: Any, path: str, kind: type, prefix: str = "") -> Any:
        """Return the nested value of a type in ``deploy.yaml``, an empty one if nothing stands."""
        value = at(value, path)
        value = kind() if value is None else value
        if not (texts(value) if kind is list else isinstance(value, kind)):
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


def at(value: Any, path: str) -> Any:
    """Return what stands at a dotted path of nested mappings, None if nothing does."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def texts(values: Any) -> bool:
    """Whether a value is a list of texts."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


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
    own, environment = at(service, f"{container}.env"), {}
    for scope in (at(configuration.deploy, "spec.envs"), service.get("envs"), own):
        for entry in scope if isinstance(scope, list) else filter(None, [scope]):
            if not isinstance(at(entry, "name"), str):
                configuration.refuse(f"{name}.env", f"variables with a name, got {entry!r:.60}")
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
