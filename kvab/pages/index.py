"""The first page: the answer, what would turn it around, both set-ups, and the book's image.

Input: the evidence, whose runs carry their ``deploy.yaml``, its gate and the sweep of load. Output:
what the notebook shows, and a PNG of 1200 by 630 pixels.
"""

from __future__ import annotations

import io
import textwrap

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kvab.console import counted, number, percent, plain, signed, span
from kvab.pages.attribution import steps
from kvab.pages.capacity import second_headline
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.outcome import RED, headline, tail
from kvab.pages.printed import where, with_ends
from kvab.pages.robustness import without_reuse
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
from kvab.runs.sweep import Sweep
from kvab.study.topology import Topology, WorkerGroup

Point = tuple[float, float]

INK, SHADED = "#333333", "#8c8c8c"
GAP, FRONTEND, ROWS, HEIGHT = 0.5, (2.6, 5.6), (8.6, 13), 15.6  # of lengths, a GPU's side is 1
ROUTES = {"round_robin": ("round-robin", "each worker in turn"),
          "kv": ("KV router", "most of the prompt cached, least load")}  # fmt: skip
FILLED = {"aggregated": 0.5, "prefill": 1, "decode": 0}  # of a GPU's square
CARD_IN, CARD_DPI = (12, 6.3), 100
DARK = "#222222"


# --- the answer --------------------------------------------------------------------------------


def answer(evidence: Evidence, judged: Gate) -> str:
    """Return the top of the book: the answer, or why it is withheld, and what kind it is."""
    if not judged.green:
        reasons = "".join(f"\n- {plain(reason)}" for reason in judged.reasons[:5])
        return (
            f":::{{danger}}\n**{RED}** The runs did not test what "
            f"they claim:\n{reasons}\n\nSee [the runs](02_setup).\n:::"
        )
    kind = ""
    if evidence.simulated:
        cluster = plain(evidence.manifest.cluster["description"])
        kind = f" *These numbers are **simulated**: {cluster}; no GPU was measured.*"
    return f"**{headline(evidence, judged)}**{kind}{unequal(evidence.arms, evidence.gpus)}"


def short_answer(evidence: Evidence, judged: Gate) -> str:
    """Return the answer without Markdown, for where the book is shown elsewhere."""
    return headline(evidence, judged).replace("\\", "") if judged.green else RED


def question(evidence: Evidence) -> str:
    """Return what a good request and both arms are, and who chose question and bounds."""
    study, slo = evidence.study, evidence.study.slo
    source = f" ([{study.source.name}]({study.source.url}))" if study.source else ""
    about = f" {study.about.rstrip('.')}{source}." if study.about else ""
    return (
        f"A request within both bounds is **good**: its TTFT (time to first token) is at most "
        f"{slo.ttft_ms / 1000:g} s and its ITL (inter-token latency, the mean time between tokens) "
        f"at most {slo.itl_ms:g} ms.{about} Below, the **baseline** is "
        f"{study.configurations[study.baseline].phrase}, the **comparison** "
        f"{study.configurations[study.comparison].phrase}."
    )


# --- what turns it around ------------------------------------------------------------------------


def _by_itl(evidence: Evidence) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Return, at the study's TTFT bound and by ITL bound: points, whether each arm leads."""
    rows = evidence.by_itl_bound
    return 100 * rows["difference"], rows["band_low"] > 0, rows["band_high"] < 0


def by_bounds(evidence: Evidence, judged: Gate) -> str:
    """Return at which ITL bounds either arm leads, and by how much at most."""
    if not judged.green:
        return ""
    points, wins, loses = _by_itl(evidence)
    leads = []
    for name, mask in (("comparison", wins), ("baseline", loses)):
        if mask.any():
            most = points[mask].abs().idxmax()
            leads.append(
                f"the {name} is ahead at {where(points.index, mask)} ms (most at {most:g} ms, "
                f"{signed(points[most], 1)} points)"
            )
    decides = "**the ITL bound decides who leads**" if len(leads) == 2 else (
        "no ITL bound turns the answer around"
    )  # fmt: skip
    return (
        f"**[Which bounds?](13_bounds)** With TTFT within {evidence.study.slo.ttft_ms / 1000:g}"
        f" s {decides}: {', '.join(leads) or 'neither is ahead at any on the grid'}."
    )


def _by_load(swept: Sweep) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Return, at the study's bounds and by load: points, whether each arm leads."""
    wide = swept.curves.shares.pivot(index="load", columns="configuration")
    other, own = (wide.xs(name, axis=1, level="configuration") for name in swept.study.main)
    points = 100 * (own["share"] - other["share"])
    return points, own["low"] > other["high"], own["high"] < other["low"]


def by_load(evidence: Evidence, judged: Gate, swept: Sweep | None) -> str:
    """Return how much load is carried, how the difference depends on it, and of which trace."""
    if swept is None or not judged.green:
        return ""
    points = _by_load(swept)[0]
    least, most = points.idxmin(), points.idxmax()
    of, trace = "", swept.summary.trace
    if trace.sha256 != evidence.manifest.trace.sha256:
        of = f" The loads are those of {plain(trace.name)}, which is not what the runs replayed."
    return (
        f"{second_headline(swept, judged)} At the same load the difference is "
        f"{signed(points[least], 1)} points (at {least:g} times the trace's speed) to "
        f"{signed(points[most], 1)} (at {most:g} times).{_other_layouts(swept)}{of}"
    )


def _other_layouts(swept: Sweep) -> str:
    """Return what the other configurations keep good with their workers laid out best."""
    rows = swept.layouts.query("load == 1 and configuration != @swept.study.comparison")
    if rows.empty or rows["difference"].isna().all():  # nothing deployed among them
        return ""
    _, name, layout = best = rows["share"].idxmax()
    ends = rows.loc[best, ["difference", "difference_low", "difference_high"]]
    return (
        f" The best other layout, chosen after the fact, is {swept.arms[name].label} as {layout}: "
        f"{with_ends('good_share', *ends, gap=' ')} points against the comparison."
    )


def by_factor(evidence: Evidence, judged: Gate) -> str:
    """Return what each factor brings by itself, and to which requests."""
    if not judged.green:
        return ""
    return f"**[Routing or split?](06_attribution)** {steps(evidence)}. {tail(evidence)}"


def advice(evidence: Evidence, judged: Gate, swept: Sweep | None) -> str:
    """Return three cards: for whom the comparison pays, for whom not, and who should measure."""
    if not judged.green:
        return ""
    deploy: list[str] = []
    keep: list[str] = []
    within = f"with TTFT within {evidence.study.slo.ttft_ms / 1000:g} s, your ITL bound is {{}} ms"
    tried = [(within, _by_itl(evidence))]
    tried += [("your load is {} times the trace's", _by_load(swept))] if swept else []
    for text, (points, wins, loses) in tried:
        for clauses, mask in ((deploy, wins), (keep, loses)):
            if mask.any():
                ends = dict.fromkeys(signed(end(points[mask]), 1) for end in (min, max))
                at = text.format(where(points.index, mask))
                clauses.append(f"{at} ({' to '.join(ends)} points).")
    faster = evidence.comparison.ttft.paired.faster.value
    (keep if faster < 0.5 else deploy).append(
        "the typical request matters more to you than the slowest: "
        f"{percent(faster, 0)} get their first token sooner."
    )
    repeated = percent(evidence.reusable_share, 0)
    measure = [
        f"your prompts repeat less: here {repeated} of prompt tokens begin like an earlier prompt."
        f"{without_reuse(evidence.answers)}",
        "you serve another model, or on other GPUs or networks: [run it there](reproduce).",
    ]
    if evidence.simulated:
        measure.insert(0, "you need exact times: [no GPU was measured here](12_hardware).")
    return _cards({"Yes, if": deploy, "Rather not, if": keep, "Measure first, if": measure})


def _cards(clauses: dict[str, list[str]]) -> str:
    cards = "\n".join(
        f":::{{grid-item-card}} {title}\n"
        + ("\n".join(f"- {clause}" for clause in of) or "Nowhere in what was tried.")
        + "\n:::"
        for title, of in clauses.items()
    )
    return f"::::{{grid}} 1 1 3 3\n:gutter: 2\n\n{cards}\n::::"


# --- both set-ups -----------------------------------------------------------------------------


def _both(evidence: Evidence) -> dict[str, Topology]:
    """Return what baseline and comparison deploy."""
    return {name: evidence.topologies[name] for name in evidence.study.main}


def _table(evidence: Evidence) -> pd.DataFrame:
    """Return the number of workers of each role, by configuration."""
    workers = {name: {role: group.replicas for role, group in topology.groups.items()}
               for name, topology in _both(evidence).items()}  # fmt: skip
    return pd.DataFrame(workers).T.rename_axis("configuration")


@drawn("index-architectures", _table, runs=False,
       source=lambda *_: "Source: deploy.yaml of the runs.")  # fmt: skip
def architectures_figure(evidence: Evidence) -> Drawing:
    """Draw baseline and comparison: the frontend, every worker with its GPUs, a request's way."""
    both, styles = _both(evidence), arm_styles(evidence.arms)
    width = max(_width(group) for topology in both.values() for group in topology.groups.values())
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.1))
    for axes, (name, topology) in zip(panels, both.items(), strict=True):
        axes.set(xlim=(0, width), ylim=(HEIGHT, 0), xticks=[], yticks=[])
        axes.axis("off")
        axes.set_title(evidence.arms[name].label)
        _draw(axes, topology, styles[name]["color"])
    baseline, comparison = (" and ".join(map(_workers, topology.groups, topology.groups.values()))
                            for topology in both.values())  # fmt: skip
    gpus = {topology.gpus for topology in both.values()}
    fill = f"the same {counted(gpus.pop(), 'GPU')}" if len(gpus) == 1 else "unequal hardware"
    caption = (
        f"Both fill {fill}: the baseline with {baseline}, the comparison with {comparison}. A "
        "square is a GPU, filled for prefill, empty for decode. Bold arrows are one request's way."
    )
    alt = "From the frontend requests go down to the workers. " + " ".join(
        f"{evidence.arms[name].label}: {topology.describe()}" for name, topology in both.items()
    )
    return figure, caption, alt


def _workers(role: str, group: WorkerGroup) -> str:
    return counted(group.replicas, f"{role} worker")


def _width(group: WorkerGroup) -> float:
    return group.replicas * (group.gpus_per_worker + GAP) + GAP


def _draw(axes: Axes, topology: Topology, color: str) -> None:
    """Draw one configuration from the request downwards."""
    middle = axes.get_xlim()[1] / 2
    top, bottom = FRONTEND
    route, criterion = ROUTES[topology.router]
    axes.text(middle, 0.5, "request", ha="center", va="center")
    _arrow(axes, (middle, 1.1), (middle, top), color)
    axes.add_patch(Rectangle((middle - 7.5, top), 15, bottom - top, fill=False, edgecolor=INK))
    axes.text(middle, top + 0.9, f"frontend, {route}", ha="center", va="center", weight="bold")
    axes.text(middle, top + 2.1, criterion, ha="center", va="center", fontsize=8)
    came = (middle, bottom)
    for n, (role, group) in enumerate(topology.groups.items()):
        y = ROWS[n - len(topology.groups)]
        middles = _row(axes, role, group, y)
        chosen = middles[len(middles) * 2 // 3]
        for x in () if n else middles:
            axes.plot([came[0], x], [came[1], y], color=SHADED, linewidth=0.7)
        _arrow(axes, came, (chosen, y - 0.1), color, "--" if n else "-")
        if n:
            axes.text(came[0] + 0.5, (came[1] + y) / 2, "KV transfer", va="center", fontsize=8.5)
        came = (chosen, y + 1.2)


def _row(axes: Axes, role: str, group: WorkerGroup, y: float) -> list[float]:
    """Draw the workers of one role, a square for each GPU; return the middle of each worker."""
    size, left = group.gpus_per_worker, (axes.get_xlim()[1] - _width(group)) / 2 + GAP
    starts = [left + worker * (size + GAP) for worker in range(group.replicas)]
    for start in starts:
        axes.add_patch(Rectangle((start, y), size, FILLED[role], color=SHADED, linewidth=0))
        for gpu in range(size):
            axes.add_patch(Rectangle((start + gpu, y), 1, 1, fill=False, edgecolor=INK))
    label = f"{_workers(role, group)} of {counted(size, 'GPU')}"
    axes.text(left, y + 1.9, label, va="center", fontsize=8.5)
    return [start + size / 2 for start in starts]


def _arrow(axes: Axes, start: Point, end: Point, color: str, line: str = "-") -> None:
    axes.annotate("", end, start, arrowprops={
        "arrowstyle": "-|>", "color": color, "linewidth": 2, "linestyle": line,
        "shrinkA": 0, "shrinkB": 0,
    })  # fmt: skip


# --- how it is known ---------------------------------------------------------------------------


def how_known(evidence: Evidence) -> str:
    """Return what was replayed, and on what."""
    trace, rows = evidence.manifest.trace, evidence.replayed
    last_s = rows["arrival_ms"].max() / 1000
    prompt, output = (number(rows[f"{of}_tokens"].mean(), 0) for of in ("input", "output"))
    count, gpus = len(evidence.arms), sorted(set(evidence.gpus.values()))
    same = f"the same {counted(gpus[0], 'GPU')}"
    filled = same if len(gpus) == 1 else f"{gpus[0]} to {gpus[-1]} GPUs"
    return (
        f"Each of the {count} configurations fills {filled} and replays the same "
        f"{counted(trace.rows, 'request')}, {span(last_s)} of {plain(trace.name)}, each "
        f"when the trace says: {number(trace.rows / last_s, 1)} requests a second, of {prompt} "
        f"prompt and {output} answer tokens on average."
    )


def known_limits(evidence: Evidence) -> str:
    """Return what is real and what is simulated; nothing of runs that are not."""
    if not evidence.simulated:
        return ""
    versions = {name: plain(text) for name, text in evidence.manifest.versions.items()}
    cluster = evidence.manifest.cluster
    gb_per_s, ms = (cluster.get(key) for key in ("kv_transfer_gb_per_s",
                                                 "frontend_ms_per_1k_tokens"))  # fmt: skip
    moves = f"moves at {gb_per_s:g} GB/s a worker" if gb_per_s else "takes no time"
    reads = f"takes {ms:g} ms for each 1,000 prompt tokens" if ms else "takes no time"
    others = " ([other values](07_robustness))" if evidence.answers else ""
    kv = any(arm.factors.routing == "kv" for arm in evidence.arms.values())
    ties = "; behind the KV router, ties broken at random add to that" if kv else ""
    return (
        "**What is real and what is simulated.** The router is Dynamo's own (ai-dynamo "
        f"{versions['ai-dynamo']}) and the workload is "
        f"{'generated' if evidence.synthetic else 'a recorded trace'}. The engines are NVIDIA's "
        f"simulator (aisimulate {versions['aisimulate']}, kernel data {versions['kernel data']} "
        f"measured on {plain(cluster['hardware'])}). The KV cache {moves} and the frontend "
        f"{reads}{others}; the rest of the network and scheduling jitter are left out. A repeat "
        f"shuffles the order inside each burst{ties}."
    )


def social_card(evidence: Evidence, judged: Gate) -> bytes:
    """Return the question, the answer and both good shares, marked if simulated."""
    study, styles = evidence.study, arm_styles(evidence.arms)
    with mpl.rc_context({**THEME, "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=CARD_IN, dpi=CARD_DPI)
        figure.text(0.06, 0.93, textwrap.fill(study.title, 42), fontsize=30, fontweight="bold",
                    color=DARK, va="top")  # fmt: skip
        text = textwrap.fill(short_answer(evidence, judged), 72)
        figure.text(0.06, 0.69, text, fontsize=20, color=DARK, va="top", linespacing=1.4)
        if judged.green:
            axes = figure.add_axes((0.36, 0.13, 0.5, 0.24))
            for name in reversed(study.main):
                share = 100 * evidence.pooled.loc[name, "good.share"]
                bar = axes.barh(evidence.arms[name].label, share, color=styles[name]["color"])
                axes.bar_label(bar, [f"{share:.1f} % good"], padding=8, fontsize=18)
            axes.tick_params(axis="y", labelsize=18)
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
