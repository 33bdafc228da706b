"""The published runs: complete run folders made small, nameless, with what they replayed.

Input: a folder of runs. Output: ``book/published/``, of the same shape, 3 MB at most.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from kvab.declarations import Json
from kvab.errors import InputError
from kvab.pages import model_check
from kvab.runs import folder as runs
from kvab.runs import hours, sweep
from kvab.runs.folder import RunManifest
from kvab.runs.workload import workload_path
from kvab.study import load_study, root
from kvab.study.manifests import DEPLOY, PERF

ROUNDED_MS = {"arrival_ms": 2, "ttft_ms": 1, "itl_ms": 2, "latency_ms": 1, "send_lag_ms": 2}
KEPT = ("kind", "name", "description", "hardware", "backend", "image", "rdma_resource")
LIMIT_BYTES = 3_000_000
SWEEP, HOURS = Path("capacity"), Path(hours.FOLDER)
MANIFESTS = (f"manifests/{DEPLOY}", f"manifests/{PERF}")
TABLES = {  # a table that tells whether there are more to publish, and those
    SWEEP / sweep.SUMMARY: [SWEEP / n for n in (sweep.TABLE, sweep.SUMMARY, sweep.SPREAD)],
    HOURS / hours.SUMMARY: [HOURS / hours.TABLE, HOURS / hours.SUMMARY],
    model_check.TABLE: [model_check.TABLE, model_check.ORDERS],
}


def publish(study: Path, cluster: str, source: Path, target: Path) -> list[Path]:
    """Copy the complete runs of a cluster and return the published folders.

    Times are rounded to 0.1 ms and ITL to 0.01 ms, far below any difference shown; artifacts and
    the names of machines stay behind. A published folder is a run folder, so everything reads it as
    any other. Of a capacity sweep and of made hours tables and summaries are published, and of a
    model check its twins; where the source has none, the published ones stay.

    Raises
    ------
    InputError
        If there is no complete run, or the whole would exceed 3 MB.
    """
    declared = load_study(study)
    source, target = root() / source / declared.name, root() / target / declared.name
    found = runs.find_runs(source.parent, declared, cluster)
    if not found:
        raise InputError(f"{source / cluster}: no runs to publish; run `kvab report` first")
    read = [runs.read_run(path) for path in found]
    partial = [run.path for run in read if run.manifest.status != "complete"]
    if partial:
        raise InputError(f"{partial[0]}: not complete; rerun it before publishing")
    workload = workload_path(source, read[0].manifest.trace.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent) as name:
        beside = Path(name)
        for run in read:
            _copy(run, beside / run.path.relative_to(source))
        _copy_tables([source / cluster, target / cluster], beside / cluster)
        (beside / "workloads").mkdir()
        for path in (workload, workload.with_suffix(".json")):
            shutil.copyfile(path, beside / "workloads" / path.name)
        others = [each for each in target.glob("*") if each.name not in (cluster, "workloads")]
        size = sum(map(_size, [beside, *others]))
        if size > LIMIT_BYTES:
            raise InputError(f"{target}: {size:,} bytes, at most {LIMIT_BYTES:,} are published")
        for part in (cluster, "workloads"):
            shutil.rmtree(target / part, ignore_errors=True)
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            (beside / part).rename(target / part)
    return runs.find_runs(target.parent, declared, cluster)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _copy_tables(clusters: list[Path], to: Path) -> None:
    for key, names in TABLES.items():
        found = next((each for each in clusters if (each / key).is_file()), None)
        if found is None:
            continue
        for name in names:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found / name, to / name)


def _copy(run: runs.Run, to: Path) -> None:
    times = run.requests[[*ROUNDED_MS]].round(ROUNDED_MS)
    files = {name: (run.path / name).read_bytes() for name in MANIFESTS}
    files["requests.parquet"] = runs.requests_bytes(run.requests.assign(**times), runs.SMALL)
    manifest = nameless(run.manifest)
    runs.write_run(to, manifest.model_dump(by_alias=True, exclude={"files"}), files)


def nameless(manifest: RunManifest) -> RunManifest:
    """Return a manifest without names of nodes, pods, contexts and servers."""
    less: Json = {
        "cluster": {key: value for key, value in manifest.cluster.items() if key in KEPT},
        "host": _numbered(manifest.host),
        "depends_on": {key: value for key, value in manifest.depends_on.items() if key != "nodes"},
    }
    if manifest.kind == "kubernetes" and manifest.reason:  # it may quote pods, nodes and servers
        less["reason"] = "failed; the reason is kept where it ran"
    return manifest.model_copy(update=less)


def _numbered(host: Json) -> Json:
    """Return what is known of the hosts with nodes and pods numbered instead of named."""
    pods = host.get("pods", {})
    nodes = {node: f"node-{n}" for n, node in enumerate(sorted({p["node"] for p in pods.values()}))}
    names = {pod: f"pod-{n}" for n, pod in enumerate(sorted({*pods, *host.get("restarts", {})}))}
    numbered = {
        "pods": {names[pod]: {**p, "node": nodes[p["node"]]} for pod, p in pods.items()},
        "restarts": {names[pod]: count for pod, count in host.get("restarts", {}).items()},
    }
    return host | {key: value for key, value in numbered.items() if key in host}
