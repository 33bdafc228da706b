"""Numbers -> sentences: every finding that a page states is made here, from the data.

Input: the evidence. Output: Markdown.
"""

from __future__ import annotations

from kvab.console import counted, interval, number, percent, plain, signed, span
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.theme import unequal
from kvab.requests.metrics import LATENCIES, METRICS

VERDICTS = {
    "better": "Yes",
    "worse": "No",
    "no difference": "It makes no practical difference",
    "inconclusive": "These runs cannot tell",
}
RED = "No verdict: the validity gate is red."
NO_VERDICT = f"**{RED}** Why is written with [the runs](04_runs)."


def headline(evidence: Evidence, judged: Gate) -> str:
    """Return the answer in one sentence: verdict, good shares, difference and interval."""
    if not judged.green:
        return NO_VERDICT
    result, names = evidence.comparison.good, evidence.study.configurations
    row, difference = result.mean, result.mean.difference
    baseline, comparison = names[evidence.study.baseline], names[evidence.study.comparison]
    slo = evidence.study.slo
    where = "in simulation" if evidence.simulated else f"on {plain(evidence.cluster)}"
    if evidence.synthetic:
        where += " on a SYNTHETIC WORKLOAD"
    return (
        f"{VERDICTS[result.verdict]}, {where}: {comparison.phrase} kept "
        f"{percent(row.comparison)} of requests within TTFT {slo.ttft_ms / 1000:g} s and ITL "
        f"{slo.itl_ms:g} ms, {baseline.phrase} {percent(row.baseline)}: a difference of "
        f"{signed(100 * difference.value, 1)} points ({evidence.study.statistics.percent} "
        "workload interval "
        f"{interval(difference.low, difference.high, 100)}).{undecided(evidence, 'good_share')}"
    )


def undecided(evidence: Evidence, metric: str) -> str:
    """Return why a verdict is open though its interval excludes zero; nothing if it does not."""
    basis = evidence.comparison.metrics[metric].judgement
    excludes_zero = basis.difference.low > 0 or basis.difference.high < 0
    if basis.verdict != "inconclusive" or not excludes_zero:
        return ""
    if abs(basis.difference.value) <= basis.margin:
        return " The interval excludes zero, but the difference is within the practical margin."
    return (
        " The interval excludes zero, but it is one of "
        f"{len(evidence.comparison.metrics)} tested together: adjusted for that "
        f"(Holm), p is {number(basis.p_holm, 3)}."
    )


def short_answer(evidence: Evidence, judged: Gate) -> str:
    """Return the answer in a line, for where there is room for no more."""
    if not judged.green:
        return RED
    result, slo = evidence.comparison.good, evidence.study.slo
    row, difference = result.mean, result.mean.difference
    where = "in simulation" if evidence.simulated else "measured"
    return (
        f"{VERDICTS[result.verdict]}, {where}: {percent(row.comparison)} of "
        f"requests within TTFT {slo.ttft_ms / 1000:g} s and ITL {slo.itl_ms:g} ms against "
        f"{percent(row.baseline)} ({signed(100 * difference.value, 1)} points, "
        f"{evidence.study.statistics.percent} interval "
        f"{interval(difference.low, difference.high, 100)})."
    )


def answer(evidence: Evidence, judged: Gate) -> str:
    """Return the top of the book: the answer, or why it is withheld, and what kind it is."""
    if not judged.green:
        reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons[:5])
        return (
            f":::{{danger}}\n**{RED}** The runs did not test what "
            f"they claim:\n{reasons}\n\nSee [the runs](04_runs).\n:::"
        )
    more = unequal(evidence.arms, evidence.gpus)
    return f"**{headline(evidence, judged)}**\n\n{counterpoint(evidence)} {_kind(evidence)}{more}"


def counterpoint(evidence: Evidence) -> str:
    """Return what the good share hides: the mean, the tail and the typical request."""
    result = evidence.comparison
    mean, p99, itl = result.ttft.mean, result.ttft.p99, result.itl.p99
    faster = result.ttft.paired.faster.value
    gains = {"better": True, "worse": False}.get(result.good.verdict)
    most = "most requests" if faster > 0.5 else "not most requests"
    most = f"Yet {most}" if gains == (faster <= 0.5) else most.capitalize()
    return (
        f"The mean TTFT goes from {number(mean.baseline)} to {number(mean.comparison)} ms, "
        f"its p99 from {number(p99.baseline)} to {number(p99.comparison)} ms and the p99 ITL "
        f"from {number(itl.baseline)} to {number(itl.comparison)} ms. {most}: "
        f"{percent(faster, 0)} get their first token sooner."
    )


def _kind(evidence: Evidence) -> str:
    if not evidence.simulated:
        return ""
    return (
        f"*These numbers are **simulated**: {plain(evidence.manifest.cluster['description'])}; "
        "no GPU was measured.*"
    )


def known_limits(evidence: Evidence) -> str:
    """Return what a sceptical reader must know about this cluster's numbers."""
    if not evidence.simulated:
        return ""
    versions = {name: plain(text) for name, text in evidence.manifest.versions.items()}
    hardware = plain(evidence.manifest.cluster["hardware"])
    kv = any(arm.factors.routing == "kv" for arm in evidence.arms.values())
    ties = "; behind the KV router, ties broken at random add to that" if kv else ""
    recorded = "made up" if evidence.synthetic else "a recorded trace"
    return (
        ":::{note}\n**What is real and what is simulated.** The router is Dynamo's own "
        f"(ai-dynamo {versions['ai-dynamo']}), the workload is {recorded}, the engines are "
        f"NVIDIA's simulator (aisimulate {versions['aisimulate']}, kernel data "
        f"{versions['kernel data']} measured on {hardware}). Network, frontend, KV transfer and "
        "scheduling jitter of a real cluster are not in these numbers. A repeat shuffles the order "
        f"inside each burst{ties}. Nothing else "
        "varies from run to run.\n:::"
    )


def how_known(evidence: Evidence) -> str:
    """Return how the answer was found, in a paragraph."""
    study, trace = evidence.study, evidence.manifest.trace
    last_s = evidence.replayed["arrival_ms"].max() / 1000
    count, gpus = len(evidence.arms), sorted(set(evidence.gpus.values()))
    same = f"the same {counted(gpus[0], 'GPU')}"
    filled = same if len(gpus) == 1 else f"{gpus[0]} to {gpus[-1]} GPUs"
    return (
        f"Each of the {count} configurations fills {filled} and replays the same "
        f"{counted(trace.rows, 'request')}, {span(last_s)} of {plain(trace.name)}, each "
        "when the trace says. Requests are paired on the trace row, the interval beside each "
        "difference respects that bursts of requests depend on each other, and a gate checks that "
        f"every run tested what it claims. {study.about} The numbers here are computed when this "
        "book is built, from the runs listed in [](04_runs)."
    )


def outcome(evidence: Evidence, judged: Gate) -> str:
    """Return the verdict on each metric, with the rule."""
    if not judged.green:
        return NO_VERDICT
    result, study = evidence.comparison, evidence.study
    lines, notes = [], []
    for key, of in result.metrics.items():
        margin = study.margins[key]
        allowed = (
            f"{number(100 * margin, 1)} points"
            if key == "good_share"
            else f"{number(100 * margin, 0)} % of the baseline"
        )
        difference = METRICS[key].factor * of.mean.difference.value
        if reason := undecided(evidence, key):
            notes.append(f"{METRICS[key].label}:{reason}")
        lines.append(
            f"| {METRICS[key].label} | **{of.verdict}** | {signed(difference)} "
            f"{'points' if key == 'good_share' else 'ms'} | {allowed} |"
        )
    told = "".join(f"\n\n{note}" for note in [*notes, *result.notes])
    return (
        "| metric | verdict | difference of the mean | margin declared beforehand |\n"
        "|---|---|---|---|\n" + "\n".join(lines) + told + "\n\nThe rule stands in [](methods)."
    )


def requests(evidence: Evidence) -> str:
    """Return what happens to single requests: who is faster, and the four kinds of pairs."""
    result, pairs = evidence.comparison, evidence.comparison.good_table
    ttft, itl, latency = (of.paired for of in (result.ttft, result.itl, result.latency))
    return (
        f"Pair by pair, {percent(ttft.faster.value)} of requests have a lower TTFT, "
        f"{percent(itl.faster.value)} a lower ITL and {percent(latency.faster.value)} a lower "
        f"latency under the comparison; the median paired TTFT difference (Hodges-Lehmann) is "
        f"{signed(ttft.hodges_lehmann.value)} ms. Good under the comparison alone: "
        f"{counted(pairs.only_comparison, 'request')}, under the baseline alone: "
        f"{pairs.only_baseline:,}, under both: {pairs.both:,}, under neither: "
        f"{pairs.neither:,} (repeats pooled)."
    )


def losses(evidence: Evidence) -> str:
    """Return where the comparison is worse, as plainly as where it is better."""
    groups, result = evidence.groups, evidence.comparison
    slower = groups[groups["ttft_ms_faster_share"] < 0.5]
    said = []
    for by, rows in slower.groupby("by", sort=False):
        each = ", ".join(
            f"{percent(row.ttft_ms_faster_share, 0)} at {row.group} "
            f"({signed(row.ttft_ms_median_difference)} ms)"
            for row in rows.itertuples()
        )
        said.append(f"TTFT by {by}: lower for only {each}")
    for key in LATENCIES:
        for statistic, row in result.metrics[key].statistics.items():
            if row.difference.low > 0:
                said.append(
                    f"the {statistic} {METRICS[key].short} is {signed(row.difference.value)} ms"
                )
    only = result.good_table.only_baseline
    if only:
        said.append(f"late, though the baseline serves them in time: {counted(only, 'request')}")
    if not said:
        return "Where the comparison loses: nowhere measured."
    lines = "\n".join(f"- {each}" for each in said)
    return f"Where the comparison loses (in brackets median paired differences):\n\n{lines}"


def lesson(evidence: Evidence, judged: Gate) -> str:
    """Return what the outcome page teaches."""
    if not judged.green:
        return NO_VERDICT
    return f"{headline(evidence, judged)} {counterpoint(evidence)}\n\n{losses(evidence)}"
