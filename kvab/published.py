"""The published runs: complete run folders made small, with the workload they replayed.

Input: a folder of runs. Output: ``book/published/``, of the same shape, 3 MB at most.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from kvab import runs, spread
from kvab.capacity import SUMMARY, TABLE
from kvab.errors import InputError
from kvab.study import load_study, root
from kvab.workload import workload_path

ROUNDED_MS = 2  # decimals kept of times in ms: 10 microseconds, far below any difference shown
LIMIT_BYTES = 3_000_000


def publish(study: Path, cluster: str, source: Path, target: Path) -> list[Path]:
    """Copy the complete runs of a cluster and return the published folders.

    Times are rounded to 0.01 ms; artifacts stay behind. A published folder is a run folder, so
    everything reads it as any other. Of a capacity sweep its table and summary are published; where
    the source has none, the published one stays.

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
        _copy_sweep([source / cluster, target / cluster], beside / cluster / "capacity")
        (beside / "workloads").mkdir()
        for path in (workload, workload.with_suffix(".json")):
            shutil.copyfile(path, beside / "workloads" / path.name)
        size = sum(path.stat().st_size for path in beside.rglob("*") if path.is_file())
        if size > LIMIT_BYTES:
            raise InputError(f"{target}: {size:,} bytes, at most {LIMIT_BYTES:,} are published")
        for part in (cluster, "workloads"):
            shutil.rmtree(target / part, ignore_errors=True)
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            (beside / part).rename(target / part)
    return runs.find_runs(target.parent, declared, cluster)


def _copy_sweep(clusters: list[Path], to: Path) -> None:
    found = [each / "capacity" for each in clusters if (each / "capacity" / SUMMARY).is_file()]
    if found:
        to.mkdir(parents=True)
        for name in (TABLE, SUMMARY, spread.TABLE):
            shutil.copyfile(found[0] / name, to / name)


def _copy(run: runs.Run, to: Path) -> None:
    times = run.requests.select_dtypes("float64").round(ROUNDED_MS)
    files = {
        f"manifests/{path.name}": path.read_bytes()
        for path in sorted((run.path / "manifests").iterdir())
    }
    files["requests.parquet"] = runs.requests_bytes(run.requests.assign(**times))
    runs.write_run(to, run.manifest.model_dump(by_alias=True, exclude={"files"}), files)
