"""Recipe folders, read and checked.

Input: a folder with ``deploy.yaml`` and ``perf.yaml``. Output: a `Configuration` whose manifests
are about one deployment and can be applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvab.declarations import read_yaml
from kvab.errors import InputError
from kvab.study.recipes.benchmark import check_benchmark, option
from kvab.study.recipes.forms import BETA, to_alpha
from kvab.study.recipes.manifests import DEPLOY, FRONTEND, KIND, PERF, VLLM, Configuration, at

AMOUNTS = ("resources.requests", "resources.limits")


def read_configuration(folder: Path | str, name: str | None = None) -> Configuration:
    """Return the manifests of a recipe folder; the name is the folder's unless given.

    Raises
    ------
    InputError
        If a manifest is missing, not YAML or of another kind, has no frontend, worker or AIPerf
        command, lacks what a run sets in it, or if the two manifests are not about the same
        deployment and model.
    """
    folder = Path(folder)
    deploy, perf = (read_yaml(folder / file) for file in (DEPLOY, PERF))
    manifest = _alpha(folder / DEPLOY, deploy[0] if deploy else {})
    configuration = Configuration(name or folder.name, folder, manifest, perf)
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
    for name_of, said in served.items():
        if (got := option(configuration, name_of)) != said:
            configuration.refuse(name_of, f"{said} as in {DEPLOY}, got {got}", PERF)
    _check_pods(configuration)
    check_benchmark(configuration)
    return configuration


def _alpha(path: Path, manifest: Any) -> Any:
    """Return a deployment in the form in which its topology is read."""
    try:
        return to_alpha(manifest) if at(manifest, "apiVersion") == BETA else manifest
    except InputError as error:
        raise InputError(f"{path}: {error}; fix it there") from None


def _check_pods(configuration: Configuration) -> None:
    """Refuse services into which a cluster profile's values cannot be put."""
    for name, part in configuration.components().items():
        for path in ("resources", "extraPodSpec.nodeSelector", *AMOUNTS):
            configuration.get(part.service, path, dict, f"{name}.")
        for path in AMOUNTS:
            devices = configuration.get(part.service, f"{path}.custom", dict, f"{name}.")
            for device, count in [("gpu", at(part.service, f"{path}.gpu")), *devices.items()]:
                if count is not None and not str(count).isdecimal():
                    expected = f"a number of devices, got {count!r:.60}"
                    configuration.refuse(f"{name}.{path}.{device}", expected)
        tolerations = at(part.service, "extraPodSpec.tolerations")
        if not isinstance(tolerations, list | None):
            expected = f"a list, got {tolerations!r:.60}"
            configuration.refuse(f"{name}.extraPodSpec.tolerations", expected)
