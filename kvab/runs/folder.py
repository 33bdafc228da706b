"""Run folders: written whole, verified when read.

``runs/<study>/<cluster>/<configuration>/r<repeat>/`` holds ``run.json``, ``requests.parquet``,
``artifacts/`` and ``manifests/``. A folder that exists is whole: it is written beside its place
and renamed in.
"""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kvab.cache import write
from kvab.errors import InputError, remedy
from kvab.requests.table import SCHEMA, check_table
from kvab.runs.manifest import RunManifest, read_manifest

log = logging.getLogger("kvab")
SMALL, QUICK = 19, 3  # a tenth smaller, or fifty times as fast


@dataclass(frozen=True)
class Run:
    """A run folder that was read and verified."""

    path: Path
    manifest: RunManifest
    requests: pd.DataFrame


def requests_bytes(table: pd.DataFrame, level: int = QUICK) -> bytes:
    """Return a requests table as Parquet bytes of schema 1."""
    return parquet_bytes([table], SCHEMA, level)


def parquet_bytes(
    tables: Iterable[pd.DataFrame], schema: pa.Schema | None = None, level: int = SMALL
) -> bytes:
    """Return tables of equal columns, one after the other, as the bytes of one Parquet file.

    Each is a row group, and only one is held at a time. ``level`` is zstd's: `SMALL` for what is
    committed, or `QUICK`.
    """
    buffer, writer = io.BytesIO(), None
    for table in tables:
        arrow = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
        arrow = arrow.replace_schema_metadata(None)
        schema = schema or arrow.schema
        writer = writer or pq.ParquetWriter(
            buffer,
            arrow.schema,
            compression="zstd",
            compression_level=level,
            use_dictionary=False,  # times rounded for publication compress better as they are
            column_encoding={"row": "DELTA_BINARY_PACKED"},
        )
        writer.write_table(arrow)
    if writer:
        writer.close()
    return buffer.getvalue()


def write_run(path: Path, manifest: dict[str, Any], files: Mapping[str, bytes | Path]) -> Path:
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
    sums = {name: _sha256(content) for name, content in files.items()}
    checked = RunManifest(**manifest, files=sums)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror}); {remedy(error)}") from None
    try:
        text = checked.model_dump_json(indent=2, by_alias=True) + "\n"
        for name, content in {**files, "run.json": text.encode()}.items():
            write(beside / name, content)
        beside.chmod(0o755)
        if path.exists():
            set_aside(path)
        beside.rename(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write the run ({error.strerror}); {remedy(error)}"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def _sha256(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a run folder to ``<name>.set-aside-<time>``, say so and return its new place."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = path.rename(path.with_name(f"{path.name}.set-aside-{now}"))
    log.warning("%s: was there already, set aside as %s", path, aside.name)
    return aside


def read_run(path: str | Path) -> Run:
    """Return a run folder after checking every file in it against ``run.json``.

    Raises
    ------
    InputError
        If a file is missing or altered, or the requests table is not whole.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing, though run.json lists it; restore it or rerun")
        got = _sha256(file)
        if got != expected:
            raise InputError(
                f"{file}: altered: run.json says sha256 {expected[:12]}, got {got[:12]}; "
                "restore it or rerun"
            )
    file = path / "requests.parquet"
    if file.name not in manifest.files:
        raise InputError(f"{file}: not listed in run.json; rerun the replay")
    try:
        requests = check_table(pq.read_table(file).to_pandas(), file)
    except (OSError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{file}: expected a requests table, got {reason}; rerun the replay"
        ) from None
    if len(requests) != manifest.counts.expected:
        raise InputError(
            f"{file}: run.json says {manifest.counts.expected} rows, got {len(requests)}; rerun"
        )
    return Run(path, manifest, requests)


def check_comparable(found: list[Run]) -> None:
    """Reject runs that replayed different workloads.

    Raises
    ------
    InputError
        Naming the first run that differs from the first one.
    """
    first = found[0].manifest.trace
    for run in found:
        trace = run.manifest.trace
        if (trace.sha256, trace.rows) != (first.sha256, first.rows):
            raise InputError(
                f"{run.path}: replayed {trace.rows} rows of {trace.name} ({trace.sha256[:8]}), "
                f"{found[0].path} {first.rows} rows of {first.name} ({first.sha256[:8]}); "
                "compare runs of one workload"
            )


def check_bounds(found: list[Run]) -> None:
    """Reject runs that were made for different bounds of a good request.

    Raises
    ------
    InputError
        Naming the runs and their bounds.
    """
    bounds = {run.manifest.slo: run.path for run in found if run.manifest.slo}
    if len(bounds) > 1:
        said = ", ".join(
            f"{path} for {slo.ttft_ms:g} ms and {slo.itl_ms:g} ms" for slo, path in bounds.items()
        )
        raise InputError(
            f"made for different bounds of a good request: {said}; replay one of them under the "
            "study file that the other was made with"
        )
