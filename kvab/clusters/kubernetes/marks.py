"""The marks by which a later start finds a run's own objects on a cluster.

Input: what a run is. Output: labels and annotations of everything that it creates.
"""

from __future__ import annotations

import copy
import getpass
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvab.errors import DependencyError
from kvab.study import Study

Manifest = dict[str, Any]
STUDY_LABEL, RUN, RUN_ID, DIGEST, BEFORE = (
    "kvab-study",
    "kvab-run",
    "kvab-run-id",
    "kvab-digest",
    "kvab-before",
)
USER, HOST = "kvab-user", "kvab-host"


@dataclass(frozen=True)
class Mark:
    """What every object of a run carries, so that a later start finds it again."""

    study: str
    run: str
    run_id: str
    digest: str

    def put(self, manifest: Manifest, namespace: str) -> Manifest:
        """Return the manifest with the marks and its namespace."""
        marked = copy.deepcopy(manifest)
        metadata = marked["metadata"]
        metadata["namespace"] = namespace
        metadata.setdefault("labels", {}).update({STUDY_LABEL: self.study, **owner()})
        metadata.setdefault("annotations", {}).update(
            {RUN: self.run, RUN_ID: self.run_id, DIGEST: self.digest}
        )
        return marked

    def owns(self, found: Manifest) -> bool:
        """Whether an object belongs to this run, made of the same manifests."""
        return (run_of(found), digest_of(found)) == (self.run, self.digest)


def run_of(found: Manifest) -> str | None:
    """Return the run that an object belongs to."""
    run: str | None = (found["metadata"].get("annotations") or {}).get(RUN)
    return run


def digest_of(found: Manifest) -> str | None:
    """Return the digest of what was applied with an object."""
    digest: str | None = (found["metadata"].get("annotations") or {}).get(DIGEST)
    return digest


def owner() -> dict[str, str]:
    """Return the labels that say who made an object: user and host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        user = str(os.getuid())
    return {USER: _label(user), HOST: _label(socket.gethostname())}


def _label(text: str) -> str:
    """Return a text as the value of a label may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63].strip("._-") or "unknown"


def owner_of(found: Manifest) -> str:
    """Return user and host that made an object, empty where it does not say."""
    labels = found["metadata"].get("labels") or {}
    return f"{labels[USER]}@{labels[HOST]}" if {USER, HOST} <= labels.keys() else ""


def annotation(found: Manifest, key: str) -> Any:
    """Return the JSON value of an annotation, None where there is none."""
    text = (found["metadata"].get("annotations") or {}).get(key)
    return None if text is None else json.loads(text)


def check_own(found: Manifest, study: str) -> None:
    """Refuse an object that has the name of one of ours but was made by somebody else.

    Raises
    ------
    DependencyError
        Naming it, and the command that deletes it.
    """
    metadata = found["metadata"]
    if (metadata.get("labels") or {}).get(STUDY_LABEL) != study:
        kind, name, namespace = found["kind"], metadata["name"], metadata["namespace"]
        raise DependencyError(
            f"{kind} {name}: expected none or one made for this study (label {STUDY_LABEL}="
            f"{study}), found another's; when it is not needed, `kubectl -n {namespace} delete "
            f"{kind.lower()} {name}`"
        )


def run_name(study: Study, path: Path) -> str:
    """Return the name of a run in the marks: study, configuration and repeat."""
    return f"{study.name}/{path.parent.name}/{path.name}"
