"""A bundle: runs, what they replayed and the recipes, in one file that rebuilds the same book.

Input: folders of runs. Output: a ``.tar.zst`` with a list of checksums; or, from such a file, a
folder of runs. Records, logs and whatever names a machine stay behind.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

import kvab
from kvab.book.publish import MANIFESTS, TABLES, nameless
from kvab.cache import write_beside
from kvab.declarations import Declared
from kvab.errors import InputError, writing
from kvab.requests import archives
from kvab.runs import folder as runs
from kvab.runs.workload import workload_path
from kvab.study import Study, load_study, root

CONTENTS, RUN = "bundle.json", "run.json"
SUFFIX = ".tar.zst"
LEVEL = 10
NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class Contents(Declared):
    """What a bundle says of itself: its study and the sha256 of every other file."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    clusters: list[str]
    kvab: str
    files: dict[str, str]


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
    declared = load_study(study)
    chosen = _chosen(declared, paths)
    files: dict[str, bytes] = {}
    for place, path in chosen:
        for name, content in _run_files(path, hosts).items():
            files[f"runs/{path.relative_to(place)}/{name}"] = content
    for place, cluster in sorted({(place, path.parents[1]) for place, path in chosen}):
        tables = [cluster / name for names in TABLES.values() for name in names]
        _add(files, "runs", place, [path for path in tables if path.is_file()])
    for place, sha256 in sorted({(p, runs.read_manifest(q).trace.sha256) for p, q in chosen}):
        table = workload_path(place / declared.name, sha256)
        _add(files, "runs", place, [table, table.with_suffix(".json")])
    clusters = sorted({path.parents[1].name for _, path in chosen})
    recipes = root() / "recipes"
    profiles = [recipes / "clusters" / f"{name}.yaml" for name in clusters]
    _add(files, "recipes", recipes, [path for path in profiles if path.is_file() and hosts])
    own = sorted(path for path in declared.folder.rglob("*") if path.is_file())
    _add(files, f"recipes/{declared.name}", declared.folder, own)
    _add(files, "environment", root(), [root() / "requirements.lock"])
    contents = Contents(
        study=f"recipes/{declared.name}/{study.name}",
        clusters=clusters,
        kvab=kvab.__version__,
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    _write(out, {CONTENTS: contents.model_dump_json(indent=1, by_alias=True).encode(), **files})
    return contents, _others(declared, {place for place, _ in chosen}, paths)


def _others(study: Study, places: set[Path], paths: list[Path]) -> list[str]:
    """Return which studies have runs in the folders that were named, but are not packed."""
    found = {
        run.parents[3]
        for place in places.intersection(path.resolve() for path in paths)
        for run in place.glob(f"*/*/*/r*/{RUN}")
    }
    return [
        f"{path}: left out, a bundle holds one study ({study.name}); pack it with --study "
        f"recipes/{path.name}/study.yaml"
        for path in sorted(found)
        if path.name != study.name
    ]


def _chosen(study: Study, paths: list[Path]) -> list[tuple[Path, Path]]:
    """Return the folder of runs and the run for every run at or below the paths."""
    found = []
    for path in (each.resolve() for each in paths):
        place = next((up for up in (path, *path.parents) if (up / study.name).is_dir()), None)
        below = _below(path, place, study) if place else []
        if place is None or not below:
            raise InputError(
                f"{path}: expected a folder of runs of {study.name}, or one inside, got none; "
                "name e.g. runs/"
            )
        found += [(place, run) for run in below]
    return sorted(set(found))


def _below(path: Path, place: Path, study: Study) -> list[Path]:
    clusters = sorted((place / study.name).glob("*/"))
    found = (run for each in clusters for run in runs.find_runs(place, study, each.name))
    return [run for run in found if run.is_relative_to(path)]


def _run_files(path: Path, hosts: bool) -> dict[str, bytes]:
    run = runs.read_run(path)
    names = ["requests.parquet", *MANIFESTS]
    if hosts:
        names += [name for name in run.manifest.files if name.startswith("manifests/applied/")]
    files = {name: (path / name).read_bytes() for name in names if name in run.manifest.files}
    sums = {name: run.manifest.files[name] for name in files}
    manifest = run.manifest.model_copy(update={"files": sums})
    if not hosts:
        manifest = nameless(manifest)
    return {RUN: manifest.model_dump_json(indent=2, by_alias=True).encode(), **files}


def _add(files: dict[str, bytes], under: str, base: Path, paths: list[Path]) -> None:
    for path in paths:
        try:
            files[f"{under}/{path.relative_to(base)}"] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be packed ({error.strerror}); restore it") from None


def _write(out: Path, files: dict[str, bytes]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    codec = pa.Codec("zstd", LEVEL)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_beside(out, codec.compress(packed.getvalue(), asbytes=True))


@contextmanager
def unpacked(path: Path) -> Iterator[tuple[Path, Contents]]:
    """Yield the folder of a bundle's content, checked file by file, and what it says of itself.

    Raises
    ------
    InputError
        If it is no bundle, a file is missing, there that is not listed, or altered.
    """
    with archives.folder_of(path) as folder:
        try:
            contents = Contents.model_validate_json((folder / CONTENTS).read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: expected a bundle of `kvab bundle`, got no readable {CONTENTS} "
                f"({type(error).__name__})"
            ) from None
        there = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
        odd = sorted((there - {CONTENTS}) ^ contents.files.keys())
        if odd:
            what = "is missing" if odd[0] in contents.files else "is not listed"
            raise InputError(f"{path}: {odd[0]!r:.80} {what}; get the bundle again")
        for name, expected in contents.files.items():
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != expected:
                raise InputError(
                    f"{path}: {name} has sha256 {found[:12]}…, expected {expected[:12]}…; get the "
                    "bundle again"
                )
        held = {Path(name).parts[2] for name in contents.files
                if fnmatch(name, f"runs/*/*/*/r*/{RUN}")}  # fmt: skip
        safe = bool(held) and all(NAME.fullmatch(name) for name in held)
        if contents.study not in contents.files or not safe or held != {*contents.clusters}:
            raise InputError(
                f"{path}: expected a study and runs of the clusters that {CONTENTS} names "
                f"({contents.study!r:.60}, {contents.clusters!r:.60}), got others; get it again"
            )
        yield folder, contents
