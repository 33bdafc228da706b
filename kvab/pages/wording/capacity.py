"""A capacity sweep in words: its sentences, and the captions of its figures.

Input: the sweep. Output: Markdown, and plain text for captions.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from kvab.console import counted, number, percent, plain, signed
from kvab.console import interval as interval_text
from kvab.pages.tabling import unless_missing
from kvab.pages.validity import Gate
from kvab.pages.wording.loads import ends_text, found, load_text, ratio_text
from kvab.pages.wording.outcomes import unequal
from kvab.runs.capacity.sweep import Sweep

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
    return f"up to {text} ({_level(swept)} {ends_text(row, _loads(swept))})" if found(row) else text


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
    ends = f" ({ends_text(row)})" if found(row) else ""
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
    ends = f"{_level(swept)} {ends_text(row)}; " if found(row) else ""
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
        + (f" ({ends_text(row)})" if found(row) else "")
        for target, row in swept.ratios.iterrows()
        if target != swept.headline
    ]
    return "; ".join(said)


def load_caption(swept: Sweep) -> str:
    """Return the caption of the load figure."""
    row = swept.ratios.loc[swept.headline]
    carried = "the comparison carries {ratio} the baseline's {load}"
    ends = f" ({_level(swept)} {ends_text(row)})" if found(row) else ""
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
