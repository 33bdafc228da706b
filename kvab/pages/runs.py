"""Page 04: the runs that the book stands on, and what their checks say.

Input: the evidence. Output: tables and sentences.
"""

from __future__ import annotations

import pandas as pd

from kvab.console import counted, plain
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.printed import rejected
from kvab.pages.tables import Table
from kvab.requests.metrics import overloaded


def runs_table(evidence: Evidence) -> Table:
    """Return the runs that the book stands on."""
    lines = [
        {
            "configuration": evidence.arms[name].label,
            "repeat": run.manifest.repeat,
            "order of rows": run.manifest.order,
            "expected": f"{run.manifest.counts.expected:,}",
            "received": f"{run.manifest.counts.received:,}",
            "errors": f"{run.manifest.counts.errors:,}"
            + rejected(int(overloaded(run.requests).sum())),
            "status": run.manifest.status,
            "ended (UTC)": f"{run.manifest.end:%Y-%m-%d %H:%M}",
            "requests.parquet": run.manifest.files["requests.parquet"][:8],
        }
        for name, repeats in evidence.runs.items()
        for run in repeats
    ]
    versions = ", ".join(f"{name} {v}" for name, v in evidence.manifest.versions.items())
    return Table(pd.DataFrame(lines), f"Cluster {evidence.cluster}; {versions}.",
                 ("configuration", "order of rows", "status"))  # fmt: skip


def exclusions(evidence: Evidence) -> str:
    """Return which declared configurations and repeats are missing, with the reason."""
    study, arms = evidence.study, evidence.arms
    lines = [
        f"{arm.label}: not run on {plain(evidence.cluster)}"
        for name, arm in study.configurations.items()
        if name not in evidence.runs
    ]
    lines += [
        f"{arms[name].label}: {len(repeats)} of {counted(study.repeats, 'repeat')}"
        for name, repeats in evidence.runs.items()
        if len(repeats) < study.repeats
    ]
    lines += [
        f"{arms[name].label} r{run.manifest.repeat}: {plain(run.manifest.reason)}"
        for name, repeats in evidence.runs.items()
        for run in repeats
        if run.manifest.status != "complete"
    ]
    if not lines:
        return "Nothing is excluded: every declared configuration and repeat is there and whole."
    return "Missing or incomplete:\n\n" + "\n".join(f"- {line}" for line in lines)


def gate_notice(judged: Gate) -> str:
    """Return the outcome of the gate in one sentence."""
    if judged.green:
        return f":::{{tip}}\nThe gate is **green**: all {len(judged.checks)} checks passed.\n:::"
    reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons)
    return f":::{{danger}}\nThe gate is **red**; every verdict is withheld.\n{reasons}\n:::"


def gate_table(judged: Gate) -> Table:
    """Return the checks: those that failed one by one, those that passed summed up."""
    checks = judged.checks
    failed = checks[~checks["passed"]].assign(outcome="FAILED")
    passed = checks[checks["passed"]].groupby("check", sort=False, as_index=False).agg(
        where=("where", lambda v: v.iloc[0] if len(v) == 1 else f"all {len(v)}"),
        expected=("expected", "first"),
        found=("found", lambda v: v.iloc[0] if v.nunique() == 1 else f"{v.iloc[0]} … {v.iloc[-1]}"),
    )  # fmt: skip
    shown = pd.concat([failed, passed.assign(outcome="passed")], ignore_index=True)
    columns = ["check", "where", "expected", "found", "outcome"]
    return Table(shown[columns], "", tuple(columns))
