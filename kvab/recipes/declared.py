"""What a study declares and its manifests deploy must be the same.

Input: a study and the name of a configuration. Output: its topology, checked against the study.
"""

from __future__ import annotations

from kvab.errors import InputError
from kvab.recipes.benchmark import goodput_slo
from kvab.recipes.folder import read_configuration
from kvab.recipes.manifests import DEPLOY, PERF
from kvab.recipes.reading import Topology, topology
from kvab.study import Study


def declared_topology(study: Study, name: str) -> Topology:
    """Return the topology of a configuration's manifests.

    Raises
    ------
    InputError
        If a manifest is wrong in itself, or another split, routing, model or goodput
        than ``study.yaml`` declares.
    """
    recipe = read_configuration(study.configuration_folder(name), name)
    found, factors = topology(recipe), study.configurations[name].factors
    deploy, perf = recipe.folder / DEPLOY, recipe.folder / PERF
    declared = (factors.split, factors.routing.replace("-", "_"))
    if (found.mode, found.router) != declared:
        raise InputError(
            f"{deploy}: study.yaml declares {name} as {' and '.join(declared)}, got {found.mode} "
            f"and {found.router}; mend the one that is wrong"
        )
    models = {group.model for group in found.groups.values()}
    if models != {study.model.name}:
        got = ", ".join(models)
        raise InputError(f"{deploy}: expected model {study.model.name}, got {got}; mend --model")
    if goodput_slo(recipe) != study.slo.model_dump():
        raise InputError(
            f"{perf}: expected the goodput of study.yaml ({study.slo.ttft_ms:g} ms, "
            f"{study.slo.itl_ms:g} ms); mend --goodput"
        )
    return found
