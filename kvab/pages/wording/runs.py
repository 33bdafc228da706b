"""Sentences on the runs: what is missing, what the gate says, how a reader's runs compare.

Input: the evidence. Output: Markdown.
"""

from __future__ import annotations

from kvab.console import counted, plain
from kvab.pages.evidence import Evidence
from kvab.pages.validity import Gate


def exclusions(evidence: Evidence) -> str:
    """Return which declared configurations and repeats are missing, with the reason."""
    study = evidence.study
    said = [
        f"{arm.label}: not run on {plain(evidence.cluster)}"
        for name, arm in study.configurations.items()
        if name not in evidence.runs
    ]
    said += [
        f"{evidence.arms[name].label}: {len(found)} of {counted(study.repeats, 'repeat')}"
        for name, found in evidence.runs.items()
        if len(found) < study.repeats
    ]
    said += [
        f"{evidence.arms[name].label} r{run.manifest.repeat}: {plain(run.manifest.reason)}"
        for name, found in evidence.runs.items()
        for run in found
        if run.manifest.status != "complete"
    ]
    if not said:
        return "Nothing is excluded: every declared configuration and repeat is there and whole."
    return "Missing or incomplete:\n\n" + "\n".join(f"- {line}" for line in said)


def gate(judged: Gate) -> str:
    """Return the outcome of the gate in one sentence."""
    if judged.green:
        return f":::{{tip}}\nThe gate is **green**: all {len(judged.checks)} checks passed.\n:::"
    reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons)
    return f":::{{danger}}\nThe gate is **red**; every verdict is withheld.\n{reasons}\n:::"
