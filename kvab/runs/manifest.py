"""``run.json``: what a run was, where, of which versions, and what it depends on.

Input: a run folder. Output: its manifest, checked against schema 1.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from kvab.declarations import Declared, inside
from kvab.errors import InputError
from kvab.study import Slo

Natural = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


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
    cluster: dict[str, Any]
    kind: Literal["simulated", "live", "kubernetes", "imported"]
    configuration: str
    repeat: Count
    order: Literal["file", "shuffled within bursts"]
    seed: int
    trace: RunTrace
    start: datetime
    end: datetime
    versions: dict[str, str]
    host: dict[str, Any]
    counts: Counts
    token_counts: Literal["server", "client"] | None = None
    status: Literal["complete", "partial", "failed"]
    reason: str | None = None
    depends_on: dict[str, Any]
    inferred: list[str] = Field(default_factory=list)
    files: Annotated[dict[str, str], AfterValidator(inside)]


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
        raise InputError(
            f"{path}: expected a run folder with run.json, got {error.strerror}; "
            "name a folder such as runs/<study>/<cluster>/<configuration>/r1"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{file}: {key}: {first['msg']}; rerun the replay") from None
