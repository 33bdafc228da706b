"""Page 12: how far the same simulator was from GPUs that others have measured.

Input: measured figures beside simulated ones. Output: figures, tables and sentences, in the order
of the page; the sentence for the first page and the README, the mark on page 07's grid of errors,
and what `kvab hardware` prints. Ratios are simulated over measured.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kvab.console import counted, number, percent, plain, signed
from kvab.pages.evidence import Evidence
from kvab.pages.gate import versions_text
from kvab.pages.printed import Table
from kvab.pages.theme import (
    ABLATIONS,
    EDGE,
    GREY,
    STYLES,
    WIDTH_IN,
    Drawing,
    drawn,
    legend_below,
    unless_missing,
)
from kvab.runs.hardware import Held
from kvab.study.hardware import LADDER, METRICS, ClosedLoop, SharedPrefix, load_effects

NOT_SIMULATED = (
    ":::{note}\nNo published measurement is declared under recipes/hardware and simulated: run "
    "`kvab hardware`.\n:::"
)
BASELINE, COMPARISON = "baseline", "comparison"
OUTPUT, TTFT, ITL = "output_tokens_per_s", "ttft_ms", "itl_ms"
ROUTING = {"round_robin": STYLES["baseline"], "kv": ABLATIONS[0]}
INK, LOOKS = "#333333", ("-o", "--s", "-.^", ":D")  # colours are those of configurations
QUICK_MS = 1000  # measured mean TTFT below which a cluster is not saturated


def _source(held: Held, runs: bool = True) -> str:
    return "Source: figures that others published (below); the rest is simulated, not measured."


def _of(held: Held, metric: str, **wanted: str) -> pd.DataFrame:
    """Return the figures of a metric, or of all whose names begin so, of a scenario or an arm."""
    rows = held.rows[held.rows["metric"].str.startswith(metric)]
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def _range(ratios: pd.Series) -> str:
    if len(ratios) == 1:
        return number(ratios.iloc[0], 2)
    return f"{number(ratios.median(), 2)} ({number(ratios.min(), 2)} to {number(ratios.max(), 2)})"


@unless_missing(NOT_SIMULATED)
def provenance(held: Held) -> str:
    """Return the notice on top of the page: whose figures, and what simulated them."""
    return (
        ":::{admonition} Measured by others, simulated here\n:class: important\n"
        f"{counted(len(held.scenarios), 'set-up')} that others measured, transcribed with source, "
        "commit and licence; this study measured nothing of its own. Simulated by "
        f"{versions_text(held.versions)}.\n:::"
    )


# --- the ladder of request rates -----------------------------------------------------------------


def _ladder(held: Held) -> tuple[str, dict[str, str]] | None:
    """Return the first scenario of stages, and its arms by their router."""
    for name, scenario in held.scenarios.items():
        routers: dict[str, str] = {arm.router: key for key, arm in scenario.arms.items()}
        if isinstance(scenario.workload, SharedPrefix) and len(routers) == 2:
            return name, routers
    return None


@drawn("hardware-ladder", lambda held: held.rows, source=_source)
def ladder_figure(held: Held) -> Drawing:
    """Every metric by request rate: what was measured as points, what was simulated as a line."""
    if (found := _ladder(held)) is None:
        return "No scenario has stages of rising request rates."
    name, routers = found
    scenario, stages = held.scenarios[name], held.cells[held.cells["cell"] != LADDER]
    figure, panels = plt.subplots(3, 2, figsize=(WIDTH_IN, 6.6))
    for axes, (metric, label) in zip(panels.flat, METRICS.items(), strict=True):
        for router, arm in routers.items():
            look: Any = ROUTING[router]
            place = {"scenario": name, "arm": arm, "metric": metric}
            line = stages[(stages[[*place]] == pd.Series(place)).all(axis=1)]
            axes.plot(line["cell"].astype(float), line["simulated"], color=look["color"],
                      linestyle=look["linestyle"], label=f"{scenario.arms[arm].label}, simulated"
                      )  # fmt: skip
            rows = _of(held, **place)
            points = [(float(row.cell), value) for row in rows.itertuples()
                      if row.cell != LADDER for value in row.measured]  # fmt: skip
            axes.plot(*np.reshape(points, (-1, 2)).T, look["marker"], color=look["color"],
                      fillstyle="none", label=f"{scenario.arms[arm].label}, measured")  # fmt: skip
            for value in () if points else rows["measured"].explode():
                axes.axhline(value, color=look["color"], linestyle=":", linewidth=0.9)
        axes.set(title=label, yscale="log" if metric.startswith(TTFT) else "linear")
        axes.yaxis.set_major_formatter("{x:,.0f}")
    for axes in panels[-1]:
        axes.set_xlabel("requests/s")
    legend_below(figure, panels[0, 0])
    caption = (
        f"{routing(held)} {scenario.title}: lines are simulated, points measured, two where two "
        "publications give the figure, dotted where it is known of all stages together; the next "
        "stage begins when all requests are answered."
    )
    return figure, caption, "Six panels by request rate: output, TTFT and ITL of two routers."


def _gains(held: Held) -> tuple[list[float], float]:
    """Return what KV routing brings over round-robin in output: measured, and simulated."""
    name, routers = _ladder(held) or ("", {})
    of = _of(held, OUTPUT, scenario=name, cell=LADDER).set_index("arm")
    kv, base = (of.loc[routers[router]] for router in ("kv", "round_robin"))
    measured = [k / b - 1 for k, b in zip(kv["measured"], base["measured"], strict=True)]
    return measured, kv["simulated"] / base["simulated"] - 1


@unless_missing("")
def routing(held: Held) -> str:
    """Return what KV routing brings, measured and simulated."""
    if _ladder(held) is None:
        return ""
    measured, simulated = _gains(held)
    judged = "understates" if simulated < min(measured) else "overstates"
    if min(measured) <= simulated <= max(measured):
        judged = "neither understates nor overstates"
    gains = " and ".join(f"{signed(100 * gain, 0)} %" for gain in measured)
    return (
        f"The simulator {judged} KV routing: mean output over all rates {gains} measured, "
        f"{signed(100 * simulated, 0)} % simulated."
    )


def _unsaturated(held: Held, arm: str) -> pd.Series:
    """Return ratios of the mean TTFT of an arm where the measured one is small."""
    rows = _of(held, "ttft_ms_mean", arm=arm)
    return rows["ratio"][rows["measured"].str[0] < QUICK_MS]


# --- idle prefill, and the disaggregated grid ----------------------------------------------------


def _idle(held: Held) -> pd.DataFrame:
    """Return the TTFT of single prompts on idle aggregated workers."""
    names = [name for name, scenario in held.scenarios.items()
             if isinstance(load := scenario.workload, ClosedLoop) and load.concurrency == [1]
             and load.output_tokens == 1]  # fmt: skip
    return held.rows[held.rows["scenario"].isin(names)]


@unless_missing(None)
def idle_table(held: Held) -> Table:
    """Return how long an idle worker prefills."""
    lines = [
        {"GPU": held.scenarios[row.scenario].arms[row.arm].label,
         "prompt [tokens]": f"{int(row.cell.split('x')[0]):,}",
         "measured [ms]": number(row.measured[0], 0), "simulated [ms]": number(row.simulated, 0),
         "simulated / measured": number(row.ratio, 2)}
        for row in _idle(held).itertuples()
    ]  # fmt: skip
    return Table(pd.DataFrame(lines), "Prefill of a new prompt on an idle worker.", ("GPU",))


def _grid(held: Held) -> pd.DataFrame:
    """Return the figures of disaggregated clusters, with input tokens and users of each."""
    names = [name for name, scenario in held.scenarios.items()
             if any("prefill" in arm.workers for arm in scenario.arms.values())]  # fmt: skip
    rows = held.rows[held.rows["scenario"].isin(names)]
    tokens, users = (rows["cell"].str.split("x").str[n].astype(int) for n in (0, 1))
    return rows.assign(input_tokens=tokens, users=users)


@drawn("hardware-disaggregated", _grid, source=_source)
def grid_figure(held: Held) -> Drawing:
    """Draw ratios by input length and users, with the KV transfer that costs time."""
    grid = _grid(held)
    if grid.empty:
        return "No scenario is disaggregated."
    grid = grid[grid["arm"] == grid["arm"].iloc[0]]
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.9), sharey=True)
    for axes, (metric, of) in zip(panels, grid.groupby("metric", sort=False), strict=True):
        for (users, line), look in zip(of.groupby("users"), LOOKS, strict=False):
            axes.plot(line["input_tokens"], line["ratio"], look, color=INK,
                      label=counted(int(users), "user"))  # fmt: skip
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.set(title=METRICS[str(metric)], xscale="log", xlabel="input [tokens]")
        axes.set_xticks([*grid["input_tokens"].unique()])
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1024:g}k")
        axes.minorticks_off()
    panels[0].set_ylabel("simulated / measured")
    legend_below(figure, panels[0])
    alone, busy = grid[grid["users"] == 1], grid[grid["users"] == grid["users"].max()]
    found = {m: [_range(of.loc[of["metric"] == m, "ratio"]) for of in (alone, busy)]
             for m in (OUTPUT, "ttft_ms_p50", "itl_ms_mean")}  # fmt: skip
    caption = (
        f"With {busy['users'].iloc[0]} users the simulated output is {found[OUTPUT][1]} of the "
        f"measured, with one user TTFT {found['ttft_ms_p50'][0]} and ITL "
        f"{found['itl_ms_mean'][0]}. Median and range over the input lengths; "
        f"{held.scenarios[grid['scenario'].iloc[0]].title}."
    )
    return (
        figure,
        caption,
        "Three panels of ratios by input length, a line for each number of users.",
    )


# --- what it means -------------------------------------------------------------------------------


class Error(NamedTuple):
    """An error of the simulator, the headlines that it touches, and whom a low ratio favours."""

    what: str
    touches: str
    ratios: pd.Series
    low_favours: str

    @property
    def favours(self) -> str:
        """The side that it favours."""
        sides = [BASELINE, COMPARISON]
        return self.low_favours if self.ratios.median() < 1 else sides[self.low_favours == BASELINE]


def _errors(held: Held) -> list[Error]:
    """Return the errors that touch one side of the study's comparison more than the other.

    The baseline is aggregated behind round-robin; the comparison disaggregated behind KV routing.
    """
    lines = [Error("prefill steps, which delay decoding in the baseline alone", "ITL, good share",
                   _idle(held)["ratio"], BASELINE)]  # fmt: skip
    grid = _grid(held)
    for metric, of in grid[grid["arm"] == grid["arm"].head(1).squeeze()].groupby("metric"):
        if str(metric).startswith(ITL):
            lines.append(Error("ITL of disaggregated workers", "ITL, good share", of["ratio"],
                               COMPARISON))  # fmt: skip
        if str(metric).startswith(TTFT):
            lines.append(Error("TTFT of disaggregated workers with one user", "TTFT, good share",
                               of["ratio"][of["users"] == 1], COMPARISON))  # fmt: skip
    if found := _ladder(held):
        name, routers = found
        measured, simulated = _gains(held)
        arms = {r: _of(held, "", scenario=name, arm=arm) for r, arm in routers.items()}
        of = {router: rows.groupby("metric")["ratio"] for router, rows in arms.items()}
        base, kv = of["round_robin"], of["kv"]
        gained = pd.Series([(1 + np.mean(measured)) / (1 + simulated)])
        early = _unsaturated(held, routers["round_robin"])
        lines += [
            Error("ITL of aggregated workers", "ITL, good share", base.get_group("itl_ms_mean"),
                  BASELINE),
            Error("TTFT below saturation behind round-robin", "TTFT, good share", early, BASELINE),
            Error("output behind round-robin", "load that is carried", 1 / base.get_group(OUTPUT),
                  BASELINE),
            Error("mean TTFT behind KV routing", "TTFT, good share", kv.get_group("ttft_ms_mean"),
                  COMPARISON),
            Error("output that KV routing gains", "load that is carried", gained, COMPARISON),
        ]  # fmt: skip
    return [line for line in lines if len(line.ratios)]


@unless_missing(None)
def meaning_table(held: Held) -> Table:
    """Return for each error which headlines it touches, and whom it favours."""
    lines = [
        {"error of": error.what, "touches": error.touches,
         "time, simulated / measured": _range(error.ratios), "favours": error.favours}
        for error in _errors(held)
    ]  # fmt: skip
    caption = (
        "Which side each error favours: a time that is too short favours the side that spends it. "
        "Output is given as the time for a token. Median and range."
    )
    return Table(pd.DataFrame(lines), caption, ("error of", "touches", "favours"))


@unless_missing(None)
def effects_table(held: Held) -> Table:
    """Return what others measured of both effects; what contradicts this study's answer first."""
    lines = [
        {"what": f"{effect.what}\n{effect.verdict}", "found": effect.found,
         "conditions and source": f"{effect.conditions}\n{effect.source}"}
        for effect in load_effects()
    ]  # fmt: skip
    caption = (
        "Whether each result agrees with this study's answer. Two numbers: without it, to with it."
    )
    return Table(pd.DataFrame(lines), caption, ("what", "found", "conditions and source"))


@unless_missing("")
def sources(held: Held) -> str:
    """Return where the figures of each scenario are from, and what was assumed."""
    lines = []
    for scenario in held.scenarios.values():
        title = scenario.title[0].upper() + scenario.title[1:]
        lines.append(f":::{{dropdown}} {plain(title)}\n")
        lines += [
            f"- {plain(source.what)}: {_link(source.address)}, {_commit(source.commit)}; "
            f"licence: {plain(source.licence)}"
            for source in scenario.sources
        ]
        lines += [f"- Assumed: {plain(text)}" for text in scenario.assumed]
        lines.append(":::\n")
    return "\n".join(lines)


def _commit(text: str) -> str:
    """Return which state of a source was read; what is no hash says itself what it is."""
    return f"commit {text}" if re.match(r"[0-9a-f]{8}", text) else plain(text)


def _link(address: str) -> str:
    """Return an address, of which the part up to a space leads there if it is one of the web."""
    target, _, inside = address.partition(" ")
    if not re.fullmatch(r"https://[\w./@-]+", target):
        return plain(address)
    return f"<{target}> {plain(inside)}".rstrip()


@unless_missing("Nothing yet: hold the simulator against measurements to learn it.")
def lesson(held: Held) -> str:
    """Return what the page teaches."""
    errors = _errors(held)
    count = sum(error.favours == BASELINE for error in errors)
    pushes = (
        f"{count} of {counted(len(errors), 'error')} favour the baseline, the others the "
        "comparison; no number in this book is corrected for them."
    )
    return "\n".join(f"- {text}" for text in (routing(held), pushes) if text)


# --- elsewhere -----------------------------------------------------------------------------------


@unless_missing("")
def band(held: Held) -> str:
    """Return in one sentence how far the simulator was from hardware."""
    parts = []
    for start, label in ((OUTPUT, "output"), (TTFT, "TTFT"), (ITL, "ITL")):
        ratios = held.own["ratio"][held.own["metric"].str.startswith(start)]
        if len(ratios):
            low, middle, high = (number(ratios.quantile(q), 2) for q in (0.1, 0.5, 0.9))
            parts.append(f"{label} {middle} ({low} to {high})")
    return (
        f"Against {len(held.own)} figures that others measured on GPUs, simulated over measured "
        f"is, at the median (middle 80 %): {', '.join(parts)}."
    )


def beside_answer(evidence: Evidence, held: Held | None) -> str:
    """Return for the first page of a simulated study how far the simulator was from hardware."""
    said = band(held) if evidence.simulated else ""
    return f"{said} [Where, and what that means](12_hardware)." if said else ""


@unless_missing("")
def mark_measured(held: Held, axes: Axes, grid: pd.DataFrame) -> str:
    """Mark on a grid of step times where measured ones lie; return what the grid has there.

    Parameters
    ----------
    held : Held
        What was measured.
    axes : Axes
        An image of the grid, a unit for each cell.
    grid : DataFrame
        The effect in points, by ratio of decode times (index) and of prefill times (columns).
    """
    cells, ends = [], []
    decode = held.own[held.own["metric"].str.startswith(ITL)]
    for step, rows, values in (("prefill", _idle(held), grid.columns),
                               ("decode", decode, grid.index)):  # fmt: skip
        if rows.empty:
            return ""
        ratios = 1 / rows["ratio"].to_numpy()
        known = values.to_numpy(dtype=float)
        places = np.interp(np.log(ratios), np.log(known), range(len(known)))
        cells.append((places.min(), places.max()))
        ends.append(f"{signed(100 * (ratios.min() - 1), 0)} to "
                    f"{signed(100 * (ratios.max() - 1), 0)} % for {step}")  # fmt: skip
    (left, right), (bottom, top) = cells
    corner, size = (left - 0.08, bottom - 0.08), (right - left + 0.16, top - bottom + 0.16)
    axes.add_patch(Rectangle(corner, *size, fill=False, linestyle="--", edgecolor=EDGE))
    inside = grid.iloc[int(bottom) : int(np.ceil(top)) + 1, int(left) : int(np.ceil(right)) + 1]
    least, most = inside.min().min(), inside.max().max()
    return (
        f" Dashed: times measured on GPUs against simulated ones ({', '.join(ends)}); the grid has "
        f"{signed(least, 1)} to {signed(most, 1)} points there."
    )


def hardware_lines(held: Held) -> list[tuple[str, str]]:
    """Return every measured figure beside the simulated one, and a summary of each metric."""
    lines = []
    for name, of in held.rows.groupby("scenario", sort=False):
        scenario = held.scenarios[str(name)]
        lines.append((f"{name}: {scenario.title}", ""))
        for row in of.itertuples():
            measured = " and ".join(number(value) for value in row.measured)
            apart = signed(100 * (row.ratio - 1), 0)
            lines.append((f"  {row.arm} {row.cell} {METRICS[row.metric]}",
                          f"measured {measured}, simulated {number(row.simulated)} ({apart} %)"
                          ))  # fmt: skip
        for metric, found in held.summary(str(name)).items():
            floor = found["noise_floor"]
            noise = f"; two publications differ by {percent(floor)}" if floor is not None else ""
            median, low, high = (number(found[key], 2) for key in ("median_ratio", "low", "high"))
            lines.append((f"  {METRICS[metric]}, simulated over measured",
                          f"median {median}, {low} to {high}{noise}"))  # fmt: skip
    return lines
