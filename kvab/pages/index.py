"""The first page: the answer, how it is known, and the image that stands for the book elsewhere.

Input: the evidence and its gate. Output: what the notebook shows, and a PNG of 1200 by 630 pixels.
"""

from __future__ import annotations

import io
import textwrap
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from kvab.console import counted, interval, percent, plain, signed, span
from kvab.pages.attribution import points_gained
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.outcome import RED, VERDICTS, both_arms, both_shares, counterpoint, headline
from kvab.pages.tables import Table
from kvab.pages.theme import (
    GREY,
    THEME,
    WIDTH_IN,
    Drawing,
    arm_styles,
    drawn,
    origin,
    unequal,
)

HEADLINE = {
    "good_share": ("mean",), "ttft_ms": ("mean", "p50", "p99"), "itl_ms": ("p50", "p99"),
    "latency_ms": ("mean",),
}  # fmt: skip
CARD_IN, CARD_DPI = (12, 6.3), 100
DARK = "#222222"


def answer(evidence: Evidence, judged: Gate) -> str:
    """Return the top of the book: the answer, or why it is withheld, and what kind it is."""
    if not judged.green:
        reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons[:5])
        return (
            f":::{{danger}}\n**{RED}** The runs did not test what "
            f"they claim:\n{reasons}\n\nSee [the runs](04_runs).\n:::"
        )
    kind = ""
    if evidence.simulated:
        cluster = plain(evidence.manifest.cluster["description"])
        kind = f"*These numbers are **simulated**: {cluster}; no GPU was measured.*"
    more = unequal(evidence.arms, evidence.gpus)
    return f"**{headline(evidence, judged)}**\n\n{counterpoint(evidence)} {kind}{more}"


def short_answer(evidence: Evidence, judged: Gate) -> str:
    """Return the answer in a line, for where there is room for no more."""
    if not judged.green:
        return RED
    good, slo = evidence.comparison.good, evidence.study.slo
    row, where = good.mean, "in simulation" if evidence.simulated else "measured"
    before, after, points = both_shares(row)
    return (
        f"{VERDICTS[good.verdict]}, {where}: {after} % of "
        f"requests within TTFT {slo.ttft_ms / 1000:g} s and ITL {slo.itl_ms:g} ms against "
        f"{before} % ({points} points, "
        f"{evidence.study.statistics.percent} interval "
        f"{interval(row.difference.low, row.difference.high, 100)})."
    )


@drawn("index-good-shares", lambda e: e.good_shares)
def good_shares_figure(evidence: Evidence) -> Drawing:
    """Draw the good share of each configuration: every repeat a point, with its interval."""
    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 1.25))
    styles, names = arm_styles(evidence.arms), list(evidence.arms)
    shares = evidence.good_shares
    for at, name in enumerate(reversed(names)):
        row, color = shares.loc[name], styles[name]["color"]
        low, share, high = 100 * np.array([row["low"], row["share"], row["high"]])
        axes.plot([low, high], [at, at], color=color, linewidth=2.5, alpha=0.45)
        axes.plot(
            [100 * share for share in row["repeats"]],
            [at] * len(row["repeats"]),
            linestyle="",
            marker=styles[name]["marker"],
            color=color,
        )
        axes.annotate(
            f"{share:.1f} %", (high, at), (6, 0), textcoords="offset points",
            va="center", fontsize=9, fontweight="bold", color=color,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [evidence.arms[name].label for name in reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, 100)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    slo = evidence.study.slo
    axes.set_xlabel(f"requests within TTFT {slo.ttft_ms:g} ms and ITL {slo.itl_ms:g} ms [%]")
    alt = "Dot plot of the share of good requests: " + ", ".join(
        f"{evidence.arms[name].label} {shares.loc[name, 'share']:.0%}" for name in names
    )
    return figure, good_shares_caption(evidence), alt


def good_shares_caption(evidence: Evidence) -> str:
    """Return what one factor alone brings and what both do, and what is drawn."""
    shares, arms = evidence.good_shares["share"], evidence.arms
    if evidence.missing:
        finding = " ".join(f"{arms[n].label}: {percent(s)} good." for n, s in shares.items())
    else:
        points = points_gained(evidence)
        alone = max((n for n in arms if arms[n].role == "ablation"), key=lambda n: points[n])
        finding = (
            f"By itself the stronger factor brings {signed(points[alone], 1)} points "
            f"({arms[alone].label}), both together "
            f"{signed(points[evidence.study.comparison], 1)}."
        )
    return (
        f"{finding} Share of good requests by configuration: each repeat a point, the bar the "
        f"{evidence.study.statistics.percent} workload interval."
    )


def headline_table(evidence: Evidence) -> Table:
    """Return both arms in short: good share, and centre and tail of each latency."""
    arms = evidence.study.configurations
    kind = "simulated" if evidence.simulated else evidence.manifest.kind
    return Table(
        both_arms(evidence, HEADLINE),
        f"Baseline: {arms[evidence.study.baseline].label}. "
        f"Comparison: {arms[evidence.study.comparison].label}. {kind.capitalize()}; intervals are "
        f"{evidence.study.statistics.percent} workload intervals.",
        ("",),
    )


def how_known(evidence: Evidence) -> str:
    """Return how the answer was obtained, in a paragraph."""
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


def known_limits(evidence: Evidence) -> str:
    """Return what a sceptical reader must know about this cluster's numbers."""
    if not evidence.simulated:
        return ""
    versions = {name: plain(text) for name, text in evidence.manifest.versions.items()}
    hardware = plain(evidence.manifest.cluster["hardware"])
    kv = any(arm.factors.routing == "kv" for arm in evidence.arms.values())
    ties = "; behind the KV router, ties broken at random add to that" if kv else ""
    recorded = "generated" if evidence.synthetic else "a recorded trace"
    return (
        ":::{note}\n**What is real and what is simulated.** The router is Dynamo's own "
        f"(ai-dynamo {versions['ai-dynamo']}), the workload is {recorded}, the engines are "
        f"NVIDIA's simulator (aisimulate {versions['aisimulate']}, kernel data "
        f"{versions['kernel data']} measured on {hardware}). {_costs(evidence)} The rest of the "
        "network and scheduling jitter are not in these numbers. A repeat shuffles the order "
        f"inside each burst{ties}. Nothing else varies from run to run.\n:::"
    )


def _costs(evidence: Evidence) -> str:
    """Return what a transfer and the frontend cost by the profile, and what that is worth."""
    cluster, answers = evidence.manifest.cluster, evidence.answers
    gb_per_s, ms = (cluster.get(key) for key in ("kv_transfer_gb_per_s",
                                                 "frontend_ms_per_1k_tokens"))  # fmt: skip
    moves = f"moves at {gb_per_s:g} GB/s a worker" if gb_per_s else "takes no time"
    reads = f"takes {ms:g} ms for each 1,000 prompt tokens" if ms else "takes no time"
    text = f"The KV cache {moves} and the frontend {reads}"
    return f"{text}; [other values](11_sensitivity) were replayed too." if answers else f"{text}."


def social_card(evidence: Evidence, judged: Gate) -> bytes:
    """Return the question, the answer in short and both good shares, marked if simulated."""
    study, styles = evidence.study, arm_styles(evidence.arms)
    names = [study.comparison, study.baseline]
    with mpl.rc_context({**THEME, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=CARD_IN, dpi=CARD_DPI)
        figure.text(0.06, 0.9, textwrap.fill(study.title, 40), fontsize=32, fontweight="bold",
                    color=DARK, va="top")  # fmt: skip
        text = textwrap.fill(short_answer(evidence, judged), 72)
        figure.text(0.06, 0.63, text, fontsize=20, color=DARK, va="top", linespacing=1.4)
        if judged.green:
            axes = figure.add_axes((0.36, 0.12, 0.52, 0.26))
            shares = [100 * evidence.good_shares.loc[name, "share"] for name in names]
            colors = [styles[name]["color"] for name in names]
            axes.barh(range(len(names)), shares, color=colors, height=0.6)
            for at, share in enumerate(shares):
                look: Any = {"textcoords": "offset points", "va": "center",
                             "annotation_clip": False}  # fmt: skip
                axes.annotate(f"{share:.1f} % good", (share, at), (8, 0), fontsize=18, **look)
            axes.set_yticks(range(len(names)), [evidence.arms[n].label for n in names], fontsize=18)
            axes.set(xlim=(0, 100), xticks=[])
            axes.grid(visible=False)
            axes.spines[["bottom", "left"]].set_visible(False)
        figure.text(0.06, 0.04, "kvab", fontsize=16, color=GREY)
        mark = origin(evidence) or "measured"
        figure.text(0.94, 0.04, mark, fontsize=16, color=GREY, ha="right")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        plt.close(figure)
    return buffer.getvalue()
