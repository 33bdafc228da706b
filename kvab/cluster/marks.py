"""The marks by which a later start finds a run's own objects on a cluster.

Input: what a run is. Output: labels and annotations of everything that it creates.
"""

from __future__ import annotations

import copy
import json
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
        metadata.setdefault("labels", {})[STUDY_LABEL] = self.study
        metadata.setdefault("annotations", {}).update(
            {RUN: self.run, RUN_ID: self.run_id, DIGEST: self.digest}
        )
        return marked

    def owns(self, found: Manifest) -> bool:
        """Whether an object belongs to this run, made of the same manifests."""
        annotations = found["metadata"].get("annotations") or {}
        return (annotations.get(RUN), annotations.get(DIGEST)) == (self.run, self.digest)


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
