"""``perf.yaml``: the AIPerf command, what a run sets in it, and the scripts that its Job mounts.

Input: a configuration. Output: the command, its bounds of a good request, or what is wrong.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kvab.declarations import read_yaml
from kvab.errors import InputError
from kvab.study.recipes.manifests import DEPLOY, PERF, Configuration, at, texts

BENCHMARK_ENV = ("RUN_ID", "TRACE_SHA256", "READY_S")  # a run puts its own values there
SLOS = {"time_to_first_token": "ttft_ms", "inter_token_latency": "itl_ms"}


def check_benchmark(configuration: Configuration) -> None:
    """Refuse a ``perf.yaml`` into which a run's own values cannot be put.

    Raises
    ------
    InputError
        Naming what it lacks.
    """
    job = configuration.job
    for part in (configuration.deploy, job):
        metadata, file = at(part, "metadata"), DEPLOY if part is configuration.deploy else PERF
        if not isinstance(at(metadata, "name"), str):
            configuration.refuse(f"{part['kind']}.metadata.name", "a name, got none", file)
        for key in ("labels", "annotations"):
            if not isinstance(metadata.get(key, {}), dict):
                expected = f"a mapping or nothing, got {metadata[key]!r:.60}"
                configuration.refuse(f"{part['kind']}.metadata.{key}", expected, file)
    pod = at(job, "spec.template.spec")
    variables = _named(configuration, "env", pod["containers"][0].get("env"), BENCHMARK_ENV)
    _named(configuration, "volumes", pod.get("volumes"), ("perf-cache",))
    numbers = {
        "env.READY_S": variables["READY_S"].get("value"),
        "--request-timeout-seconds": option(configuration, "--request-timeout-seconds"),
    }
    for each in ("--input-file", "--artifact-dir"):
        option(configuration, each)
    if not isinstance(image := pod["containers"][0].get("image"), str):
        configuration.refuse("image", f"that of the benchmark, got {image!r:.60}", PERF)
    for where, text in numbers.items():
        if not re.fullmatch(r"\d+(\.\d+)?", str(text)):
            configuration.refuse(where, f"seconds, got {text!r:.60}", PERF)


def read_scripts(study: Path) -> dict[str, Any]:
    """Return the ConfigMap of a study's scripts, as ``kubectl apply -k`` makes it of their folder.

    Raises
    ------
    InputError
        If the folder is not whole.
    """
    path = study / "benchmark" / "kustomization.yaml"
    try:
        (declared,) = read_yaml(path)
        (made,) = declared["configMapGenerator"]
        metadata = {"name": made["name"], "labels": {**declared["generatorOptions"]["labels"]}}
        data = {name: (path.parent / name).read_text(encoding="utf-8") for name in made["files"]}
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{path}: expected one configMapGenerator with a name and files that are there, and "
            f"generatorOptions with labels ({error}); copy it from the study that you began with"
        ) from None
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def check_scripts(configuration: Configuration, scripts: dict[str, Any]) -> None:
    """Reject a Job that does not run one of the study's scripts from where it mounts them.

    Raises
    ------
    InputError
        Naming what differs.
    """
    name, pod = scripts["metadata"]["name"], at(configuration.job, "spec.template.spec")
    container = pod["containers"][0]
    volumes = [each["name"] for each in pod["volumes"] if at(each, "configMap.name") == name]
    if not volumes:
        configuration.refuse("volumes", f"the ConfigMap {name} of ../../benchmark, got none", PERF)
    mounts = container.get("volumeMounts") or []
    folders = [at(each, "mountPath") for each in mounts if at(each, "name") in volumes]
    programs = [f"{folder}/{script}" for folder in folders for script in scripts["data"]]
    if (command := container.get("command")) not in [["bash", program] for program in programs]:
        known = " or ".join(programs) or f"a script of the volume {volumes[0]}, mounted"
        configuration.refuse("command", f"bash and {known}, got {command!r:.60}", PERF)


def _named(
    configuration: Configuration, where: str, entries: Any, needed: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Return a list of named mappings by name; each needed one has to be there."""
    listed = entries if isinstance(entries, list) else []
    for entry in listed:
        if not isinstance(at(entry, "name"), str):
            configuration.refuse(where, f"entries with a name, got {entry!r:.60}", PERF)
    found = {entry["name"]: entry for entry in listed}
    for name in needed:
        if name not in found:
            configuration.refuse(where, f"{name} among the names, got {', '.join(found)}", PERF)
    return found


def aiperf_command(configuration: Configuration) -> list[str]:
    """Return the AIPerf command of ``perf.yaml``, as written in the arguments of its Job."""
    containers = at(configuration.job, "spec.template.spec.containers")
    command: list[str] | None = (
        at(containers[0], "args") if isinstance(containers, list) and containers else None
    )
    if command is None or not texts(command) or command[:2] != ["aiperf", "profile"]:
        expected = "'aiperf profile' and its options, all texts"
        configuration.refuse("args", f"{expected}, got something else", PERF)
    return command


def goodput_slo(configuration: Configuration) -> dict[str, float]:
    """Return the bounds of ``--goodput`` in ms, as ``{"ttft_ms": ..., "itl_ms": ...}``."""
    text = option(configuration, "--goodput")
    try:
        bounds = {SLOS[metric]: float(ms) for metric, ms in (w.split(":") for w in text.split())}
    except (ValueError, KeyError):
        bounds = {}
    if set(bounds) != set(SLOS.values()):
        expected = f"{':<ms> '.join(SLOS)}:<ms>"
        configuration.refuse("--goodput", f"{expected}, got '{text}'", PERF)
    return bounds


def option(configuration: Configuration, name: str) -> str:
    """Return the value of an option of the AIPerf command.

    Raises
    ------
    InputError
        If it has none.
    """
    command = aiperf_command(configuration)
    if name not in command[:-1]:
        configuration.refuse("args", f"the option {name} in the AIPerf command, got none", PERF)
    return command[command.index(name) + 1]
