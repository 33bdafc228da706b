"""Page 02: what each configuration deploys, what differs, what is not simulated.

Input: the evidence, whose runs carry their manifests. Output: tables.
"""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from kvab.pages.evidence import Evidence
from kvab.pages.tables import Table
from kvab.study.manifests import Configuration, read_configuration
from kvab.study.topology import flatten, read_topology


def _configuration(evidence: Evidence, name: str) -> Configuration:
    """Return the manifests that the first run of a configuration used."""
    return read_configuration(evidence.runs[name][0].path / "manifests", name)


def topologies_table(evidence: Evidence) -> Table:
    """Return what each configuration deploys."""
    lines = []
    for name, arm in evidence.arms.items():
        topology = read_topology(_configuration(evidence, name))
        workers = ", ".join(
            f"{group.replicas} {role} x TP{group.tensor_parallel}"
            for role, group in topology.groups.items()
        )
        lines.append({
            "configuration": arm.label,
            "role": arm.role,
            "split": arm.factors.split,
            "routing": arm.factors.routing,
            "workers": workers,
            "GPUs": topology.gpus,
            "deployment": topology.deployment,
        })  # fmt: skip
    columns = ("configuration", "role", "split", "routing", "workers", "deployment")
    return Table(pd.DataFrame(lines), "Read from the deploy.yaml of the runs.", columns)


def _difference(evidence: Evidence, a: str, b: str) -> pd.DataFrame:
    """Return the fields in which two configurations differ, worker compared with worker.

    Workers are matched by role; a role that only one configuration has is compared with the
    worker that does its work in the other.
    """
    both = [_configuration(evidence, name) for name in (a, b)]
    flat = [flatten(each) for each in both]
    groups = [read_topology(each).groups for each in both]
    workers = {group.component for each in groups for group in each.values()}
    pairs = {"deployment": ("", "")}
    for role in dict.fromkeys([*groups[0], *groups[1]]):
        one, other = (each.get(role) or each.get("aggregated") for each in groups)
        if one and other:
            pairs[f"{role} worker"] = (f"{one.component}.", f"{other.component}.")
    rows = []
    for where, prefixes in pairs.items():
        left, right = (
            {
                field.removeprefix(prefix): value
                for field, value in fields.items()
                if (field.startswith(prefix) if prefix else field.split(".")[0] not in workers)
            }
            for prefix, fields in zip(prefixes, flat, strict=True)
        )
        rows += [
            (where, field, left.get(field, "–"), right.get(field, "–"))
            for field in dict.fromkeys([*left, *right])
            if left.get(field) != right.get(field)
        ]
    return pd.DataFrame(rows, columns=["where", "field", a, b])


def differences_table(evidence: Evidence) -> Table:
    """Return every field in which baseline and comparison differ."""
    frame = _difference(evidence, evidence.study.baseline, evidence.study.comparison)
    return Table(
        frame,
        "Workers are compared by role; a role that one of the two lacks, with the worker that does "
        "its work there.",
        tuple(frame.columns),
    )


def pairs_table(evidence: Evidence) -> Table:
    """Return, for each pair of configurations that differ in one factor, the fields that do."""
    lines = []
    for (a, one), (b, other) in combinations(evidence.arms.items(), 2):
        same_split = one.factors.split == other.factors.split
        same_routing = one.factors.routing == other.factors.routing
        if same_split != same_routing:
            rows = _difference(evidence, a, b)
            fields = dict.fromkeys(rows["where"] + ": " + rows["field"])
            lines.append({
                "pair": f"{one.label} / {other.label}",
                "factor": "routing" if same_split else "split",
                "fields that differ": "\n".join(fields),
            })  # fmt: skip
    columns = ("pair", "factor", "fields that differ")
    return Table(pd.DataFrame(lines, columns=columns), "", columns)


def unexpressed_table(evidence: Evidence) -> Table:
    """Return the fields of the manifests that the simulator cannot express, and why."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, arm in evidence.arms.items():
        for item in read_topology(_configuration(evidence, name)).unexpressed:
            key = (item.component, item.field, str(item.value)[:60], item.why)
            lines.setdefault(key, []).append(arm.short)
    columns = ["component", "field", "value", "why"]
    frame = pd.DataFrame(list(lines), columns=columns)
    frame["in"] = [", ".join(shorts) for shorts in lines.values()]
    return Table(frame, "", tuple(frame.columns))
