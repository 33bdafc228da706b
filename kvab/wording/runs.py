"""Sentences on the runs: what is missing, what the gate says, how a reader's runs compare.

Input: the evidence. Output: Markdown.
"""

from __future__ import annotations

from kvab.evidence import Evidence
from kvab.formats import interval, signed
from kvab.validity import Gate


def exclusions(evidence: Evidence) -> str:
    """Return which declared configurations and repeats are missing, with the reason."""
    study = evidence.study
    said = [
        f"{arm.label}: not run on {evidence.cluster}"
        for name, arm in study.configurations.items()
        if name not in evidence.runs
    ]
    said += [
        f"{evidence.arms[name].label}: {len(found)} of {study.repeats} repeats"
        for name, found in evidence.runs.items()
        if len(found) < study.repeats
    ]
    said += [
        f"{evidence.arms[name].label} r{run.manifest.repeat}: {run.manifest.reason}"
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
    reasons = "".join(f"\n- {reason}" for reason in judged.reasons)
    return f":::{{danger}}\nThe gate is **red**; every verdict is withheld.\n{reasons}\n:::"


def whose(evidence: Evidence, reference: Evidence) -> str:
    """Return whether the page compares anything."""
    same = [
        run.manifest.files["requests.parquet"] for run in evidence.runs[evidence.study.baseline]
    ]
    published = [
        run.manifest.files["requests.parquet"] for run in reference.runs[reference.study.baseline]
    ]
    if same == published:
        return "This book was built from the published runs, so both columns are the same runs."
    return (
        f"Published: {reference.cluster}, {reference.repeats} repeats. Yours: {evidence.cluster}, "
        f"{evidence.repeats} repeats. Clusters are compared, never pooled."
    )


def reproduction(evidence: Evidence, reference: Evidence) -> str:
    """Return whether the reader's headline agrees with the published one.

    Two differences agree if their intervals overlap, and cannot be told apart otherwise said.
    """
    ours, theirs = (each.comparison.to_json()["good_share"] for each in (reference, evidence))
    if ours["ci_low"] is None or theirs["ci_low"] is None:
        verdict = "cannot be compared: one of them has no interval"
    elif ours["ci_low"] <= theirs["ci_high"] and theirs["ci_low"] <= ours["ci_high"]:
        verdict = "**agree**: their intervals overlap"
    else:
        verdict = "**differ**: their intervals do not overlap"
    return (
        f"The published difference of the good share is {signed(100 * ours['difference'], 1)} "
        f"points ({interval(ours['ci_low'], ours['ci_high'], 100)}), yours "
        f"{signed(100 * theirs['difference'], 1)} "
        f"({interval(theirs['ci_low'], theirs['ci_high'], 100)}). They {verdict}."
    )
