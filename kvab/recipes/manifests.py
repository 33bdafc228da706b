"""Recipe folders: the two manifests of a configuration, read and checked.

Input: ``deploy.yaml`` and ``perf.yaml``. Output: a `Configuration` with its services and the AIPerf
command.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from kvab.declare import digest, read_yaml
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
        value = at(value, path)
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


def at(value: Any, path: str) -> Any:
    """Return what stands at a dotted path of nested mappings, None if nothing does."""
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
    served: dict[str, str | None] = {
        "--url": f"http://{host}:8000",
        "-m": programs[VLLM].flags.get("--model"),
    }
    for option, said in served.items():
        if (got := _option(configuration, option)) != said:
            configuration.refuse(option, f"{said} as in {DEPLOY}, got {got}", PERF)
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
    own, environment = at(service, f"{container}.env"), {}
    for scope in (at(configuration.deploy, "spec.envs"), service.get("envs"), own):
        for entry in scope or []:
            if not isinstance(at(entry, "name"), str):
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


def aiperf_command(configuration: Configuration) -> list[str]:
    """Return the AIPerf command of ``perf.yaml``, as written in the arguments of its Job."""
    jobs = [part for part in configuration.perf if at(part, "kind") == "Job"]
    containers = at(jobs[0], "spec.template.spec.containers") if len(jobs) == 1 else None
    command: list[str] | None = (
        at(containers[0], "args") if isinstance(containers, list) and containers else None
    )
    if command is None or not _texts(command) or command[:2] != ["aiperf", "profile"]:
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
