"""Where runs lie, and whether they can serve as they are.

Input: a folder of runs, and what a run would depend on today. Output: paths and states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kvab.errors import InputError
from kvab.runs.folder import read_run, set_aside
from kvab.study import Study

State = Literal["complete", "missing", "changed", "damaged", "failed"]


@dataclass(frozen=True)
class Planned:
    """A run that the study asks for, and whether its folder can serve."""

    configuration: str
    repeat: int
    path: Path
    state: State
    why: str


def find_runs(runs: Path, study: Study, cluster: str) -> list[Path]:
    """Return the run folders of a cluster, by configuration as declared, then by repeat."""
    found = []
    for configuration in study.configurations:
        folders = (runs / study.name / cluster / configuration).glob("r*")
        numbered = [path for path in folders if path.name[1:].isdigit()]
        found += sorted(numbered, key=lambda path: int(path.name[1:]))
    return found


def state(path: Path, depends_on: dict[str, Any]) -> tuple[State, str]:
    """Return whether a run folder can serve, and why not: see ``Planned``."""
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


def restore(path: Path, depends_on: dict[str, Any]) -> bool:
    """Bring back a run set aside earlier that serves now, and return whether there was one."""
    for aside in sorted(path.parent.glob(f"{path.name}.set-aside-*"), reverse=True):
        if state(aside, depends_on)[0] == "complete":
            if path.exists():
                set_aside(path)
            aside.rename(path)
            return True
    return False
