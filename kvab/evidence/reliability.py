"""What the fault campaign and the fuzzer found, each read from its one file and checked.

Input: ``reliability.json`` and ``fuzzing.json``, as ``make faults`` and ``make fuzz`` write them.
Output: one object each, which a page loads.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from kvab.declare import Declared, digest
from kvab.errors import InputError
from kvab.study import root

NAME, FUZZING = "reliability.json", "fuzzing.json"
WRONG = ("lost", "duplicated", "altered", "locked", "processes", "objects", "leftovers", "crashed")
Kind = Literal["simulated", "live", "kubernetes"]
Content = TypeVar("Content", bound=Declared)
Count = Annotated[int, Field(ge=0)]


class Fault(Declared):
    """One fault on one kind of cluster, counted; `WRONG` names the counts that aim at zero.

    Attributes
    ----------
    injected, completed, refused : int
        Faults brought about; runs that were complete at the end; starts that ended by themselves
        with one line that says why.
    lost, duplicated, altered : int
        Runs that are gone or never complete; folders, Jobs or artifact sets too many; folders that
        are torn or differ from an undisturbed run.
    locked, crashed : int
        Starts refused after the other one is dead; starts that ended with a traceback.
    processes, objects, leftovers : int
        Left running; left on the cluster; files left beside runs and in the temporary folder.
    seconds : float
        What it took, summed over starts side by side.
    """

    kind: Kind
    fault: str
    injected: Count
    completed: Count
    refused: Count
    lost: Count
    duplicated: Count
    altered: Count
    locked: Count
    processes: Count
    objects: Count
    leftovers: Count
    crashed: Count
    seconds: Annotated[float, Field(ge=0)]

    @property
    def wrong(self) -> int:
        """How many things went wrong."""
        return sum(getattr(self, name) for name in WRONG)


class Skipped(Declared):
    """A fault that could not be brought about, and why."""

    kind: Kind
    fault: str
    why: str


class Campaign(Declared):
    """The content of ``reliability.json``, schema 1."""

    schema_version: Literal[1] = Field(1, alias="schema")
    seed: int
    date: datetime
    seconds: float
    cores: int
    time_scale: float
    versions: dict[str, str]
    faults: list[Fault]
    skipped: list[Skipped] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """Digest of the whole campaign."""
        return digest(self.model_dump(mode="json"))

    @property
    def injected(self) -> int:
        """Faults brought about, of all kinds."""
        return sum(each.injected for each in self.faults)

    @property
    def wrong(self) -> int:
        """Things that went wrong, of all kinds."""
        return sum(each.wrong for each in self.faults)

    def of(self, fault: str) -> int:
        """Return how many of one fault were brought about, on all kinds of cluster."""
        return sum(each.injected for each in self.faults if each.fault == fault)


class Reader(Declared):
    """What came of broken inputs of one kind: each is accepted, refused in one line or crashes."""

    inputs: Count
    accepted: Count
    refused: Count
    crashed: Count
    slowest_ms: float
    peak_mb: float
    seconds: float


class Fuzzing(Declared):
    """The content of ``fuzzing.json``: what came of broken inputs, by reader."""

    seed: int
    readers: dict[str, Reader]

    @property
    def inputs(self) -> int:
        """Inputs of all readers."""
        return sum(each.inputs for each in self.readers.values())

    @property
    def crashed(self) -> int:
        """Inputs that made a reader crash."""
        return sum(each.crashed for each in self.readers.values())


def load_reliability(published: str | Path = "book/published") -> Campaign | None:
    """Return the published campaign, None if there is none.

    Raises
    ------
    InputError
        If the file is not what the campaign writes.
    """
    return _read(root() / published / NAME, Campaign, "make faults")


def load_fuzzing(published: str | Path = "book/published") -> Fuzzing | None:
    """Return what came of broken inputs, None if nothing is published.

    Raises
    ------
    InputError
        If the file is not what the fuzzer writes.
    """
    return _read(root() / published / FUZZING, Fuzzing, "make fuzz")


def _read(path: Path, model: type[Content], command: str) -> Content | None:
    if not path.is_file():
        return None
    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {key}: {first['msg']}; run `{command}` anew") from None
