"""Run folders: written whole, verified when read, and whether they can serve as they are.

``runs/<study>/<cluster>/<configuration>/r<repeat>/`` holds ``run.json``, ``requests.parquet``,
``artifacts/`` and ``manifests/``. A folder that exists is whole: it is written beside its place
and renamed in. Beside it lies the lock of the one start that may make it, which is free again when
its process ends, in whatever way. In the study's folder lies the workload of each trace, so that a
book can be built where the trace itself is missing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field, ValidationError

import kvab
from kvab.cache import Lock, sha256_of, write, write_beside
from kvab.declarations import Declared, Json, inside
from kvab.errors import InputError, KvabError, writing
from kvab.requests import metrics
from kvab.requests.table import SCHEMA, check_table
from kvab.study import Slo, Study
from kvab.study.manifests import DEPLOY, PERF, Configuration
from kvab.trace.reading import Trace, describe, reusable_tokens

log = logging.getLogger("kvab")
SMALL, QUICK = 19, 3  # a tenth smaller, or fifty times as fast
State = Literal["complete", "missing", "changed", "damaged", "failed"]
Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Files = Annotated[dict[str, str], AfterValidator(inside)]
"""The SHA-256 of files by their path in a folder."""


class Counts(Declared):
    """Requests expected of the replay, answered, and failed or lost."""

    expected: Natural
    received: Natural
    errors: Natural


class RunTrace(Declared):
    """The workload that was replayed: ``rows`` of its ``total_rows``, from the first."""

    name: str
    sha256: str
    synthetic: bool
    rows: Count
    total_rows: Count


class RunManifest(Declared):
    """The content of ``run.json``, schema 1."""

    schema_version: Literal[1] = Field(1, alias="schema")
    study: str
    study_version: int
    study_digest: str
    slo: Slo | None = None
    margins: dict[str, float] | None = None
    cluster: Json
    kind: Literal["simulated", "live", "kubernetes", "imported"]
    configuration: str
    repeat: Count
    order: Literal["file", "shuffled within bursts"]
    seed: int
    trace: RunTrace
    start: datetime
    end: datetime
    versions: dict[str, str]
    host: Json
    counts: Counts
    token_counts: Literal["server", "client"] | None = None
    status: Literal["complete", "partial", "failed"]
    reason: str | None = None
    depends_on: Json
    inferred: list[str] = Field(default_factory=list)
    files: Files


@dataclass(frozen=True)
class Run:
    """A run folder that was read and verified."""

    path: Path
    manifest: RunManifest
    requests: pd.DataFrame

    @property
    def reuse(self) -> float | None:
        """Share of prompt tokens from cache: of the requests, else as the router counted."""
        counted = self.manifest.host.get("router") or {}
        share = metrics.cached_share(self.requests)
        if share is None and "cached_prefix_tokens" in counted:
            return counted["cached_prefix_tokens"] / int(self.requests["input_tokens"].sum())
        return share


def requests_bytes(table: pd.DataFrame, level: int = QUICK) -> bytes:
    """Return a requests table as the bytes of ``requests.parquet``."""
    return parquet_bytes(table, SCHEMA, level)


def parquet_bytes(
    table: pd.DataFrame, schema: pa.Schema | None = None, level: int = SMALL
) -> bytes:
    """Return a table as Parquet bytes; of zstd's level `SMALL` if it is committed, or `QUICK`."""
    arrow = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
    buffer = io.BytesIO()
    pq.write_table(
        arrow.replace_schema_metadata(None),
        buffer,
        compression="zstd",
        compression_level=level,
        use_dictionary=False,  # times rounded for publication compress better as they are
        column_encoding={"row": "DELTA_BINARY_PACKED"},
    )
    return buffer.getvalue()


def record_run(
    path: Path,
    study: Study,
    cluster: Json,
    recipe: Configuration,
    repeat: int,
    trace: Trace,
    requests: pd.DataFrame,
    files: Mapping[str, bytes | Path],
    *,
    seed: int,
    versions: Mapping[str, str],
    **more: object,
) -> Path:
    """Write the folder of a run that was made; see `write_run`.

    Parameters
    ----------
    study, recipe, repeat : Study, Configuration, int
        What was replayed.
    cluster : dict
        The cluster's profile, with at least ``kind`` and ``name``.
    trace : Trace
        The workload; the requests are its first rows.
    requests : DataFrame
        The requests table.
    files : mapping
        What is kept beside it and the manifests of the recipe.
    seed : int
        Of the order inside bursts, 0 for the file's.
    versions : mapping
        Versions of all but kvab.
    more
        The fields of ``run.json`` that are the run's alone: ``start``, ``end``, ``host``,
        ``status``, ``depends_on``, and ``reason`` and ``inferred`` if any.
    """
    errors = int(requests["error"].notna().sum())
    fields = {
        "study": study.name,
        "study_version": study.version,
        "study_digest": study.digest,
        "slo": study.slo.model_dump(),
        "margins": study.margins,
        "cluster": cluster,
        "kind": cluster["kind"],
        "configuration": recipe.name,
        "repeat": repeat,
        "order": "shuffled within bursts" if seed else "file",
        "seed": seed,
        "trace": {
            "name": trace.name,
            "sha256": trace.sha256,
            "synthetic": trace.synthetic,
            "rows": len(requests),
            "total_rows": len(trace),
        },
        "versions": {"kvab": kvab.__version__, **versions},
        "counts": {
            "expected": len(requests),
            "received": len(requests) - errors,
            "errors": errors,
        },
        "token_counts": requests.attrs.get("token_counts"),
    }
    own = {f"manifests/{name}": (recipe.folder / name).read_bytes() for name in (DEPLOY, PERF)}
    own["requests.parquet"] = requests_bytes(requests)
    return write_run(path, fields | more, own | {**files})


def write_run(path: Path, manifest: Json, files: Mapping[str, bytes | Path]) -> Path:
    """Write a run folder beside its place and rename it in; a run that stands there moves aside.

    Parameters
    ----------
    path : Path
        The run's folder.
    manifest : dict
        Fields of ``RunManifest`` but ``files``.
    files : dict of str to bytes or Path
        Every other file by its path in the folder: its content, or the file to copy.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the folder cannot be written; nothing is left behind then.
    """
    checked = RunManifest(**manifest, files=sums_of(files))
    text = checked.model_dump_json(indent=2, by_alias=True) + "\n"
    with placed(path) as beside:
        for name, content in {**files, "run.json": text.encode()}.items():
            write(beside / name, content)
    return path


@contextlib.contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Yield an empty folder for a run, which takes its place in the end, or is removed.

    Raises
    ------
    InputError
        If the folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield beside
            beside.chmod(0o755)
            if path.exists():
                set_aside(path)
            beside.rename(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a run folder to ``<name>.set-aside-<time>``, say so and return its new place."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.rename(path.with_name(f"{path.name}.set-aside-{now}"))
    log.warning("%s: was there already, set aside as %s", path, aside.name)
    return aside


def verified_manifest(path: Path) -> RunManifest:
    """Return a run's manifest after checking every file of its folder against it.

    Raises
    ------
    InputError
        If a file is missing or altered.
    """
    manifest = read_manifest(path)
    check_files(path, manifest.files, "run.json", fix="restore it or rerun")
    return manifest


def sums_of(files: Mapping[str, bytes | Path]) -> Files:
    """Return the SHA-256 of each file, by its name."""
    return {name: sha256_of(content) for name, content in files.items()}


def check_files(
    folder: Path, files: Files, listed_in: str, fix: str, packed: Path | None = None
) -> None:
    """Reject a folder in which a file is missing, or not the one that is listed.

    The error is the archive's that it was ``packed`` in, if any, else the file's.
    """
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            problem = f"missing, though {listed_in} lists it"
        elif (got := sha256_of(file)) != expected:
            problem = f"altered: {listed_in} says sha256 {expected[:12]}, got {got[:12]}"
        else:
            continue
        raise InputError(f"{name} {problem}" if packed else problem, path=packed or file, fix=fix)


def read_run(path: str | Path, verified: RunManifest | None = None) -> Run:
    """Return a run folder after checking every file in it against ``run.json``.

    That is not done again where its manifest was ``verified`` just now.

    Raises
    ------
    InputError
        If a file is missing or altered, or the requests table is not whole.
    """
    path = Path(path)
    manifest = verified or verified_manifest(path)
    file = path / "requests.parquet"
    if file.name not in manifest.files:
        raise InputError(f"{file}: not listed in run.json; rerun the replay")
    try:
        requests = check_table(pq.read_table(file).to_pandas(), file)
    except (OSError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise InputError(expected="a requests table", got=f"{error!s:.120}", path=file,
                         fix="rerun the replay") from None  # fmt: skip
    if len(requests) != manifest.counts.expected:
        problem = f"run.json says {manifest.counts.expected} rows, got {len(requests)}"
        raise InputError(problem, path=file, fix="rerun the replay")
    return Run(path, manifest, requests)


def check_comparable(runs: list[Run]) -> None:
    """Reject runs that replayed different workloads, or for different bounds of a good request.

    Raises
    ------
    InputError
        Naming a run of each workload, or of each pair of bounds.
    """
    traces = {(run.manifest.trace.sha256, run.manifest.trace.rows): run.path for run in runs}
    if len(traces) > 1:
        replayed = [
            f"{path}: {rows} rows of {sha256[:8]}" for (sha256, rows), path in traces.items()
        ]
        raise InputError(f"{', '.join(replayed)}; compare runs of one workload")
    bounds = {run.manifest.slo: run.path for run in runs if run.manifest.slo}
    if len(bounds) > 1:
        listed = ", ".join(
            f"{path} for {slo.ttft_ms:g} ms and {slo.itl_ms:g} ms" for slo, path in bounds.items()
        )
        raise InputError(f"made for different bounds of a good request: {listed}",
                         fix="replay one under the other's study file")  # fmt: skip


def read_manifest(path: Path) -> RunManifest:
    """Return the checked ``run.json`` of a run folder.

    Raises
    ------
    InputError
        If it is missing, not JSON, or not of schema 1.
    """
    file = path / "run.json"
    try:
        return RunManifest.model_validate_json(file.read_bytes())
    except OSError as error:
        fix = "name one such as runs/<study>/<cluster>/<configuration>/r1"
        raise InputError(expected="a run folder with run.json", got=error.strerror, path=path,
                         fix=fix) from None  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file}: {key}: {first['msg']}; rerun the replay") from None


def find_runs(runs: Path, study: Study, cluster: str) -> list[Path]:
    """Return the run folders of a cluster, by configuration as declared, then by repeat."""
    paths = []
    for configuration in study.configurations:
        folders = (runs / study.name / cluster / configuration).glob("r*")
        numbered = [path for path in folders if path.name[1:].isdigit()]
        paths += sorted(numbered, key=lambda path: int(path.name[1:]))
    return paths


def state(path: Path, depends_on: Json) -> tuple[State, str]:
    """Return whether a run folder can serve, and why not."""
    if not path.exists():
        return "missing", "never replayed"
    try:
        manifest = read_run(path).manifest
    except InputError as error:
        return "damaged", str(error)
    if manifest.status != "complete":
        return "failed", manifest.reason or manifest.status
    old = manifest.depends_on
    changed = [key for key in {**old, **depends_on} if old.get(key) != depends_on.get(key)]
    if changed:
        return "changed", "changed since: " + ", ".join(changed)
    return "complete", f"replayed {manifest.end:%Y-%m-%d %H:%M} UTC"


def find_state(path: Path, depends_on: Json) -> tuple[State, str]:
    """Return `state` of a run folder; a run set aside earlier that serves now comes back first."""
    present = state(path, depends_on)
    if present[0] == "complete":
        return present
    for aside in sorted(path.parent.glob(f"{path.name}.set-aside-*"), reverse=True):
        if state(aside, depends_on)[0] == "complete":
            if path.exists():
                set_aside(path)
            return state(aside.rename(path), depends_on)
    return present


@dataclass(frozen=True)
class Workload:
    """A trace without its hash ids.

    Attributes
    ----------
    table : DataFrame
        One row a trace row: ``row`` int32, ``arrival_ms`` float64 (from 0), ``input_tokens``,
        ``output_tokens`` and ``reusable_tokens`` int32 (prompt tokens that an earlier row had
        already brought: what an unlimited cache would reuse).
    description : dict
        What ``kvab trace describe --json`` prints.
    """

    table: pd.DataFrame
    description: Json


def workload_path(folder: Path, sha256: str) -> Path:
    """Return where a trace's workload lies in a study's folder of runs."""
    return folder / "workloads" / f"{sha256[:12]}.parquet"


def save_workload(trace: Trace, folder: Path) -> Path:
    """Write the workload of a trace into a study's folder of runs, once, and return its path."""
    path = workload_path(folder, trace.sha256)
    if path.exists() and path.with_suffix(".json").exists():
        return path
    table = pd.DataFrame(
        {
            "row": np.arange(len(trace), dtype="int32"),
            "arrival_ms": trace.arrival_ms,
            "input_tokens": trace.input_tokens,
            "output_tokens": trace.output_tokens,
            "reusable_tokens": reusable_tokens(trace).astype("int32"),
        }
    )
    text = json.dumps(describe(trace), indent=2) + "\n"
    write_beside(path.with_suffix(".json"), text.encode())
    write_beside(path, parquet_bytes(table))
    return path


def load_workload(folder: Path, sha256: str) -> Workload:
    """Return the workload of the trace with this sha256.

    Raises
    ------
    InputError
        If the study's folder of runs does not hold it.
    """
    path = workload_path(folder, sha256)
    try:
        description = json.loads(path.with_suffix(".json").read_bytes())
        return Workload(pd.read_parquet(path), description)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the workload of the runs, got {error}; "
            "run `kvab report` where the trace is"
        ) from None


class RunLock(Lock):
    """The right to make one run; held by at most one process."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path.with_name(f".{path.name}.lock"), f"{path}: another start of this run is going on"
        )
        self.path = path

    def take(self) -> None:
        """Hold the run, and remove what a start that died has left half-written.

        Raises
        ------
        DependencyError
            If another start of the run is going on, naming its process.
        InputError
            If the run's folder cannot be written.
        """
        with writing(self.path):
            super().take()
            try:
                for pattern in (f".{self.path.name}-*", f"..{self.path.name}.state.json-*"):
                    for left in self.path.parent.glob(pattern):
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            except OSError:
                self.leave()
                raise

    def forget(self) -> None:
        """Remove the lock of a start that died when its run was complete already."""
        if self.file.exists():
            with contextlib.suppress(KvabError):
                self.take()
                self.leave()
