"""What is missing on this machine for a cluster, and how to fix it; changes nothing.

Input: a study and a cluster. Output: findings.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kvab.clusters import open_cluster
from kvab.clusters.base import Finding, look
from kvab.console import counted
from kvab.errors import InputError, KvabError, lacking
from kvab.study import Study, check_product, load_cluster, load_study, manifests, root
from kvab.study.hardware import load_scenarios
from kvab.study.manifests import Configuration
from kvab.study.topology import check_gpus, declared_topology
from kvab.trace.finding import read_declared, trace_path

FREE_BYTES = 2_000_000_000


def check_declarations(*, fix: bool = False) -> list[str]:
    """Read every study, configuration, cluster profile and hardware scenario; return what was read.

    Nobody is asked.

    With ``fix`` the v1beta1 forms of the deployments are written anew where they differ.

    Raises
    ------
    InputError
        If one is wrong, or a study and its recipes do not say the same.
    """
    read = []
    for path in sorted((root() / "recipes").glob("*/study.yaml")):
        study = load_study(path)
        read += [f"{study.name}: {declared_topology(study, name).describe()}"
                 for name in study.configurations]  # fmt: skip
        check_gpus(study)
        scripts = manifests.read_scripts(study.folder)
        for name in study.configurations:
            recipe = manifests.read_configuration(study.configuration_folder(name), name)
            recipe.benchmark.check_scripts(scripts)
            read += _check_beta(recipe, fix)
    profiles = sorted((root() / "recipes" / "clusters").glob("*.yaml"))
    read += [f"{path.stem}: {load_cluster(path.stem).description}" for path in profiles]
    measured = load_scenarios() if (root() / "recipes" / "hardware").is_dir() else []
    return read + [f"{scenario.name}: {scenario.title}" for scenario in measured]


def _check_beta(recipe: Configuration, fix: bool) -> list[str]:
    """Hold the v1beta1 form of a deployment against ``deploy.yaml``, where there is one."""
    path = recipe.folder / manifests.BETA_FILE
    text = manifests.beta_text(recipe.deploy) if path.exists() else ""
    if not text or path.read_text() == text:
        return []
    if not fix:
        raise InputError(f"{path}: not what deploy.yaml says; run `kvab check --fix`")
    path.write_text(text)
    return [f"{path}: written anew from deploy.yaml"]


def findings(study: Path, cluster: str) -> Iterable[Finding]:
    """Yield what is there and what is missing, in the order in which a run needs it."""
    declared = load_study(study)
    yield Finding(True, f"study {declared.name}, version {declared.version}, in {root()}")
    for name in declared.configurations:
        yield look(name, lambda: declared_topology(declared, name).describe())  # noqa: B023
    yield look("gpus", lambda: _gpus(declared))
    yield from _of_cluster(declared, cluster)
    yield from _of_trace(declared)
    free = shutil.disk_usage(root()).free
    yield Finding(free > FREE_BYTES, f"{free / 1e9:.0f} GB free; runs and book need about 2 GB")


def _gpus(declared: Study) -> str:
    check_gpus(declared)
    if declared.gpus.differ:
        return "numbers differ between configurations, as study.yaml declares"
    nodes = declared.gpus.nodes
    where = f" on {counted(nodes, 'node')}" if nodes else ""
    return f"{declared.gpus.count}{where} for each configuration"


def _of_cluster(declared: Study, name: str) -> Iterable[Finding]:
    """Yield what the cluster has and lacks of what a run needs."""
    try:
        profile = load_cluster(name)
        check_product(declared, profile)
        yield from open_cluster(profile).check(declared)
        if profile.kind == "kubernetes":
            from kvab.runs import remote

            yield from remote.study_findings(declared, profile)
    except (KvabError, ModuleNotFoundError) as error:
        yield Finding(False, f"cluster: {lacking(str(error)) or error}")


def _of_trace(declared: Study) -> Iterable[Finding]:
    """Yield that the trace is there, and for whose context some of its rows are too long."""
    path = trace_path(declared.trace)
    try:
        if not path.is_file():
            fix = "run `kvab trace fetch`, or name a copy in KVAB_TRACE"
            raise InputError("not there: a generated workload would stand in", path=path, fix=fix)
        trace = read_declared(declared.trace)
    except KvabError as error:
        yield Finding(False, f"trace: {error}")
        return
    yield Finding(True, f"trace: {trace.path}, {len(trace):,} rows, sha256 as declared")
    tokens = trace.input_tokens + trace.output_tokens
    for name in declared.configurations:
        with suppress(KvabError):  # which stands above already
            groups = declared_topology(declared, name).groups.values()
            context = min(group.context_length for group in groups)
            if count := int((tokens > context).sum()):
                yield Finding(False, (
                    f"{name}: {count:,} of {len(trace):,} trace rows are longer than its context "
                    f"of {context:,} tokens (prompt and answer; the longest {tokens.max():,}), and "
                    "fail or are cut short; raise --max-model-len in deploy.yaml, or choose "
                    "another trace"
                ))  # fmt: skip
