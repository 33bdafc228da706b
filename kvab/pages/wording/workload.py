"""What the replayed requests are like, in sentences: bursts, lengths, what repeats.

Input: the evidence. Output: Markdown.
"""

from __future__ import annotations

from kvab.console import counted, number, percent
from kvab.pages.evidence import Evidence
from kvab.pages.validity import REUSE_WORTH_SHARE

BURSTY_SHARE = 0.5  # of the requests that share their timestamp with another
LONG_PROMPTS = 4  # times the tokens of the answers


def _together(evidence: Evidence) -> int:
    """Return how many of the replayed requests share their timestamp with another."""
    return int(evidence.replayed["arrival_ms"].duplicated(keep=False).sum())


def _bursty(evidence: Evidence) -> bool:
    return _together(evidence) > BURSTY_SHARE * len(evidence.replayed)


def clock(evidence: Evidence) -> str:
    """Return whether requests come in bursts, and what that means for statistics and repeats."""
    together, total = _together(evidence), len(evidence.replayed)
    if _bursty(evidence):
        return (
            f"The clock of the trace is coarse: {percent(together / total, 0)} of the requests "
            "share their timestamp with others, and the order inside such a burst is not "
            "recorded. A burst is therefore the smallest unit that the statistics resample, and a "
            "repeat of a simulated run is a shuffle inside each burst."
        )
    alone = "no two of them share a timestamp"
    some = f"{together:,} of {total:,} share their timestamp with another"
    return (
        f"Requests come {'mostly ' if together else ''}one by one: {some if together else alone}. "
        "A burst, all requests of one timestamp, is the smallest unit that the statistics "
        "resample, and a repeat of a simulated run is a shuffle inside bursts, which changes "
        f"{'little' if together else 'nothing'} here."
    )


def _ratio(evidence: Evidence) -> float:
    rows = evidence.replayed
    return float(rows["input_tokens"].sum() / rows["output_tokens"].sum())


def lengths(evidence: Evidence) -> str:
    """Return what the lengths mean for the two latencies, and how many answers have no pace."""
    if _ratio(evidence) >= LONG_PROMPTS:
        said = (
            "Prompts are long against answers, so the time to first token is dominated by prefill "
            "work, and prefill work is what a cached prefix saves."
        )
    else:
        said = (
            "Answers hold a good part of all tokens, so the pace of decoding weighs as much as the "
            "time to first token."
        )
    if one := int((evidence.replayed["output_tokens"] == 1).sum()):
        said += (
            f" {counted(one, 'request')} with one answer token can never be *good* by AIPerf's "
            "rule: there is no inter-token latency."
        )
    return said


def lesson(evidence: Evidence) -> str:
    """Return what the workload page teaches."""
    rows, ratio = evidence.replayed, _ratio(evidence)
    repeated = rows["reusable_tokens"].sum() / rows["input_tokens"].sum()
    comes = "in bursts" if _bursty(evidence) else "mostly one by one"
    worth = "is worth something" if repeated >= REUSE_WORTH_SHARE else "saves next to nothing"
    return (
        f"Requests come {comes}, prompts hold {number(ratio, 0 if ratio >= 10 else 1)} times as "
        f"many tokens as answers, and {percent(repeated, 0)} of prompt tokens repeat the beginning "
        f"of an earlier prompt: finding a cached prefix {worth}."
    )
