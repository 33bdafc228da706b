"""Every field of a ``deploy.yaml`` by name.

Input: a configuration. Output: texts by field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kvab.study.recipes.manifests import Configuration, at


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
    if isinstance(value, list) and all(isinstance(at(item, "name"), str) for item in value):
        value = {item["name"]: {k: v for k, v in item.items() if k != "name"} for item in value}
    elif isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)
