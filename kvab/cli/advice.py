"""What ``kvab advise`` prints."""

from __future__ import annotations

from kvab.console import interval, number, percent, signed
from kvab.runs.bounds import Advice, Change, Option
from kvab.runs.sweep import Sweep

UNITS = {
    "load": "a load of {:g}",
    "ttft_ms": "a TTFT within {:,g} ms",
    "itl_ms": "an ITL within {:g} ms",
}


def advice_lines(advice: Advice) -> list[tuple[str, str]]:
    """Return labels and values: what was judged, each configuration, and which one to take."""
    swept, arms = advice.swept, advice.swept.arms
    price = number(Sweep.declared(swept.study).gpu_dollars_per_hour, 2)
    whose = "this machine's sweep" if swept.own else "the published sweep"
    lines = [
        ("workload", f"{swept.summary.trace.name}, {advice.load:g} times its arrival speed"),
        ("cluster", f"{swept.cluster}, {whose}{', simulated' * swept.simulated}"),
        ("bounds", _bounds(advice)),
        ("price", f"{price} dollars an hour for each GPU, as study.yaml assumes"),
        *((arms[name].label, _option(option)) for name, option in advice.options.items()),
        ("advice", _recommended(advice)),
    ]
    changes = [_change(advice, change) for change in advice.changes_if]
    return lines + [("what changes it" * (not n), text) for n, text in enumerate(changes)]


def _bounds(advice: Advice) -> str:
    text = f"TTFT within {advice.asked.ttft_ms:,g} ms, ITL within {advice.asked.itl_ms:g} ms"
    if advice.judged == advice.asked:
        return text
    taken = f"{advice.judged.ttft_ms:,g} and {advice.judged.itl_ms:g} ms"
    return f"{text}; judged at {taken}, the next stricter ones that were swept"


def _option(option: Option) -> str:
    ends = "no interval: too few blocks"
    if option.ci_low is not None:
        ends = f"{percent(option.ci_low)} to {percent(option.ci_high)}"
    text = f"{percent(option.good_share)} good ({ends})"
    if option.gpu_hours_per_1000_good is not None:
        text += f", {number(option.gpu_hours_per_1000_good)} GPU-hours for 1,000 good requests"
    if option.dollars_per_million_output_tokens is not None:
        dollars = number(option.dollars_per_million_output_tokens, 2)
        text += f", {dollars} dollars for 1M good output tokens"
    return text


def _recommended(advice: Advice) -> str:
    if advice.configuration is None:
        return "none keeps any request good"
    arms, lead, study = advice.swept.arms, advice.lead, advice.swept.study
    ends = interval(lead["low"], lead["high"], 100)
    ahead = (
        f"{number(100 * lead['margin'], 1)} points ahead of {arms[lead['next']].label} "
        f"({study.statistics.percent} workload interval {ends})"
    )
    label = arms[advice.configuration].label
    if advice.within_noise:
        return f"no clear one: {label} is {ahead}, which is within noise"
    return f"{label}: {ahead}"


def _change(advice: Advice, change: Change) -> str:
    noise = ", within noise" if change.within_noise else ""
    label = advice.swept.arms[change.configuration].label
    return (
        f"at {UNITS[change.key].format(change.value)} {label} leads "
        f"({signed(100 * change.margin, 1)} points{noise})"
    )
