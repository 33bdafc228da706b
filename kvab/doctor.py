"""What is missing on this machine for a cluster, and how to mend it; changes nothing.

Input: a study and a cluster. Output: findings.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kvab.errors import DependencyError, KvabError
from kvab.recipes import check_gpus, declared_topology
from kvab.runs.jobs import open_cluster
from kvab.study import Study, load_cluster, load_study, root
from kvab.trace import read_trace, trace_place

FREE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str


def check_declarations() -> list[str]:
    """Read every study, configuration and cluster profile; return what was read. Asks nobody.

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
    profiles = sorted((root() / "recipes" / "clusters").glob("*.yaml"))
    return read + [f"{path.stem}: {load_cluster(path.stem).description}" for path in profiles]


def findings(study: Path, cluster: str) -> list[Finding]:
    """Return what was found, in the order in which a run needs it."""
    declared = load_study(study)
    found = [Finding(True, f"study {declared.name}, version {declared.version}, in {root()}")]
    for name in declared.configurations:
        found.append(_try(f"{name}: ", partial(_described, declared, name)))
    found.append(_try("gpus: ", partial(_gpus, declared)))
    found += _of_cluster(declared, cluster)
    found.append(_try("trace: ", partial(_trace, declared)))
    free = shutil.disk_usage(root()).free
    found.append(
        Finding(free > FREE_BYTES, f"{free / 1e9:.0f} GB free; runs and book need about 2 GB")
    )
    return found


def _described(declared: Study, name: str) -> str:
    return declared_topology(declared, name).describe()


def _gpus(declared: Study) -> str:
    check_gpus(declared)
    if declared.gpus.differ:
        return "numbers differ between configurations, as study.yaml declares"
    return f"{declared.gpus.count} for each configuration"


def _try(prefix: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(True, prefix + look())
    except KvabError as error:
        return Finding(False, prefix + str(error))


def _of_cluster(declared: Study, name: str) -> list[Finding]:
    """Return what the cluster lacks: for Kubernetes each thing that a run needs."""
    try:
        profile = load_cluster(name)
        if profile.kind == "kubernetes":
            from kvab.cluster import assembly
            from kvab.runs import remote

            looked = (room.study_findings(declared, profile) for room in (assembly, remote))
            return [Finding(ok, what) for found in looked for ok, what in found]
        if profile.kind == "live":
            from kvab.live.serving import LiveStack

            found = LiveStack(profile).findings(declared.model.name)
            return [Finding(ok, what) for ok, what in found]
    except KvabError as error:
        return [Finding(False, f"cluster: {error}")]
    return [_try("cluster: ", lambda: _cluster(name))]


def _cluster(name: str) -> str:
    profile = load_cluster(name)
    found = open_cluster(profile).prepare()
    versions = ", ".join(f"{key} {value}" for key, value in found.items())
    return f"{name} ({profile.kind}): {versions}"


def _trace(study: Study) -> str:
    declared, place = study.trace, trace_place(study.trace)
    if not place.is_file():
        raise DependencyError(
            f"{place}: not there; run `kvab trace fetch`, or name the file in KVAB_TRACE: where it "
            "can be neither found nor downloaded a made-up workload is replayed"
        )
    trace = read_trace(
        place, name=declared.name, block_tokens=declared.block_tokens, sha256=declared.sha256
    )
    return f"{trace.path}, {len(trace):,} rows, sha256 as declared"
