"""Page 01: what the requests are like: bursts, lengths, what repeats.

Input: the evidence; nothing of it is simulated. Output: figures, tables and sentences, in the order
of the page.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import EngFormatter

from kvab.console import counted, number, percent
from kvab.pages.evidence import Evidence
from kvab.pages.gate import REUSE_WORTH_SHARE
from kvab.pages.tables import Table
from kvab.pages.theme import WIDTH_IN, Drawing, drawn
from kvab.trace.describe import describe_rows

BURSTY_SHARE = 0.5  # of the requests that share their timestamp with another
LONG_PROMPTS = 4  # times the tokens of the answers
LINE, BARS = "#333333", "#8c8c8c"


def _prompt_tokens_an_answer_token(rows: pd.DataFrame) -> float:
    return float(rows["input_tokens"].sum() / rows["output_tokens"].sum())


def _repeated_share(rows: pd.DataFrame) -> float:
    """Return the share of prompt tokens that repeat the beginning of an earlier prompt."""
    return float(rows["reusable_tokens"].sum() / rows["input_tokens"].sum())


def _times(ratio: float) -> str:
    return f"{number(ratio, 0 if ratio >= 10 else 1)} times as many tokens as answers"


def _together(evidence: Evidence) -> int:
    """Return how many of the replayed requests share their timestamp with another."""
    return int(evidence.replayed["arrival_ms"].duplicated(keep=False).sum())


def _bursty(evidence: Evidence) -> bool:
    return _together(evidence) > BURSTY_SHARE * len(evidence.replayed)


def description_table(evidence: Evidence) -> Table:
    """Return the description of the trace."""
    description, trace = evidence.workload.description, evidence.manifest.trace
    lines = describe_rows({**description, "sha256": description["sha256"][:16] + "…"})
    caption = (
        f"The whole trace; replayed were the first {trace.rows:,} of its "
        f"{counted(trace.total_rows, 'request')}."
        if trace.rows < trace.total_rows
        else ""
    )
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), caption, ("quantity",))


def _per_tick(evidence: Evidence) -> pd.DataFrame:
    counts = evidence.workload.table["arrival_ms"].value_counts().sort_index()
    return counts.rename("requests").reset_index()


@drawn("workload-arrivals", _per_tick, runs=False)
def arrivals_figure(evidence: Evidence) -> Drawing:
    """Draw requests a minute along the trace, and how many arrive at one tick of its clock."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH_IN, 2.6), width_ratios=[2, 1])
    arrival_ms, trace = evidence.workload.table["arrival_ms"], evidence.workload.description
    per_minute = (arrival_ms // 60_000).value_counts().sort_index()
    left.step(per_minute.index, per_minute, where="mid", color=LINE, linewidth=1.2)
    left.set(xlabel="minute of the trace", ylabel="requests a minute", ylim=(0, None))
    bursts = arrival_ms.value_counts().value_counts().sort_index()
    right.bar(bursts.index, bursts, color=BARS, width=0.8)
    right.set(xlabel="requests at one tick", ylabel="ticks")
    caption = (
        f"{counted(trace['rows'], 'request')} at "
        f"{counted(trace['distinct_timestamps'], 'timestamp')}, up to {trace['largest_burst']} at "
        "one. Left: requests a minute along the trace. Right: how many requests come at one tick "
        "of its clock."
    )
    alt = (
        f"Left: requests a minute between {per_minute.min()} and {per_minute.max()} over "
        f"{len(per_minute)} minutes. Right: histogram of burst sizes from {bursts.index.min()} "
        f"to {bursts.index.max()}."
    )
    return figure, caption, alt


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


@drawn("workload-lengths", lambda e: e.workload.table, runs=False)
def lengths_figure(evidence: Evidence) -> Drawing:
    """Distributions of prompt and answer lengths, and of the reusable part of prompts."""
    import seaborn as sns  # imports for seconds, which other pages need not wait for

    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.5))
    table = evidence.workload.table
    shares = 100 * table["reusable_tokens"] / table["input_tokens"]
    shown = (
        (table["input_tokens"], "prompt tokens", True),
        (table["output_tokens"], "answer tokens", True),
        (shares, "prompt seen before [%]", False),
    )
    for axes, (values, label, log) in zip(panels, shown, strict=True):
        sns.histplot(x=values, ax=axes, log_scale=log, bins=40, color=BARS, edgecolor="none")
        axes.set(xlabel=label + (" [log scale]" if log else ""), ylabel="")
        if log:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("requests")
    caption = (
        f"Prompts hold {_times(_prompt_tokens_an_answer_token(table))}, "
        f"and {percent(_repeated_share(table), 0)} of prompt tokens had been seen before as a "
        "prefix. Distributions of prompt length, answer length and the share of each prompt that "
        "an earlier prompt began with."
    )
    alt = (
        f"Histograms: prompts of median {table['input_tokens'].median():,.0f} tokens, answers of "
        f"median {table['output_tokens'].median():,.0f}, and the share of each prompt that an "
        f"earlier prompt began with, median {shares.median():.0f} per cent."
    )
    return figure, caption, alt


def lengths(evidence: Evidence) -> str:
    """Return what the lengths mean for the two latencies, and how many answers have no pace."""
    rows = evidence.replayed
    text = (
        "Prompts are long against answers, so the time to first token is dominated by prefill "
        "work, and prefill work is what a cached prefix saves."
        if _prompt_tokens_an_answer_token(rows) >= LONG_PROMPTS
        else "Answers hold a good part of all tokens, so the pace of decoding weighs as much as "
        "the time to first token."
    )
    if one := int((rows["output_tokens"] == 1).sum()):
        text += (
            f" {counted(one, 'request')} with one answer token can never be *good* by AIPerf's "
            "rule: there is no inter-token latency."
        )
    return text


def lesson(evidence: Evidence) -> str:
    """Return what the workload page teaches."""
    rows = evidence.replayed
    repeated = _repeated_share(rows)
    comes = "in bursts" if _bursty(evidence) else "mostly one by one"
    worth = "is worth something" if repeated >= REUSE_WORTH_SHARE else "saves next to nothing"
    return (
        f"Requests come {comes}, prompts hold {_times(_prompt_tokens_an_answer_token(rows))}, and "
        f"{percent(repeated, 0)} of prompt tokens repeat the beginning of an earlier prompt: "
        f"finding a cached prefix {worth}."
    )
