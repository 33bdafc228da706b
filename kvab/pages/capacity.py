"""How a load, its interval and a ratio of loads are written.

Input: a row of a sweep's curves. Output: plain text.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from kvab.console import counted, interval, number, percent, plain, signed
from kvab.console import interval as interval_text
from kvab.pages.gate import Gate
from kvab.pages.theme import (
    COMPARISON,
    GREY,
    PLAIN,
    WIDTH_IN,
    Drawing,
    Table,
    arm_styles,
    drawn,
    unequal,
    unless_missing,
)
from kvab.runs.capacity.sweep import Sweep


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


def ratio_text(row: pd.Series) -> str:
    """Return a ratio of loads, a bound of it, or that it is not known."""
    if exact(row):
        return f"{number(row['low'], 2)} times"
    if row["low"] > 0:
        return f"more than {number(row['low'], 2)} times"
    return "not known" if np.isinf(row["high"]) else f"less than {number(row['high'], 2)} times"


def exact(row: pd.Series) -> bool:
    """Return whether a load or a ratio is known, and not only bounded."""
    return bool(row["low"] == row["high"])


NO_SWEEP = (
    ":::{note}\nNo sweep of load has been replayed for this study: declare one under `capacity` in "
    "study.yaml and run `kvab capacity`.\n:::"
)


def _level(swept: Sweep) -> str:
    return f"{swept.study.statistics.percent} workload interval"


def _loads(swept: Sweep) -> list[float]:
    return sorted({cell.load for cell in swept.load_cells})


def _kept(swept: Sweep, name: str, target: float) -> pd.Series:
    return swept.curves.loads.set_index(["configuration", "target"]).loc[(name, target)]


def _carries(swept: Sweep, name: str) -> str:
    row = _kept(swept, name, swept.headline)
    known = load_text(row["low"], row["high"])
    text = known.replace("x", " times the trace's arrival speed")
    return f"up to {text} ({_level(swept)} {ends_text(row, _loads(swept))})" if exact(row) else text


def _rows(swept: Sweep) -> str:
    """Return which requests each cell replayed."""
    trace = swept.summary.trace
    if trace.rows == trace.total_rows:
        return f"all {counted(trace.rows, 'request')}"
    return f"the first {trace.rows:,} of {counted(trace.total_rows, 'request')}"


def _compared(swept: Sweep, how: str) -> str:
    """Return how many times the load is carried, per GPU where their numbers differ."""
    row = swept.ratios.loc[swept.headline]
    if row["low"] <= 0 and np.isinf(row["high"]):
        return "the ratio of their loads is not known"
    load = "load" if len(set(swept.gpus.values())) == 1 else "load per GPU"
    return how.format(ratio=ratio_text(row), load=load)


def headline(swept: Sweep) -> str:
    """Return the second headline: the load that each of the two main configurations carries."""
    study = swept.study
    both = [study.configurations[name] for name in (study.comparison, study.baseline)]
    row = swept.ratios.loc[swept.headline]
    ends = f" ({ends_text(row)})" if exact(row) else ""
    where = "In simulation" if swept.simulated else f"On {plain(swept.cluster)}"
    where += ", on a SYNTHETIC WORKLOAD" if swept.synthetic else ""
    first, second = (_carries(swept, name) for name in (study.comparison, study.baseline))
    gpus = [swept.gpus[name] for name in (study.comparison, study.baseline)]
    filled = f"the same {gpus[0]}" if gpus[0] == gpus[1] else f"{gpus[0]} against {gpus[1]}"
    return (
        f"{where}, {both[0].phrase} keep {percent(swept.headline, 0)} of requests good {first}, "
        f"{both[1].phrase} {second}: "
        f"{_compared(swept, f'{{ratio}} the {{load}} on {filled} GPUs')}{ends}."
    )


@unless_missing("")
def second_headline(swept: Sweep, judged: Gate) -> str:
    """Return the headline in short, as the book's first page shows it beside a verdict."""
    if not judged.green:
        return ""
    study = swept.study
    rows = [_kept(swept, name, swept.headline) for name in (study.comparison, study.baseline)]
    first, second = (load_text(row["low"], row["high"]) for row in rows)
    row = swept.ratios.loc[swept.headline]
    ends = f"{_level(swept)} {ends_text(row)}; " if exact(row) else ""
    kind = "simulated" if swept.simulated else f"on {plain(swept.cluster)}"
    kind += ", SYNTHETIC WORKLOAD" if swept.synthetic else ""
    stale = f" {_stale(swept)}" if swept.changes else ""
    return (
        f"**[How much load?](08_capacity)** With {percent(swept.headline, 0)} of requests good, "
        f"the comparison carries arrivals at {first} the trace's speed, the baseline at {second}: "
        f"**{_compared(swept, '{ratio} the {load}')}** ({ends}*{kind}*).{stale}"
    )


def _stale(swept: Sweep) -> str:
    return f"**This sweep does not fit what is declared now:** {plain('; '.join(swept.changes))}."


@unless_missing(NO_SWEEP)
def provenance(swept: Sweep) -> str:
    """Return the notice on top of the page: what was replayed, where, and whose sweep it is."""
    summary = swept.summary
    whose = "Made with these runs" if swept.own else "The published sweep"
    versions = ", ".join(f"{plain(name)} {plain(text)}" for name, text in summary.versions.items())
    made_up = " **SYNTHETIC WORKLOAD: the requests are made up.**" if swept.synthetic else ""
    text = (
        f"{plain(summary.cluster['description'])}. {whose}: {len(swept.load_cells)} cells of load "
        f"and {len(swept.split_cells)} of the split, each one replay of {_rows(swept)} of "
        f"{plain(summary.trace.name)}, made from "
        f"{summary.first:%Y-%m-%d %H:%M} to {summary.last:%Y-%m-%d %H:%M} UTC with {versions}."
        f"{made_up}{unequal(swept.arms, swept.gpus)}"
    )
    title = "Simulated, not measured" if swept.simulated else f"Measured on {swept.cluster}"
    notice = f":::{{admonition}} {title}\n:class: important\n{text}\n:::"
    return notice + (f"\n\n:::{{warning}}\n{_stale(swept)}\n:::" if swept.changes else "")


def source(swept: Sweep, runs: bool = True) -> str:
    """Return where a figure's data come from, for the end of its caption."""
    trace = swept.summary.trace
    kind = "simulated, not measured" if swept.simulated else swept.summary.cluster["kind"]
    whose = "" if swept.own else ", published sweep"
    synthetic = " SYNTHETIC WORKLOAD." if swept.synthetic else ""
    return (
        f"Source: {swept.cluster}{whose}, one replay of {trace.rows:,} requests a cell; "
        f"{kind}.{synthetic}"
    )


def _ratios(swept: Sweep) -> str:
    """Return the ratio at every good share but the headline's."""
    said = [
        f"at {percent(target, 0)} good it is {ratio_text(row)}"
        + (f" ({ends_text(row)})" if exact(row) else "")
        for target, row in swept.ratios.iterrows()
        if target != swept.headline
    ]
    return "; ".join(said)


def load_caption(swept: Sweep) -> str:
    """Return the caption of the load figure."""
    row = swept.ratios.loc[swept.headline]
    carried = "the comparison carries {ratio} the baseline's {load}"
    ends = f" ({_level(swept)} {ends_text(row)})" if exact(row) else ""
    return (
        f"At {percent(swept.headline, 0)} good requests {_compared(swept, carried)}{ends}. "
        "Above: good share against the "
        f"speed of arrivals, each point one replay of {_rows(swept)}, bands its workload interval. "
        f"Below: where each curve falls through {percent(swept.headline, 0)}, with the workload "
        "interval."
    )


def _best_split(swept: Sweep) -> str:
    return swept.curves.splits["share"].idxmax()


def _beside(swept: Sweep, which: str) -> list[str]:
    """Return every split on one side of the best: fewer or more prefill workers."""
    names = [*swept.split_cells]
    at = names.index(_best_split(swept))
    return names[:at][::-1] if which == "fewer" else names[at + 1 :]


def split_caption(swept: Sweep) -> str:
    """Return the caption of the split figure."""
    splits, best = swept.curves.splits, _best_split(swept)
    others = splits.drop(best)["share"]
    keeps = f"{best} keeps most requests good"
    if not others.empty and others.max() == splits.loc[best, "share"]:
        keeps = f"No split keeps more requests good than {best}"
    second = "" if others.empty else f"; the next best, {others.idxmax()}, {percent(others.max())}"
    router = swept.arms[swept.study.comparison].factors.routing
    behind = "the KV router" if router == "kv" else f"{router} routing"
    return (
        f"{keeps}, {percent(splits.loc[best, 'share'])}{second}. Good "
        f"share with its {_level(swept)}, mean TTFT and p99 ITL by split at the trace's own speed, "
        f"behind {behind}; the filled point is the split of deploy.yaml."
    )


def ceiling(swept: Sweep) -> str:
    """Return what stays late on an almost idle cluster, and so which good share is out of reach."""
    lowest = _loads(swept)[0]
    cell = next(
        cell for cell in swept.load_cells
        if (cell.configuration, cell.load) == (swept.study.comparison, lowest)
    )  # fmt: skip
    shares = swept.curves.shares
    top = shares.loc[shares["share"].idxmax()]
    missed = [
        percent(target, 0)
        for target in swept.ratios.index
        if top["share"] < target
    ]  # fmt: skip
    out = f" So no configuration keeps {' or '.join(missed)} at any load." if missed else ""
    said = []
    if cell.late_first_token:
        said.append(f"{percent(cell.late_first_token / cell.requests)} get their first token late")
    if cell.one_token:
        one = percent(cell.one_token / cell.requests)
        said.append(f"{one} have one-token answers, which are never good")
    even = (
        f"Even at {lowest:g} times the trace's speed, of the comparison's requests "
        f"{' and '.join(said)}. Slower arrivals do not change that: a long prompt takes as long to "
        "prefill, and requests of one timestamp still arrive together. "
    )
    return (
        f"{even if said else ''}The highest share anywhere is "
        f"{percent(top['share'])} ({swept.arms[top['configuration']].label} at {top['load']:g}x)."
        f"{out}"
    )


@unless_missing("")
def loads(swept: Sweep) -> str:
    """Return how the ratio depends on the share asked for, and what limits each configuration."""
    others = _ratios(swept)
    return (
        f"The ratio depends on the share asked for{': ' + others if others else ''}. Near the "
        f"highest share that a configuration can reach its curve is flat, so a small difference in "
        f"share is a large one in load.\n\n{ceiling(swept)}"
    )


@unless_missing("")
def cost(swept: Sweep) -> str:
    """Return the least GPU-hours for a thousand good requests, and at which load."""
    said = []
    for name in (swept.study.comparison, swept.study.baseline):
        cell = min((c for c in swept.load_cells if c.configuration == name),
                   key=lambda c: c.gpu_hours)  # fmt: skip
        said.append(
            f"{swept.arms[name].label} {number(cell.gpu_hours)} at {cell.load:g}x, where "
            f"{percent(cell.share)} are good"
        )
    return f"The least GPU-hours for each thousand good requests: {'; '.join(said)}."


def splits(swept: Sweep) -> str:
    """Return which split serves best, and what fails on either side of it."""
    table, best, cells = swept.curves.splits, _best_split(swept), swept.split_cells
    said = [f"**{best}** keeps {percent(table.loc[best, 'share'])} of requests good."]
    if swept.deployed and swept.deployed != best:
        row = table.loc[best]
        said.append(
            f"The deployed {swept.deployed} keeps {percent(table.loc[swept.deployed, 'share'])}: "
            f"{signed(100 * row['difference'], 1)} points for {best} ({_level(swept)} "
            f"{interval_text(row['difference_low'], row['difference_high'], 100)})."
        )
    elif swept.deployed:
        said.append("It is the split that deploy.yaml deploys.")
    for side in ("fewer", "more"):
        for name in _beside(swept, side)[:1]:
            cell = cells[name]
            late, slow = (n / cell.requests for n in (cell.late_first_token, cell.slow_pace))
            said.append(
                f"One step to {side} prefill workers, {name}, keeps "
                f"{percent(table.loc[name, 'share'])} good (first tokens beyond the bound "
                f"{percent(late)}, answers slower than the bound {percent(slow)})."
            )
    return " ".join(said)


@unless_missing("Nothing yet: sweep the load to learn it.")
def lesson(swept: Sweep) -> str:
    """Return what the page teaches."""
    return f"{headline(swept)} {cost(swept)}\n\n{splits(swept)}"


DARK = "#333333"


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
        above.axhline(100 * target, color=DARK if main else GREY, linewidth=0.9 if main else 0.6,
                      linestyle="-" if main else (0, (1, 2)), zorder=1)  # fmt: skip
    kept = curves.loads.set_index(["target", "configuration"]).loc[swept.headline]
    found = kept[kept["low"] == kept["high"]]
    above.vlines(found["low"], 0, 100 * swept.headline, linewidth=0.9, alpha=0.7,
                 colors=[styles[name]["color"] for name in found.index])  # fmt: skip
    above.set(ylabel="good requests [%]", ylim=(0, 100))
    _draw_crossings(below, swept)
    below.set_xlabel("speed of arrivals [multiple of the trace's]")
    shares = curves.shares.set_index(["configuration", "load"])["share"]
    alt = "Falling curves of the good share over load. " + "; ".join(
        f"{arm.label} from {percent(shares[name].iloc[0], 0)} at {shares[name].index[0]:g}x to "
        f"{percent(shares[name].iloc[-1], 0)} at {shares[name].index[-1]:g}x"
        for name, arm in swept.arms.items()
    )
    return figure, load_caption(swept), alt


def _draw_crossings(axes: Axes, swept: Sweep) -> None:
    """Draw the load that each configuration carries at the headline's share, with its interval."""
    styles, names = arm_styles(swept.arms), [*swept.arms][::-1]
    kept = swept.curves.loads.set_index(["target", "configuration"]).loc[swept.headline]
    replayed = swept.curves.shares["load"]
    reach = (0, replayed.max() * 1.03)
    for place, name in enumerate(names):
        row, style = kept.loc[name], styles[name]
        ends = np.clip([row["ci_low"], row["ci_high"]], *reach)
        axes.plot(ends, [place, place], color=style["color"], linewidth=2.5, alpha=0.45)
        if row["low"] == row["high"]:
            axes.plot(row["low"], place, color=style["color"], marker=style["marker"])
        axes.annotate(
            load_text(row["low"], row["high"]), (np.nanmax(ends), place), (6, 0),
            textcoords="offset points", va="center", fontsize=8, fontweight="bold",
            color=style["color"],
        )  # fmt: skip
    axes.set_yticks(range(len(names)), [swept.arms[name].label for name in names])
    axes.set(ylim=(-0.6, len(names) - 0.4), xlim=reach)
    axes.set_title(f"load that keeps {percent(swept.headline, 0)} good")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")


@drawn("capacity-split", lambda s: s.curves.splits, source=source)
def split_figure(swept: Sweep) -> Drawing:
    """Good share, mean TTFT and p99 ITL by how the workers are split."""
    figure, (good, ttft, itl) = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.7))
    table, cells = swept.curves.splits, swept.split_cells
    at, names = np.arange(len(cells)), [*cells]
    good.vlines(at, 100 * table["low"], 100 * table["high"], color=COMPARISON, alpha=0.45,
                linewidth=2.5)  # fmt: skip
    shown = (
        (good, [100 * cell.share for cell in cells.values()], "good requests [%]"),
        (ttft, [cell.ttft_ms.mean for cell in cells.values()], "mean TTFT [ms, log scale]"),
        (itl, [cell.itl_ms.p99 for cell in cells.values()], "p99 ITL [ms]"),
    )
    for axes, values, label in shown:
        axes.plot(at, values, color=COMPARISON, linestyle="--", linewidth=1)
        filled = [COMPARISON if name == swept.deployed else "white" for name in names]
        axes.scatter(at, values, marker="s", s=32, c=filled, edgecolors=COMPARISON, zorder=3)
        axes.set(ylabel=label, xlim=(-0.5, len(names) - 0.5))
        axes.set_xticks(at, names)
    good.set_ylim(0, 100)
    ttft.set_yscale("log")
    ttft.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ttft.yaxis.set_major_formatter(PLAIN)
    ttft.yaxis.set_minor_formatter(NullFormatter())
    itl.set_ylim(0, None)
    bound = swept.summary.slo.itl_ms
    itl.axhline(bound, color=DARK, linewidth=0.9)
    itl.annotate(f"SLO {bound:g} ms", (-0.4, bound), (0, 3), textcoords="offset points",
                 fontsize=7)  # fmt: skip
    figure.supxlabel("prefill (P) and decode (D) workers", fontsize=9)
    alt = "Points by split: " + "; ".join(
        f"{name} {percent(cell.share, 0)} good, mean TTFT {cell.ttft_ms.mean:,.0f} ms, p99 ITL "
        f"{cell.itl_ms.p99:.1f} ms"
        for name, cell in cells.items()
    )
    return figure, split_caption(swept), alt


@unless_missing(None)
def loads_table(swept: Sweep) -> Table:
    """Return the load that each configuration carries at each good share, and the ratio."""
    replayed = sorted({cell.load for cell in swept.load_cells})
    kept = swept.curves.loads.set_index(["configuration", "target"])
    targets = swept.ratios.index
    lines = []
    for name, arm in swept.arms.items():
        rows = {target: kept.loc[(name, target)] for target in targets}
        lines.append({"configuration": arm.label} | {
            _at(target): f"{load_text(row['low'], row['high'])}\n({ends_text(row, replayed)})"
            for target, row in rows.items()
        })  # fmt: skip
    per_gpu = "" if len(set(swept.gpus.values())) == 1 else ", per GPU"
    lines.append({"configuration": f"comparison / baseline{per_gpu}"} | {
        _at(target): f"{ratio_text(row)}\n({ends_text(row)})"
        for target, row in swept.ratios.iterrows()
    })  # fmt: skip
    frame = pd.DataFrame(lines).replace({r"\n\(–\)": ""}, regex=True)
    statistics = swept.study.statistics
    return Table(
        frame,
        "Largest load, in multiples of the trace's arrival speed, at which this share of requests "
        f"is good ({statistics.percent} workload interval, {statistics.resamples:,} resamples, "
        f"blocks of {counted(swept.curves.block_bursts, 'burst')} on average). Never extrapolated "
        f"beyond {replayed[0]:g}x to {replayed[-1]:g}x.",
        ("configuration",),
    )


def _at(target: float) -> str:
    return f"{percent(target, 0)} good"


@unless_missing(None)
def cells_table(swept: Sweep) -> Table:
    """Return good share and GPU-hours for a thousand good requests of every cell of load."""
    lines: dict[float, dict[str, str]] = {}
    for cell in sorted(swept.load_cells, key=lambda cell: cell.load):
        line = lines.setdefault(cell.load, {"load": f"{cell.load:g}x"})
        shown = f"{percent(cell.share)}\n({_hours(cell.gpu_hours)})"
        line[swept.arms[cell.configuration].label] = shown
    return Table(
        pd.DataFrame(lines.values()),
        "Good requests (GPU-hours for each thousand of them).",
        ("load",),
    )


@unless_missing(None)
def splits_table(swept: Sweep) -> Table:
    """Return the metrics of each split of the comparison's workers."""
    table = swept.curves.splits
    lines = []
    for name, cell in swept.split_cells.items():
        row = table.loc[name]
        lines.append(
            {
                "split": name + (" (deployed)" if name == swept.deployed else ""),
                "good": percent(row["share"]),
                f"{swept.study.statistics.percent} interval [%]": f"{number(100 * row['low'], 1)} "
                f"to {number(100 * row['high'], 1)}",
                "points from the deployed": "–" if name == swept.deployed else interval(
                    row["difference_low"], row["difference_high"], 100),
                "TTFT mean [ms]": number(cell.ttft_ms.mean),
                "TTFT p99": number(cell.ttft_ms.p99),
                "ITL p50 [ms]": number(cell.itl_ms.p50),
                "ITL p99": number(cell.itl_ms.p99),
                "GPU-hours a thousand good": _hours(cell.gpu_hours),
            }
        )  # fmt: skip
    caption = (
        f"{swept.arms[swept.study.comparison].label} at the trace's own speed, xPyD: x prefill and "
        f"y decode workers, {counted(next(iter(swept.split_cells.values())).gpus, 'GPU')} in all. "
        "Intervals are workload intervals; the differences are paired."
    )
    return Table(pd.DataFrame(lines), caption, ("split",))


def _hours(hours: float) -> str:
    return number(hours) if np.isfinite(hours) else "none good"
