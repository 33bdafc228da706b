"""Page 06: why requests miss, where their time goes, and which factor brings what.

Input: the evidence and its gate. Output: what the notebook shows; the figure of misses stands on
the first page too.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvab.console import counted, percent, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import Gate
from kvab.pages.outcome import NO_VERDICT
from kvab.pages.printed import Columns, Table, by_configuration, quantity, with_ends
from kvab.pages.theme import RULE, WIDTH_IN, Drawing, arm_styles, drawn, legend_below
from kvab.stats.attribution import BOTH, FAILED, GOOD, KEPT, LATE, ONE_TOKEN, SLOW

LOOKS = {
    GOOD: ("#d9d9d9", "", "#222222"),
    LATE: ("#E69F00", "", "#222222"),
    SLOW: ("#56B4E9", "//", "#222222"),
    BOTH: ("#5D3A9B", r"\\", "#ffffff"),
    ONE_TOKEN: ("#8c8c8c", "xx", "#222222"),
    FAILED: ("#222222", "", "#ffffff"),
}
"""Colour, hatch and colour of the number of each kind of request."""
NARROW = 4.0  # per cent: a part of a bar without room for its number
PART_NAMES = {
    "queue_ms": "waiting",
    "prefill_ms": "prefill",
    "transfer_ms": "KV transfer",
    "first_decode_ms": "first decode",
}
NOT_RECORDED = "Only a simulation records when a worker admits a request and has read it."


def steps(evidence: Evidence) -> str:
    """Return what routing and split bring by themselves and together; else what each brings."""
    arms, study = evidence.arms, evidence.study
    shares = (100 * evidence.pooled["good.share"]).round(1)
    points = (shares - shares[study.baseline]).drop(study.baseline)
    gained = {str(name): signed(value, 1) for name, value in points.items()}
    old, new = arms[study.baseline].factors, arms[study.comparison].factors
    if evidence.missing or old.split == new.split or old.routing == new.routing:
        texts = (f"{arms[name].label} {text}" for name, text in gained.items())
        return f"Against the baseline, in points of good requests: {', '.join(texts)}"
    routing, split = (
        next(gained[name] for name, arm in arms.items()
             if arm.factors == old.model_copy(update={factor: getattr(new, factor)}))
        for factor in ("routing", "split")
    )  # fmt: skip
    return (
        f"Routing by itself brings {routing} points of good requests, the split by itself "
        f"{split}, **both together {gained[study.comparison]}**"
    )


@drawn("attribution-misses", lambda e: e.misses.rename_axis("configuration"))
def misses_figure(evidence: Evidence) -> Drawing:
    """Draw what becomes of requests: a bar for each configuration, a part for each kind."""
    shares, left = 100 * evidence.misses.iloc[::-1], 0.0
    figure, axes = plt.subplots(1, 1, figsize=(WIDTH_IN, 1.0 + 0.35 * len(shares)))
    labels = [evidence.arms[name].label for name in shares.index]
    for kind, (color, hatch, ink) in LOOKS.items():
        if shares[kind].any():
            bars = axes.barh(labels, shares[kind], left=left, color=color, hatch=hatch,
                             edgecolor="white", linewidth=0.5, label=kind)  # fmt: skip
            text = "{:.1f} % good" if kind == GOOD else "{:.0f}"
            texts = [text.format(share) if share >= NARROW else "" for share in shares[kind]]
            axes.bar_label(
                bars, texts, label_type="center", fontsize=8, color=ink,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
            left = left + shares[kind]
    axes.set(xlim=(0, 100), xlabel="requests [%]")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    legend_below(figure, axes)
    parts = "; ".join(
        f"{evidence.arms[name].label} " + ", ".join(
            f"{kind} {percent(share)}" for kind, share in row.items() if share
        )
        for name, row in evidence.misses.iterrows()
    )  # fmt: skip
    study = evidence.study
    before, after = (100 * evidence.misses.loc[name].drop(GOOD) for name in study.main)
    points = (after.round(1) - before.round(1)).sort_values(key=abs, ascending=False)
    changes = ", ".join(f"{kind} {signed(value, 1)}" for kind, value in points.items() if value)
    caption = (
        f"What the comparison changes, in points of requests: {changes or 'nothing'}. All "
        "requests of each configuration, repeats pooled. Late: TTFT over "
        f"{study.slo.ttft_ms:,g} ms; slow: ITL over {study.slo.itl_ms:g} ms."
    )
    return figure, caption, f"Stacked bars. {parts}."


def anatomy_table(evidence: Evidence) -> Table | None:
    """Return where the mean TTFT of each configuration goes; None if no run recorded it."""
    parts, study = evidence.anatomy, evidence.study
    if parts.isna().all(axis=None):
        return None
    columns: Columns = {heading: (parts[column], 0) for column, heading in PART_NAMES.items()}
    columns["TTFT"] = (parts.sum(axis=1), 0)
    change = parts.loc[study.comparison] - parts.loc[study.baseline]
    text = ", ".join(f"{PART_NAMES[part]} {signed(change[part], 0)} ms" for part in change.index)
    caption = (
        f"The comparison's mean TTFT differs from the baseline's by: {text}. Parts of the mean "
        "TTFT in ms, over the requests of all repeats."
    )
    return by_configuration(evidence.arms, columns, caption)


# --- one request, and one burst ------------------------------------------------------------------


def _first_repeat(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Return the requests of the first repeat of baseline and comparison, indexed by row."""
    return {name: evidence.tables(name)[0].set_index("row") for name in evidence.study.main}


def _typical(evidence: Evidence) -> pd.DataFrame:
    """Return the first request nearest the baseline's median TTFT, by configuration."""
    both = _first_repeat(evidence)
    baseline_ms, comparison_ms = (table["ttft_ms"] for table in both.values())
    row = (baseline_ms - baseline_ms.median())[comparison_ms.notna()].abs().idxmin()
    return pd.concat({name: table.loc[[row]] for name, table in both.items()},
                     names=["configuration"]).reset_index("row")  # fmt: skip


@drawn("attribution-request", _typical)
def request_figure(evidence: Evidence) -> Drawing:
    """Draw the way of one request through baseline and comparison, to scale."""
    requests, styles = _typical(evidence), arm_styles(evidence.arms)
    bound_ms, last_ms = evidence.study.slo.ttft_ms, requests["latency_ms"]
    if requests["queue_ms"].isna().any():
        return NOT_RECORDED
    figure, (first, whole) = plt.subplots(2, 1, figsize=(WIDTH_IN, 4), height_ratios=[5, 3])
    for n, (name, parts) in enumerate(requests[[*PART_NAMES]].iterrows()):
        label, color = evidence.arms[str(name)].label, styles[str(name)]["color"]
        end, request = parts.cumsum(), requests.loc[name]
        bars = first.barh(np.arange(len(parts)) + 0.38 * n, parts, 0.34, end - parts, color=color,
                          label=label)  # fmt: skip
        texts = [f"{ms:,.0f} ms" if ms else "" for ms in parts]
        first.bar_label(bars, texts, padding=3, fontsize=8.5)
        ttft_ms = request["ttft_ms"]
        whole.barh(n, ttft_ms, 0.34, color=color, alpha=0.4)
        whole.barh(n, last_ms[name] - ttft_ms, 0.34, ttft_ms, color=color)
        text = f"{request['output_tokens']:,.0f} tokens, {request['itl_ms']:.1f} ms apart"
        whole.annotate(text, (0, n - 0.3), (4, 0), textcoords="offset points", va="bottom")
    first.set_yticks(np.arange(len(PART_NAMES)) + 0.19, PART_NAMES.values())
    first.set(xlim=(0, 1.15 * max(bound_ms, requests["ttft_ms"].max())))
    whole.set(xlabel="ms after arrival", yticks=[], ylim=(-0.8, 1.3))
    for axes, title in ((first, "Until the first token"), (whole, "Until the last token")):
        axes.set_title(title)
        axes.grid(visible=False)
        axes.invert_yaxis()
    first.axvline(bound_ms, **RULE)
    first.annotate("TTFT bound", (bound_ms, -0.2), (-4, 0), textcoords="offset points",
                   ha="right", va="top")  # fmt: skip
    legend_below(figure, first)
    return figure, *_of_request(requests)


def _of_request(requests: pd.DataFrame) -> tuple[str, str]:
    """Return the caption of a request's way and its alternative text."""
    one = requests.iloc[0]
    sooner = [f"{abs(ms):,.0f} ms {'sooner' if ms < 0 else 'later'}"
              for ms in requests[["ttft_ms", "latency_ms"]].diff().iloc[1]]  # fmt: skip
    caption = (
        f"Under the comparison one typical request gets its first token {sooner[0]} and its last "
        f"{sooner[1]}. It is the one nearest the baseline's median TTFT, the first of these in the "
        f"first repeat: row {one['row']:,.0f}, a prompt of {one['input_tokens']:,.0f} tokens."
    )
    alt = "Bars along the time since arrival. " + " ".join(
        f"{name}: {', '.join(f'{text} {parts[part]:,.0f} ms' for part, text in PART_NAMES.items())}"
        f", last token at {parts['latency_ms']:,.0f} ms." for name, parts in requests.iterrows()
    )  # fmt: skip
    return caption, alt


def _late(evidence: Evidence) -> pd.DataFrame:
    """Return how many first tokens of each burst are late under both, and the change."""
    bound_ms = evidence.study.slo.ttft_ms
    late = pd.DataFrame({
        name: (table["ttft_ms"] > bound_ms).groupby(table["arrival_ms"]).sum()
        for name, table in _first_repeat(evidence).items()
    })  # fmt: skip
    return late.assign(change=late.iloc[:, 1] - late.iloc[:, 0])


def _burst(evidence: Evidence) -> pd.DataFrame:
    """Return the burst whose late requests change most, with what is unread when it comes."""
    at_ms, tables = _late(evidence)["change"].abs().idxmax(), {}
    for name, table in _first_repeat(evidence).items():
        since_ms = table["arrival_ms"] - at_ms
        shown = table[["prefill_worker", "input_tokens"]].assign(
            arrival_ms=since_ms, admitted_ms=since_ms + table["queue_ms"],
            first_token_ms=since_ms + table["ttft_ms"],
        )  # fmt: skip
        tables[name] = shown[(since_ms <= 0) & (shown["first_token_ms"] > 0)]
    by = ["configuration", "prefill_worker", "first_token_ms"]
    return pd.concat(tables, names=["configuration"]).sort_values(by)


@drawn("attribution-burst", _burst)
def burst_figure(evidence: Evidence) -> Drawing:
    """Draw what each worker does with one burst of requests, under baseline and comparison."""
    burst, both = _burst(evidence), _first_repeat(evidence)
    if burst[["prefill_worker", "admitted_ms"]].isna().any(axis=None):
        return NOT_RECORDED
    styles, alt = arm_styles(evidence.arms), ""
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.6), sharex=True)
    for axes, name in zip(panels, both, strict=True):
        label, requests = evidence.arms[name].label, burst.loc[name]
        role, group = next(iter(evidence.topologies[name].groups.items()))
        _bands(axes, requests, group.replicas, styles[name]["color"])
        axes.axvline(evidence.study.slo.ttft_ms, **RULE)
        axes.set_title(label)
        axes.set(ylabel=f"{role} worker", xlabel="ms after the burst")
        axes.locator_params(axis="x", nbins=4)
        ends_ms = requests.groupby("prefill_worker")["first_token_ms"].max()
        alt += f" {label}: " + ", ".join(f"{ms:,.0f}" for ms in ends_ms) + " ms."
    panels[0].set_xlim(0, 1.03 * burst["first_token_ms"].max())
    size = (burst.loc[evidence.study.baseline, "arrival_ms"] == 0).sum()
    return (
        figure,
        _of_bursts(evidence, size),
        f"A band for each worker. Last first token of each.{alt}",
    )


def waiting(evidence: Evidence) -> str:
    """Return how much of the waiting is no worker's lack; nothing where it is not recorded."""
    shares = [percent(_waiting_beside_idle(table), 0) for table in _first_repeat(evidence).values()]
    if "–" in shares:
        return ""
    return (
        f"Under the baseline {shares[0]} of all waiting passes while another worker has no prompt "
        f"to read; under the comparison {shares[1]}."
    )


def _of_bursts(evidence: Evidence, size: int) -> str:
    """Return what becomes of one burst of some size, how others compare, and what is drawn."""
    late = _late(evidence)
    before, after, _ = late.loc[late["change"].abs().idxmax()]
    return (
        f"Of {counted(size, 'request')} {before} get their first token late under the baseline, "
        f"{after} under the comparison: the burst of the first repeat where they differ most. In "
        f"{(late['change'] < 0).sum():,} of {counted(len(late), 'burst')} the comparison has fewer "
        f"late, in {(late['change'] > 0).sum():,} more. A thin line waits, a thick one is read, a "
        "grey one came earlier; the vertical line is the TTFT bound."
    )


def _bands(axes: Axes, requests: pd.DataFrame, workers: int, color: str) -> None:
    """Draw a band for each worker with a line for each of its requests."""
    middles, y = [], 0
    for worker in range(workers):
        lines = requests[requests["prefill_worker"] == worker]
        at = y + np.arange(len(lines))
        colors = [color if came == 0 else "#8c8c8c" for came in lines["arrival_ms"]]
        axes.hlines(at, lines["arrival_ms"], lines["admitted_ms"], colors, linewidth=0.8)
        axes.hlines(at, lines["admitted_ms"], lines["first_token_ms"], colors, linewidth=3)
        rows = max(len(lines), 1)
        middles.append(y + (rows - 1) / 2)
        axes.axhline(y + rows, color="#e4e4e4", linewidth=0.8)
        y += rows + 1
    axes.set_yticks(middles, [str(worker + 1) for worker in range(workers)])
    axes.set_ylim(y - 1, -1)
    axes.grid(visible=False)


def _waiting_beside_idle(table: pd.DataFrame) -> float:
    """Return the share of all waiting that passes while another worker has nothing to read."""
    table = table[table["queue_ms"].notna()]
    admitted_ms = table["arrival_ms"] + table["queue_ms"]
    moments = (
        (table["arrival_ms"], 1, 1),
        (admitted_ms, 0, -1),
        (admitted_ms + table["prefill_ms"], -1, 0),
    )
    changes = pd.concat(
        pd.DataFrame({"at_ms": at_ms, "worker": table["prefill_worker"], "unread": unread,
                      "waiting": waiting}) for at_ms, unread, waiting in moments
    ).sort_values("at_ms", kind="stable")  # fmt: skip
    unread = pd.get_dummies(changes["worker"]).mul(changes["unread"], axis=0).cumsum()
    waited_ms = changes["waiting"].cumsum() * -changes["at_ms"].diff(-1)
    idle_ms, all_ms = waited_ms[(unread == 0).any(axis=1)].sum(), waited_ms.sum()
    return float(idle_ms / all_ms) if all_ms else float("nan")


def effects_table(evidence: Evidence) -> Table | None:
    """Return main effects and interaction, first by bound; None without all four cells."""
    if evidence.missing:
        return None
    lines: dict[str, dict[str, str]] = {}
    table = evidence.attribution
    good = table["metric"] == "good_share"
    for row in pd.concat([table[good], table[~good]]).itertuples():
        kept = row.statistic in KEPT
        name = f"{row.statistic} [points]" if kept else quantity(row.metric, row.statistic)
        ends = row.value, row.ci_low, row.ci_high
        lines.setdefault(name, {"effect on": name})[row.effect] = with_ends(row.metric, *ends)
    interaction = lines[quantity("good_share")]["interaction"].replace("\n", " points ")
    caption = (
        f"Routing and split interact by {interaction} of good share. "
        f"Effects with their {evidence.study.statistics.percent} workload interval."
    )
    return Table(pd.DataFrame([*lines.values()]), caption)


def lesson(evidence: Evidence, judged: Gate) -> str:
    """Return in one paragraph which factor brings what."""
    if not judged.green:
        return NO_VERDICT
    if evidence.missing:
        return (
            f"What routing brings and what the split brings cannot be told apart on "
            f"{plain(evidence.cluster)}: there is no run of {evidence.missing}."
        )
    table = evidence.attribution.set_index(["metric", "statistic", "effect"]).sort_index()

    def main(metric: str, statistic: str) -> str:
        values = table.loc[(metric, statistic), "value"]
        larger = values[["routing", "split"]].abs().idxmax()
        effects = ", ".join(f"{name} {signed(values[name])} ms" for name in ("routing", "split"))
        return f"moves mostly with the **{larger}** ({effects})"

    row = table.loc[("good_share", "share", "interaction")]
    shown = row["ci_low"] > 0 or row["ci_high"] < 0
    depends = "what" if shown else "these runs do not show that what"
    return (
        f"The mean TTFT {main('ttft_ms', 'mean')}, the p99 ITL {main('itl_ms', 'p99')}. "
        f"{steps(evidence)}: {depends} one factor brings depends on the other. "
        f"{waiting(evidence)}"
    )
