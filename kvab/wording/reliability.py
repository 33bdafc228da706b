"""What survives a fault, in sentences whose numbers come from the campaign.

Input: the campaign. Output: Markdown.
"""

from __future__ import annotations

from kvab.evidence.reliability import WRONG, Campaign, Fuzzing
from kvab.formats import number, unless_missing

MISSING = (
    "No fault campaign is published here, so nothing is claimed of faults. `make faults` carries "
    "one out and writes `book/published/reliability.json`."
)
SAID = {
    "lost": "runs lost",
    "duplicated": "runs made twice",
    "altered": "results altered",
    "locked": "runs left locked",
    "processes": "processes left running",
    "objects": "objects left on a cluster",
    "leftovers": "files left over",
    "crashed": "tracebacks",
}


@unless_missing(MISSING)
def answer(campaign: Campaign) -> str:
    """Return how many faults were brought about and what went wrong of them."""
    kinds = len({each.kind for each in campaign.faults})
    known = f"**{campaign.injected:,} faults, {campaign.of('kill'):,} of them kills, on {kinds} "
    known += "kinds of cluster: "
    totals = {name: sum(getattr(each, name) for each in campaign.faults) for name in WRONG}
    wrong = [f"{count} {SAID[name]}" for name, count in totals.items() if count]
    if wrong:
        return f"{known}{', '.join(wrong)}.** The target of each is zero."
    nothing = ", ".join(SAID[name] for name in WRONG)
    return f"{known}nothing went wrong.** Counted were {nothing}; each is zero."


@unless_missing("")
def setup(campaign: Campaign) -> str:
    """Return what is real in the campaign, what is not, and what was left out."""
    text = (
        "Every start is a process of its own that takes the five steps of a run on a small "
        "made-up trace, and every fault ends in a complete run that is checked: against its "
        "checksums, and against an undisturbed run. On `simulated` both must be equal to the byte, "
        "elsewhere in rows, tokens, errors and counts. `kubernetes` is the emulated cluster of the "
        f"tests; its limits, and the time for which its API server is away, are those of a real "
        f"one divided by {number(campaign.time_scale, 0)}."
    )
    left_out = "\n".join(f"- {each.fault} on {each.kind}: {each.why}" for each in campaign.skipped)
    return text + (f"\n\nLeft out:\n\n{left_out}" if left_out else "")


@unless_missing("No broken inputs were fed to the readers here: `make fuzz` does it.")
def inputs(fuzzing: Fuzzing) -> str:
    """Return how many broken inputs the readers were fed, and what came of them."""
    came = f"{fuzzing.crashed:,} of them" if fuzzing.crashed else "not one of them"
    return (
        f"**{fuzzing.inputs:,} broken inputs for {len(fuzzing.readers)} readers: {came} made a "
        "reader crash.** They "
        "are mutations of real files, guided by the branches that they reach (atheris)."
    )


@unless_missing("Nothing yet: without a campaign there is nothing to learn from.")
def learned(campaign: Campaign) -> str:
    """Return what to do after a fault, and what is not known."""
    refused = sum(each.refused for each in campaign.faults)
    completed = sum(each.completed for each in campaign.faults)
    first = (
        "- After any of these faults the same command is enough: nothing is cleaned up by hand. "
        f"{completed:,} runs were completed so."
        if not campaign.wrong
        else f"- {campaign.wrong:,} things went wrong; until they are mended, check a run by hand "
        "after the faults that the table names."
    )
    return (
        f"{first}\n- What cannot go on says so in one line and leaves no half-written run: "
        f"{refused:,} starts ended this way.\n- Power cuts, which lose what a disk had not yet "
        "written, and two machines that share one cluster were not tried."
    )
