"""What leaves this machine: runs made small and nameless, with what they replayed.

Input: folders of runs. Output: ``book/published/``, of the same shape, 12 MB at most; or a bundle,
a ``.tar.zst`` with checksums that rebuilds the same book, and from such a file a folder of
runs. Records, logs and whatever names a machine stay behind.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

import kvab
from kvab.cache import write, write_beside
from kvab.declarations import Declared, Json
from kvab.errors import InputError, writing
from kvab.requests.archives import folder_of
from kvab.requests.table import PARTS
from kvab.runs import folder as runs
from kvab.runs import twins
from kvab.runs.folder import Files, RunManifest, workload_path
from kvab.runs.hardware import publish_hardware
from kvab.runs.hours import MadeHours
from kvab.runs.sensitivity import Answers
from kvab.runs.sweep import Sweep
from kvab.study import FRAGMENT, WITH, Study, load_study, root
from kvab.study.manifests import DEPLOY, PERF

ROUNDED_MS = {"arrival_ms": 2, "ttft_ms": 1, "itl_ms": 2, "latency_ms": 1, "send_lag_ms": 2,
              **dict.fromkeys(PARTS, 1)}  # fmt: skip
KEPT = ("kind", "name", "description", "hardware", "backend", "image", "rdma_resource",
        "kv_transfer_gb_per_s", "frontend_ms_per_1k_tokens", "prefill_time_ratio",
        "decode_time_ratio")  # fmt: skip
LIMIT_BYTES = 12_000_000
MANIFESTS = (f"manifests/{DEPLOY}", f"manifests/{PERF}")
TABLES = {  # a table that tells whether there are more to publish, and those
    **{campaign.PLACE: campaign.files() for campaign in (Sweep, Answers, MadeHours)},
    twins.TABLE: [twins.TABLE, twins.ORDERS, twins.FITS],
}
CONTENTS, RUN = "bundle.json", "run.json"
SUFFIX = ".tar.zst"
LEVEL = 10  # of zstd
AGAIN = "get the bundle again"
NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def publish(study: Path, cluster: str, source: Path, target: Path) -> list[Path]:
    """Copy the complete runs of a cluster and return the published folders.

    Times are rounded to 0.1 ms and ITL to 0.01 ms, far below any difference shown; artifacts and
    the names of machines stay behind. A published folder is a run folder, so everything reads it as
    any other. Of sweeps and of made hours tables and summaries are published, and of a
    model check its twins; where the source has none, the published ones stay. So do those of
    hardware scenarios.

    Raises
    ------
    InputError
        If there is no complete run, or the whole would exceed 12 MB.
    """
    declared = load_study(study)
    publish_hardware(root() / source, root() / target)
    source, target = root() / source / declared.name, root() / target / declared.name
    paths = runs.find_runs(source.parent, declared, cluster)
    if not paths:
        raise InputError(f"{source / cluster}: no runs to publish; run `kvab report` first")
    if partial := [path for path in paths if runs.read_manifest(path).status != "complete"]:
        raise InputError(f"{partial[0]}: not complete; rerun it before publishing")
    files = _leaving(source.parent, paths, small=True)
    for key, names in TABLES.items():
        if not (source / cluster / key).is_file():
            files |= _read("", target.parent, _present(target / cluster, names))
    target.mkdir(parents=True, exist_ok=True)
    others = [path for path in target.glob("*") if path.name not in (cluster, "workloads")]
    size = sum(map(len, files.values())) + sum(map(_size, others))
    if size > LIMIT_BYTES:
        raise InputError(f"{target}: {size:,} bytes, at most {LIMIT_BYTES:,} are published")
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=target.parent) as beside:
        for name, content in files.items():
            write(Path(beside) / name, content)
        for part in (cluster, "workloads"):
            shutil.rmtree(target / part, ignore_errors=True)
            (Path(beside) / declared.name / part).rename(target / part)
    return runs.find_runs(target.parent, declared, cluster)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _leaving(
    folder: Path, paths: Iterable[Path], *, hosts: bool = False, small: bool = False
) -> dict[str, bytes]:
    """Return what leaves this machine of runs, by where it lies in their folder.

    That is of each run its table and manifests, its workload, and the tables of its cluster.
    """
    files: dict[str, bytes] = {}
    for path in paths:
        run, under = runs.read_run(path), path.relative_to(folder)
        made = _run_files(run, hosts, small)
        files |= {f"{under}/{name}": content for name, content in made.items()}
        workload = workload_path(path.parents[2], run.manifest.trace.sha256)
        tables = _present(path.parents[1], chain(*TABLES.values()))
        files |= _read("", folder, [workload, workload.with_suffix(".json"), *tables])
    return files


def _run_files(run: runs.Run, hosts: bool, small: bool) -> dict[str, bytes]:
    """Return what leaves this machine of a run; with ``small`` its times are rounded."""
    applied = [name for name in run.manifest.files if name.startswith("manifests/applied/")]
    names = [*MANIFESTS, *(applied if hosts else []), "requests.parquet"]
    files = {name: (run.path / name).read_bytes() for name in names if name in run.manifest.files}
    if small:
        times = run.requests[[*ROUNDED_MS]].round(ROUNDED_MS)
        files["requests.parquet"] = runs.requests_bytes(run.requests.assign(**times), runs.SMALL)
    manifest = run.manifest if hosts else nameless(run.manifest)
    manifest = manifest.model_copy(update={"files": runs.sums_of(files)})
    files[RUN] = (manifest.model_dump_json(indent=2, by_alias=True) + "\n").encode()
    return files


def _present(folder: Path, names: Iterable[str | Path]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read(under: str, base: Path, paths: Iterable[Path]) -> dict[str, bytes]:
    """Return files by where they lie below a folder."""
    try:
        return {f"{under}{path.relative_to(base)}": path.read_bytes() for path in paths}
    except OSError as error:
        problem = f"cannot be packed ({error.strerror})"
        raise InputError(problem, path=error.filename, fix="restore it") from None


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


class Contents(Declared):
    """What a bundle says of itself: its study and the sha256 of every other file."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    clusters: list[str]
    kvab: str
    files: Files


def bundle(
    study: Path, paths: list[Path], out: Path, *, hosts: bool = False
) -> tuple[Contents, list[str]]:
    """Pack runs with all that a book needs of them.

    Parameters
    ----------
    study : Path
        The study file.
    paths : list of Path
        Folders of runs: of the whole study, of a cluster, of a configuration, or single runs.
    out : Path
        The file to write, ``.tar.zst``. It is written beside and renamed in.
    hosts : bool
        Keep names of nodes, pods and contexts, and the manifests as applied.

    Returns
    -------
    Contents
        What the bundle holds.
    list of str
        The studies at or below the paths that it leaves out.

    Raises
    ------
    InputError
        If no run is found, one is damaged, or the file cannot be written.
    """
    if not out.name.endswith(SUFFIX):
        raise InputError(f"{out}: expected a name that ends in {SUFFIX}")
    declared, recipes = load_study(study), root() / "recipes"
    chosen, files = _chosen(declared, paths), dict[str, bytes]()
    for folder, path in chosen:
        made = _leaving(folder, [path], hosts=hosts)
        files |= {f"runs/{name}": content for name, content in made.items()}
    clusters = sorted({path.parents[1].name for _, path in chosen})
    if hosts:
        profiles = [f"clusters/{name}.yaml" for name in clusters]
        files |= _read("recipes/", recipes, _present(recipes, profiles))
    own = sorted(path for path in declared.folder.rglob("*") if path.is_file())
    files |= _read("recipes/", recipes, own)
    files |= _read("environment/", root(), [root() / "requirements.lock"])
    contents = Contents(
        study=f"recipes/{declared.base}/{study.name}",
        clusters=clusters,
        kvab=kvab.__version__,
        files=runs.sums_of(files),
    )
    _write(out, {CONTENTS: contents.model_dump_json(indent=1, by_alias=True).encode(), **files})
    return contents, _others(declared, {folder for folder, _ in chosen}, paths)


def _others(study: Study, folders: set[Path], paths: list[Path]) -> list[str]:
    """Return which studies have runs in the folders that were named, but are not packed."""
    studies = {
        run.parents[3]
        for folder in folders.intersection(path.resolve() for path in paths)
        for run in folder.glob(f"*/*/*/r*/{RUN}")
    }
    lines = []
    for path in sorted(studies):
        name, _, workload = path.name.partition(WITH)
        words = f"--study recipes/{name}/study.yaml" + f" --workload {workload}" * bool(workload)
        if path.name != study.name:
            lines.append(
                f"{path}: left out, a bundle holds one study ({study.name}); pack it with {words}"
            )
    return lines


def _chosen(study: Study, paths: list[Path]) -> list[tuple[Path, Path]]:
    """Return the folder of runs and the run for every run at or below the paths."""
    chosen = set()
    for path in (path.resolve() for path in paths):
        folders = [up for up in (path, *path.parents) if (up / study.name).is_dir()][:1]
        below = {
            (folder, run)
            for folder in folders
            for cluster in (folder / study.name).glob("*/")
            for run in runs.find_runs(folder, study, cluster.name)
            if run.is_relative_to(path)
        }
        if not below:
            raise InputError(expected=f"a folder of runs of {study.name}, or one inside",
                             got="none", path=path, fix="name e.g. runs/")  # fmt: skip
        chosen |= below
    return sorted(chosen)


def _write(out: Path, files: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    codec = pa.Codec("zstd", LEVEL)
    with writing(out):
        write_beside(out, codec.compress(packed.getvalue(), asbytes=True))


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, Contents]]:
    """Yield the folder of a bundle's content, checked file by file, and what it says of itself.

    Raises
    ------
    InputError
        If it is no bundle, a file is missing, there that is not listed, or altered.
    """
    with folder_of(path) as folder:
        try:
            contents = Contents.model_validate_json((folder / CONTENTS).read_bytes())
        except (OSError, ValueError) as error:
            got = f"no readable {CONTENTS} ({type(error).__name__})"
            raise InputError(expected="a bundle of `kvab bundle`", got=got, path=path) from None
        runs.check_files(folder, contents.files, CONTENTS, fix=AGAIN, packed=path)
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        if odd := sorted(names - {CONTENTS} - contents.files.keys()):
            raise InputError(f"{odd[0]!r:.80} is not listed", path=path, fix=AGAIN)
        held = {Path(name).parts[2] for name in contents.files
                if fnmatch(name, f"runs/*/*/*/r*/{RUN}")}  # fmt: skip
        safe = bool(held) and all(NAME.fullmatch(name) for name in held)
        study = contents.study.partition(FRAGMENT)[0]
        if study not in contents.files or not safe or held != {*contents.clusters}:
            named = f"({contents.study!r:.60}, {contents.clusters!r:.60})"
            raise InputError(expected=f"the study and clusters that {CONTENTS} names {named}",
                             got="others", path=path, fix=AGAIN)  # fmt: skip
        yield folder, contents
