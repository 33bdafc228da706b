"""What a study declares and its manifests deploy must be the same.

Input: a study and the name of a configuration. Output: its topology, checked against the study.
"""

from __future__ import annotations

from kvab.errors import InputError
from kvab.study import Study
from kvab.study.recipes.benchmark import goodput_slo
from kvab.study.recipes.folder import read_configuration
from kvab.study.recipes.manifests import DEPLOY, PERF
from kvab.study.recipes.reading import topology
from kvab.study.topology import Topology


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
        raise InputError(
            f"{study.folder / 'study.yaml'}: expected configurations of equal hardware, got "
            f"{least} with {gpus[least]} GPUs and {most} with {gpus[most]}; give both the same in "
            "deploy.yaml (replicas x tensor parallelism), or declare gpus.differ: true"
        )
    if gpus[most] != study.gpus.count:
        raise InputError(
            f"{study.folder / 'study.yaml'}: gpus.count: expected {gpus[most]}, which {most} "
            f"fills, got {study.gpus.count}; correct it or deploy.yaml"
        )


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
            f"and {found.router}; fix the one that is wrong"
        )
    models = {group.model for group in found.groups.values()}
    if models != {study.model.name}:
        got = ", ".join(models)
        raise InputError(f"{deploy}: expected model {study.model.name}, got {got}; fix --model")
    if goodput_slo(recipe) != study.slo.model_dump():
        raise InputError(
            f"{perf}: expected the goodput of study.yaml ({study.slo.ttft_ms:g} ms, "
            f"{study.slo.itl_ms:g} ms); fix --goodput"
        )
    return found
