"""Small tables of many replays: written beside what they were made from, read back and verified.

Input: tables of a sweep. Output: Parquet files and a JSON summary that names their SHA-256, which
pages read of this machine's runs, else the published ones.
"""

from __future__ import annotations

import hashlib
import io
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pandas as pd

from kvab.cache import write_beside
from kvab.clusters.base import Job
from kvab.declarations import Declared, Json
from kvab.errors import InputError
from kvab.runs import folder as runs
from kvab.study import Slo, Study, load_cluster, root


class Summary(Declared):
    """What tables were made from, and their SHA-256 by file name."""

    tables: dict[str, str]


class Replayed(Summary):
    """Tables of replays as a cluster's profile and the study declare them."""

    study: str
    study_version: int
    cluster: Json
    trace: runs.RunTrace
    versions: dict[str, str]
    first: datetime
    last: datetime
    slo: Slo
    manifests: dict[str, str]


Kind = TypeVar("Kind", bound=Summary)


def replayed(jobs: list[Job], manifests: list[runs.RunManifest]) -> Json:
    """Return the fields of `Replayed` but the tables, of jobs and the manifests of their runs."""
    first = jobs[0]
    return {
        "study": first.study.name,
        "study_version": first.study.version,
        "cluster": load_cluster(first.cluster.name).model_dump(mode="json"),
        "trace": manifests[0].trace,
        "versions": manifests[-1].versions,
        "first": min(manifest.start for manifest in manifests),
        "last": max(manifest.end for manifest in manifests),
        "slo": first.study.slo,
        "manifests": {job.configuration: job.recipe.digest for job in jobs},
    }


def write_tables(
    path: Path, kind: type[Kind], tables: dict[str, pd.DataFrame], fields: Json
) -> Path:
    """Write tables and, last, their summary at ``path``; return its folder."""
    contents = {name: runs.parquet_bytes([table]) for name, table in tables.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_beside(path.with_name(name), content)
    summary = kind(**fields, tables=digests)
    write_beside(path, (summary.model_dump_json(by_alias=True, indent=1) + "\n").encode())
    return path.parent


def read_tables(
    study: Study, cluster: str, folder: str | Path, published: str | Path, place: Path,
    kind: type[Kind], command: str,
) -> tuple[Kind, list[pd.DataFrame], bool] | None:  # fmt: skip
    """Return a summary, its tables, and whether they are this machine's own; None without any.

    ``place`` is the summary's in a cluster's folder. Those of the cluster in the folder of runs
    come first, then the published ones of the cluster, then of any other.

    Raises
    ------
    InputError
        If its files do not belong together; ``command`` makes them anew.
    """
    name = Path(study.name)
    public = sorted((root() / published / name).glob(f"*/{place}"),
                    key=lambda path: cluster not in path.parts)  # fmt: skip
    paths = [root() / folder / name / cluster / place, *public]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    try:
        summary, tables = kind.model_validate_json(path.read_bytes()), []
        for file, sha256 in summary.tables.items():
            content = path.with_name(file).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError(f"another {file} than it names")
            tables.append(pd.read_parquet(io.BytesIO(content)))
    except (OSError, ValueError) as error:  # pydantic's own is a ValueError
        reason = str(error).splitlines()[0]
        raise InputError(
            expected="a summary and its tables", got=reason, path=path,
            fix=f"restore them, or run `{command}`",
        ) from None  # fmt: skip
    return summary, tables, path.read_bytes() not in [each.read_bytes() for each in public]
