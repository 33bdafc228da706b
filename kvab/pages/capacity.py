"""Page 08: how much load each configuration carries, what a good request costs, how to split.

Input: a sweep. Output: figures, tables and sentences, in the order of the page; `headline` and
`second_headline` stand on others too.
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvab.console import counted, interval, number, percent, plain, signed
from kvab.pages.gate import Gate, versions_text
from kvab.pages.printed import Table
from kvab.pages.theme import (
    COMPARISON,
    GREY,
    RULE,
    WIDTH_IN,
    Drawing,
    arm_styles,
    drawn,
    legend_below,
    unequal,
    unless_missing,
)
from kvab.runs.campaign import OfRuns
from kvab.runs.sweep import SPREAD, Cell, Sweep
from kvab.stats.crossings import Curves

MISSES = {"late": ("first token late", "^"), "slow": ("tokens slow", "v")}
"""What misses a bound, as pages call it, and its marker."""
NO_SWEEP = (
    ":::{note}\nNo sweep of load has been replayed for this study: declare one under `capacity` in "
    "study.yaml and run `kvab capacity`.\n:::"
)


# --- how a load, its interval and a ratio of loads are written ----------------------------------


def exact(row: pd.Series) -> bool:
    """Return whether a load or a ratio is known, and not only bounded."""
    return bool(row["low"] == row["high"])


def load_text(low: float, high: float) -> str:
    """Return what is known of a load: a number, or beyond which replayed load it lies.

    Examples
    --------
    >>> load_text(1.3, 1.3), load_text(2.0, float("inf")), load_text(0.0, 0.125)
    ('1.30x', 'above 2x', 'below 0.125x')
    """
    if np.isinf(high):
        return f"above {low:g}x"
    return f"{number(high, 2)}x" if low > 0 else f"below {high:g}x"


def ratio_text(row: pd.Series) -> str:
    """Return a ratio of loads, a bound of it, or that it is not known."""
    if exact(row):
        return f"{number(row['low'], 2)} times"
    if row["low"] > 0:
        return f"more than {number(row['low'], 2)} times"
    return "not known" if np.isinf(row["high"]) else f"less than {number(row['high'], 2)} times"


def ends_text(row: pd.Series, loads: list[float] | None = None) -> str:
    """Return an interval in words; an end beyond the replayed loads says so."""
    low, high = row["ci_low"], row["ci_high"]
    if np.isnan(low):
        return "no interval: too few blocks"
    if not exact(row):
        return "–"
    first = number(low, 2) if low > 0 else f"below {loads[0]:g}" if loads else "open"
    last = f"above {loads[-1]:g}" if np.isinf(high) and loads else "open"
    return f"{first} to {last if np.isinf(high) else number(high, 2)}"


def _in_brackets(row: pd.Series, kind: str = "") -> str:
    """Return the interval of what is known, to stand behind it; nothing of a mere bound."""
    return f" ({kind}{ends_text(row)})" if exact(row) else ""


def _level(swept: Sweep) -> str:
    return f"{swept.study.statistics.percent} workload interval"


def _loads(swept: Sweep) -> list[float]:
    return sorted({cell.load for cell in swept.load_cells})


def _carried(curves: Curves, target: float) -> pd.DataFrame:
    """Return what is known of the load at which a share is good, indexed by configuration."""
    return curves.loads[curves.loads["target"] == target].set_index("configuration")


def _replays(swept: Sweep) -> str:
    """Return which requests each cell replayed."""
    trace = swept.summary.trace
    if trace.rows == trace.total_rows:
        return f"all {counted(trace.rows, 'request')}"
    return f"the first {trace.rows:,} of {counted(trace.total_rows, 'request')}"


def _per_gpu(swept: Sweep) -> str:
    """Return that loads are compared per GPU, where configurations fill different numbers."""
    return " per GPU" if len({*swept.gpus.values()}) > 1 else ""


# --- notices and headlines ----------------------------------------------------------------------


def _outdated(swept: Sweep) -> str:
    return f"**This sweep does not fit what is declared now:** {plain('; '.join(swept.changes))}."


@unless_missing(NO_SWEEP)
def provenance(swept: Sweep) -> str:
    """Return the notice on top of the page: what was replayed, where, and whose sweep it is."""
    summary = swept.summary
    whose = "Made with these runs" if swept.own else "The published sweep"
    made_up = " **GENERATED WORKLOAD: the requests are generated.**" if swept.synthetic else ""
    text = (
        f"{plain(summary.cluster['description'])}. {whose}: "
        f"{counted(len(summary.cells), 'replay')} of {_replays(swept)} of "
        f"{plain(summary.trace.name)}, the last on {summary.last:%Y-%m-%d}, with "
        f"{versions_text(summary.versions)}.{made_up}{unequal(swept.arms, swept.gpus)}"
    )
    notice = f":::{{admonition}} Simulated, not measured\n:class: important\n{text}\n:::"
    return notice + (f"\n\n:::{{warning}}\n{_outdated(swept)}\n:::" if swept.changes else "")


def source(swept: OfRuns[Any, Any], runs: bool = True) -> str:
    """Return where a figure's data come from, for the end of its caption."""
    whose, trace = "" if swept.own else ", published", swept.summary.trace
    synthetic = " GENERATED WORKLOAD." if swept.synthetic else ""
    return (
        f"Source: {swept.cluster}{whose}, one replay of {counted(trace.rows, 'request')} of "
        f"{trace.name} a cell; simulated, not measured.{synthetic}"
    )


def _carries(swept: Sweep, mark: str = "") -> str:
    """Return how many times the baseline's load the comparison carries; a mark stands around it."""
    said, ratios = "the ratio of their loads is not known", _ratios(swept, swept.headline)
    if ratio_text(ratios.iloc[0]) != "not known":
        per_gpu = _per_gpu(swept)
        said = f"the comparison carries {_range(ratios)} the baseline's load{per_gpu}"
    return f"With {percent(swept.headline, 0)} of requests good {mark}{said}{mark}"


def _others(swept: Sweep) -> str:
    """Return the ratio at the other shares that are asked for, of those at which it is known."""
    others = {target: _range(_ratios(swept, target)) for target in swept.curves.ratios.index
              if target != swept.headline}  # fmt: skip
    return "".join(f"; at {percent(target, 0)} good {text}" for target, text in others.items()
                   if "not known" not in text)  # fmt: skip


@unless_missing("")
def headline(swept: Sweep) -> str:
    """Return how many times the baseline's load the comparison carries, and what that hangs on."""
    readings = [f"{ratio_text(row).removesuffix(' times')}{_in_brackets(row)}"
                for _, row in _ratios(swept, swept.headline).iterrows()]  # fmt: skip
    if swept.bursty:
        readings = [f"{readings[0]} if a timestamp's requests come at once",
                    f"{readings[1]} if spread until the next"]  # fmt: skip
    return (
        f"{_carries(swept)}: {', '.join(readings)}{_others(swept)}. In brackets {_level(swept)}s."
    )


@unless_missing("")
def second_headline(swept: Sweep, judged: Gate) -> str:
    """Return the headline in short, as the book's first page shows it beside a verdict."""
    if not judged.green:
        return ""
    kind = "simulated" + ", GENERATED WORKLOAD" * swept.synthetic
    outdated = f" {_outdated(swept)}" if swept.changes else ""
    known = _ratios(swept, swept.headline).query("low == high")
    widest = known.agg({"low": "max", "high": "max", "ci_low": "min", "ci_high": "max"})
    return (
        f"**[How much load?](08_capacity)** {_carries(swept, '**')}"
        f"{', depending on how bursts arrive' * swept.bursty}"
        f"{_in_brackets(widest, f'{_level(swept)} ')}{_others(swept)} (*{kind}*).{outdated}"
    )


def _ratios(swept: Sweep, target: float) -> pd.DataFrame:
    """Return the ratio of loads at a share under each reading of the clock."""
    return pd.DataFrame([curves.ratios.loc[target] for curves in swept.readings.values()])


def _range(ratios: pd.DataFrame) -> str:
    """Return ratios of loads as a range where they are known."""
    if (ratios["low"] < ratios["high"]).any():
        return " or ".join(dict.fromkeys(ratio_text(row) for _, row in ratios.iterrows()))
    ends = dict.fromkeys(number(ratios["low"].agg(end), 1) for end in ("min", "max"))
    return f"{' to '.join(ends)} times"


# --- load ---------------------------------------------------------------------------------------


@drawn("capacity-load", lambda s: s.curves.shares, source=source)
def load_figure(swept: Sweep) -> Drawing:
    """Good share against load, and below it where each curve falls through the target."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(WIDTH_IN, 4.9), sharex=True, height_ratios=[3, 1.15]
    )
    styles, curves = arm_styles(swept.arms), swept.curves
    for name, style in styles.items():
        rows = curves.shares[curves.shares["configuration"] == name]
        ends = (100 * rows["low"], 100 * rows["high"])
        above.fill_between(rows["load"], *ends, color=style["color"], alpha=0.15, linewidth=0)
        above.plot(rows["load"], 100 * rows["share"], **style)
    for target in curves.ratios.index:
        main = target == swept.headline
        rule: Any = RULE if main else {"color": GREY, "linewidth": 0.6, "linestyle": (0, (1, 2))}
        above.axhline(100 * target, zorder=1, **rule)
    carried = _carried(swept.curves, swept.headline)
    known = carried[carried["low"] == carried["high"]]
    above.vlines(known["low"], 0, 100 * swept.headline, linewidth=0.9, alpha=0.7,
                 colors=[styles[name]["color"] for name in known.index])  # fmt: skip
    above.set(ylabel="good requests [%]", ylim=(0, 100))
    _draw_carried(below, swept, carried)
    below.set_xlabel("speed of arrivals [multiple of the trace's]")
    shares = curves.shares.set_index(["configuration", "load"])["share"]
    alt = "Falling curves of the good share over load. " + "; ".join(
        f"{arm.label} from {percent(shares[name].iloc[0], 0)} at {shares[name].index[0]:g}x to "
        f"{percent(shares[name].iloc[-1], 0)} at {shares[name].index[-1]:g}x"
        for name, arm in swept.arms.items()
    )
    caption = (
        f"{headline(swept)} Above: good share against the speed of arrivals, each point one replay "
        f"of {_replays(swept)}, bands its workload interval. Below: where each curve falls through "
        f"{percent(swept.headline, 0)}, with the workload interval"
        f"{'; hollow, with each burst spread until the next' * swept.bursty}."
    )
    return figure, caption, alt


def _draw_carried(axes: Axes, swept: Sweep, carried: pd.DataFrame) -> None:
    """Draw the load that each configuration carries at the headline's share, with its interval."""
    styles, names = arm_styles(swept.arms), [*swept.arms][::-1]
    reach = (0, swept.curves.shares["load"].max() * 1.03)
    spread = _carried(swept.readings[SPREAD], swept.headline) if swept.bursty else None
    for at, name in enumerate(names):
        row, style = carried.loc[name], styles[name]
        ends = np.clip([row["ci_low"], row["ci_high"]], *reach)
        axes.plot(ends, [at, at], color=style["color"], linewidth=2.5, alpha=0.45)
        if exact(row):
            axes.plot(row["low"], at, color=style["color"], marker=style["marker"])
        right = np.nanmax(ends)
        if spread is not None and exact(spread.loc[name]):
            axes.plot(spread.loc[name, "low"], at, color=style["color"], marker=style["marker"],
                      markerfacecolor="white")  # fmt: skip
            right = max(right, spread.loc[name, "low"])
        axes.annotate(
            load_text(row["low"], row["high"]), (right, at), (7, 0),
            textcoords="offset points", va="center", fontsize=8, fontweight="bold",
            color=style["color"],
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [swept.arms[name].label for name in names])
    axes.set(ylim=(-0.6, len(names) - 0.4), xlim=reach)
    axes.set_title(f"load that keeps {percent(swept.headline, 0)} good")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")


@unless_missing(None)
def loads_table(swept: Sweep) -> Table:
    """Return the load that each configuration carries at each good share, and the ratio."""
    loads, statistics = _loads(swept), swept.study.statistics
    names = [*(arm.label for arm in swept.arms.values()),
             f"comparison / baseline{', per GPU' * bool(_per_gpu(swept))}"]  # fmt: skip
    readings = swept.readings
    columns = {
        "configuration": names * len(readings),
        "bursts": [bursts for bursts in readings for _ in names],
    }
    for target in swept.curves.ratios.index:
        cells = []
        for curves in readings.values():
            carried, ratio = _carried(curves, target), curves.ratios.loc[target]
            cells += [(load_text(*row[["low", "high"]]), ends_text(row, loads))
                      for _, row in carried.loc[[*swept.arms]].iterrows()]  # fmt: skip
            cells.append((ratio_text(ratio), ends_text(ratio)))
        columns[f"{percent(target, 0)} good"] = [
            text if ends == "–" else f"{text}\n({ends})" for text, ends in cells
        ]
    return Table(
        pd.DataFrame(columns),
        "Largest load, in multiples of the trace's arrival speed, at which this share of requests "
        f"is good ({statistics.percent} workload interval, {statistics.resamples:,} resamples, "
        f"blocks of {counted(swept.curves.block_bursts, 'burst')} on average). Never extrapolated "
        f"beyond {loads[0]:g}x to {loads[-1]:g}x.",
        ("bursts",),
        folded="Loads at every share that was asked for, with bursts at once and spread",
    )


@unless_missing("")
def loads(swept: Sweep) -> str:
    """Return what limits each configuration, and what the order within bursts is worth."""
    return ceiling(swept) + _orders(swept)


def _orders(swept: Sweep) -> str:
    """Return between which loads the repeats of the main configurations lie."""
    repeated = swept.repeated.groupby(["bursts", "configuration"], sort=False)
    clauses = [
        f"{swept.arms[name].label} {load_text(*of[['low', 'high']].min())} to "
        f"{load_text(*of[['low', 'high']].max())} with bursts {bursts}"
        for (bursts, name), of in repeated
        if len(of) > 1
    ]
    if not clauses:
        return ""
    return (
        "\n\nReplayed in other orders of each burst's requests, the load that keeps "
        f"{percent(swept.headline, 0)} good goes from least to most: {'; '.join(clauses)}."
    )


def ceiling(swept: Sweep) -> str:
    """Return what stays late on an almost idle cluster, and so which good share is out of reach."""
    shares = swept.curves.shares
    top = shares.loc[shares["share"].idxmax()]
    text = (
        f"The highest share anywhere is {percent(top['share'])} "
        f"({swept.arms[top['configuration']].label} at {top['load']:g}x)."
    )
    comparison = [of for of in swept.load_cells if of.configuration == swept.study.comparison]
    idle = min(comparison, key=lambda cell: cell.load)
    if idle.late_first_token or idle.one_token:
        late, one = (percent(of / idle.requests) for of in (idle.late_first_token, idle.one_token))
        together = ", and requests of one timestamp still arrive together" * swept.bursty
        text = (
            f"Even at {idle.load:g} times the trace's speed {late} of the comparison's requests "
            f"get their first token late and {one} have one-token answers, which are never good. "
            "Slower arrivals do not change that: a long prompt takes as long to prefill"
            f"{together}. {text}"
        )
    missed = [percent(target, 0) for target in swept.curves.ratios.index if top["share"] < target]
    if not missed:
        return text
    *_, best = (of.shares["share"].max() for of in swept.readings.values())
    spread = f"; spread, the highest share is {percent(best)}" * swept.bursty
    return (
        f"{text} So{' with bursts at once' * swept.bursty} no configuration keeps "
        f"{' or '.join(missed)} at any load replayed{spread}."
    )


# --- what a good request costs ------------------------------------------------------------------


@unless_missing(None)
def cells_table(swept: Sweep) -> Table:
    """Return good share and GPU-hours for a thousand good requests of every cell of load."""
    lines: dict[float, dict[str, str]] = {}
    for cell in sorted(swept.load_cells, key=lambda cell: cell.load):
        line = lines.setdefault(cell.load, {"load": f"{cell.load:g}x"})
        hours = number(cell.gpu_hours) if cell.good else "none good"
        line[swept.arms[cell.configuration].label] = f"{percent(cell.share)}\n({hours})"
    caption = "Good requests (GPU-hours for each thousand of them)."
    return Table(pd.DataFrame(lines.values()), caption, folded="Every load")


def cheapest(swept: Sweep, name: str) -> Cell:
    """Return the cell of load at which a configuration's good requests take the fewest hours."""
    own = [cell for cell in swept.load_cells if cell.configuration == name]
    return min(own, key=lambda cell: cell.gpu_hours)


@unless_missing("")
def cost(swept: Sweep) -> str:
    """Return the least GPU-hours for a thousand good requests, and at which load."""
    clauses = []
    for name in (swept.study.comparison, swept.study.baseline):
        cell = cheapest(swept, name)
        clauses.append(
            f"{number(cell.gpu_hours)} with {swept.arms[name].label} (at {cell.load:g}x, where "
            f"{percent(cell.share)} are good)"
        )
    return f"The fewest GPU-hours that a thousand good requests take: {', '.join(clauses)}."


# --- layouts of the workers -----------------------------------------------------------------


def _splits(swept: Sweep) -> pd.DataFrame:
    """Return the layouts of the comparison, by load and split."""
    return swept.layouts.query("configuration == @swept.study.comparison")


@drawn("capacity-split", _splits, source=source)
def split_figure(swept: Sweep) -> Drawing:
    """Good share and what misses each bound by how the workers are split: a panel for each load."""
    splits = _splits(swept).droplevel("configuration")
    if splits.empty:
        return "No other split was replayed."
    loads = splits.index.unique("load")
    figure, panels = plt.subplots(
        1, len(loads), figsize=(WIDTH_IN, 2.8), sharey=True, squeeze=False
    )
    for axes, load in zip(panels[0], loads, strict=True):
        rows = splits.loc[load]
        at = np.arange(len(rows))
        axes.vlines(at, 100 * rows["low"], 100 * rows["high"], color=COMPARISON, alpha=0.45,
                    linewidth=2.5)  # fmt: skip
        axes.plot(at, 100 * rows["share"], color=COMPARISON, linestyle="--", label="good")
        filled = [COMPARISON if deployed else "white" for deployed in rows["deployed"]]
        axes.scatter(at, 100 * rows["share"], marker="s", s=32, c=filled, edgecolors=COMPARISON,
                     zorder=3)  # fmt: skip
        for key, (kind, marker) in MISSES.items():
            axes.plot(at, 100 * rows[key], color=GREY, linestyle=":", marker=marker, label=kind)
        axes.set_title(f"load {load:g}x")
        axes.set_xticks(at, rows.index)
    panels[0, 0].set(ylabel="requests [%]", ylim=(0, 100))
    legend_below(figure, panels[0, 0])
    alt = "Points by split: " + "; ".join(
        f"{label} at {load:g}x {percent(row['share'], 0)} good" for (load, label), row in
        splits.iterrows()
    )  # fmt: skip
    clauses = []
    for load, shares in splits["share"].groupby("load"):
        best = shares.droplevel("load")[lambda of: of == of.max()]  # those that serve alike
        clauses.append(f"at {load:g}x with {' or '.join(best.index)} ({percent(best.iloc[0])})")
    router = swept.arms[swept.study.comparison].factors.routing
    behind = "the KV router" if router == "kv" else f"{router} routing"
    caption = (
        f"Most requests are good {', '.join(clauses)}. Good share with its {_level(swept)}, and "
        "the requests that miss each bound, by prefill (P) and decode (D) workers of the "
        f"comparison behind {behind}; the filled point is the split of deploy.yaml."
    )
    return figure, caption, alt


@unless_missing(None)
def layouts_table(swept: Sweep) -> Table | None:
    """Return good share and latencies of each layout of the workers, by load."""
    if swept.layouts.empty:
        return None
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for (load, name, label), row in swept.layouts.iterrows():
        line = lines.setdefault((name, label), {
            "configuration": swept.arms[name].label,
            "layout": label + " (deployed)" * row["deployed"],
        })  # fmt: skip
        line[f"at {load:g}x"] = (
            f"{percent(row['share'])} good {points_text(row)}".rstrip()
            + f"\nTTFT {number(row['ttft_ms'])}, ITL {number(row['itl_ms'])} ms"
        )
    caption = (
        "Workers laid out otherwise on the same GPUs. xPyD: x prefill and y decode workers; TPn: n "
        "GPUs for each aggregated worker, of as many workers as fit; disaggregated ones keep "
        f"theirs. Points from the comparison as deployed, paired, with the {_level(swept)}; mean "
        "TTFT and ITL."
    )
    frame = pd.DataFrame(lines.values())
    return Table(frame, caption, ("layout",), folded="Every layout")


def points_text(row: pd.Series) -> str:
    """Return by how many points a layout differs from the comparison, if it does, and interval."""
    if not abs(row["difference"]) > 0:
        return ""
    ends = interval(row["difference_low"], row["difference_high"], 100)
    return f"{signed(100 * row['difference'], 1)} ({ends})"


@unless_missing("")
def layouts(swept: Sweep) -> str:
    """Return which layout serves best at each load."""
    lines = []
    for (load, name, layout), row in swept.best_layouts("load").iterrows():
        points = points_text(row)
        ahead = f"; {points} points from the comparison as deployed" if points else ""
        lines.append(
            f"- Of {len(swept.layouts.loc[load])} layouts at {load:g}x most requests are good with "
            f"{swept.arms[name].label} as {layout}: {percent(row['share'])} good{ahead}."
        )
    return "\n".join(lines)


@unless_missing("Nothing yet: sweep the load to learn it.")
def lesson(swept: Sweep) -> str:
    """Return what the page teaches."""
    return f"- {headline(swept)}\n{layouts(swept)}"
