"""Page 12: how far the same simulator was from GPUs that others have measured.

Input: measured figures beside simulated ones. Output: figures, tables and sentences, in the order
of the page; the sentence for the first page and the README, the mark on page 07's grid of errors,
and what `kvab hardware` prints. Ratios are simulated over measured.
"""

from __future__ import annotations

import re
from typing import Any

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
from kvab.study.hardware import LADDER, METRICS, Scenario, SharedPrefix, load_effects

NOT_SIMULATED = (
    ":::{note}\nNo published measurement is declared under recipes/hardware and simulated: run "
    "`kvab hardware`.\n:::"
)
BASELINE, COMPARISON = "baseline", "comparison"
OUTPUT, TTFT, ITL = "output_tokens_per_s", "ttft_ms", "itl_ms"
ROUTING = {"round_robin": STYLES["baseline"], "kv": ABLATIONS[0]}
STAGES, IDLE, DISAGGREGATED = "stages", "idle", "disaggregated"  # set-ups that pages tell apart
INK, LOOKS = "#333333", ("-o", "--s", "-.^", ":D")  # colours are those of configurations
QUICK_MS = 1000  # measured mean TTFT below which a cluster is not saturated


def _source(held: Held, runs: bool = True) -> str:
    return "Source: figures that others published (below); the rest is simulated, not measured."


def _setup(scenario: Scenario) -> str:
    """Return which of the set-ups a scenario is, if any."""
    load, arms = scenario.workload, scenario.arms.values()
    if isinstance(load, SharedPrefix):
        return STAGES if len({arm.router for arm in arms}) == 2 else ""
    if any("prefill" in arm.workers for arm in arms):
        return DISAGGREGATED
    return IDLE if (load.concurrency, load.output_tokens) == ([1], 1) else ""


def _of(held: Held, setup: str) -> pd.DataFrame:
    """Return the figures of a set-up with the ``router`` of each; of stages the first scenario's.

    Of closed loops also ``tokens`` of a prompt, and ``users``.
    """
    rows = held.rows[[_setup(held.scenarios[name]) == setup for name in held.rows["scenario"]]]
    if setup == STAGES:
        rows = rows[rows["scenario"].isin(rows["scenario"].head(1))]
        places = zip(rows["scenario"], rows["arm"], strict=True)
        return rows.assign(router=[held.scenarios[name].arms[arm].router for name, arm in places])
    tokens, users = (rows["cell"].str.split("x").str[n].astype(int) for n in (0, 1))
    return rows.assign(tokens=tokens, users=users)


def _ratios(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Return the ratios of a metric, or of all whose names begin so."""
    return rows.loc[rows["metric"].str.startswith(metric), "ratio"]


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


@drawn("hardware-ladder", lambda held: held.rows, source=_source)
def ladder_figure(held: Held) -> Drawing:
    """Every metric by request rate: what was measured as points, what was simulated as a line."""
    figures = _of(held, STAGES)
    if figures.empty:
        return "No scenario has stages of rising request rates."
    name = figures["scenario"].iloc[0]
    scenario, cells = held.scenarios[name], held.cells[held.cells["scenario"] == name]
    figure, panels = plt.subplots(3, 2, figsize=(WIDTH_IN, 6.6))
    for axes, (metric, label) in zip(panels.flat, METRICS.items(), strict=True):
        for key, arm in scenario.arms.items():
            look: Any = ROUTING[arm.router]
            line, rows = (of[(of["arm"] == key) & (of["metric"] == metric)]
                          for of in (cells[cells["cell"] != LADDER], figures))  # fmt: skip
            axes.plot(line["cell"].astype(float), line["simulated"], color=look["color"],
                      linestyle=look["linestyle"], label=f"{arm.label}, simulated")  # fmt: skip
            points = rows[rows["cell"] != LADDER].explode("measured").astype({"cell": float})
            axes.plot(points["cell"], points["measured"], look["marker"], color=look["color"],
                      fillstyle="none", label=f"{arm.label}, measured")  # fmt: skip
            for value in rows["measured"].explode() if points.empty else ():
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


def _gains(held: Held) -> tuple[np.ndarray, float] | None:
    """Return how many times the output KV routing brings: measured, and simulated; if known."""
    rows = _of(held, STAGES)
    rows = rows[(rows["metric"] == OUTPUT) & (rows["cell"] == LADDER)]
    if rows.empty:
        return None
    of = rows.set_index("router")
    measured = np.divide(of.loc["kv", "measured"], of.loc["round_robin", "measured"])
    return measured, of.loc["kv", "simulated"] / of.loc["round_robin", "simulated"]


@unless_missing("")
def routing(held: Held) -> str:
    """Return what KV routing brings, measured and simulated."""
    if (found := _gains(held)) is None:
        return ""
    measured, simulated = found
    judged = "understates" if simulated < min(measured) else "overstates"
    if min(measured) <= simulated <= max(measured):
        judged = "neither understates nor overstates"
    gains = " and ".join(f"{signed(100 * (gain - 1), 0)} %" for gain in measured)
    return (
        f"The simulator {judged} KV routing: mean output over all rates {gains} measured, "
        f"{signed(100 * (simulated - 1), 0)} % simulated."
    )


# --- idle prefill, and the disaggregated grid ----------------------------------------------------


@unless_missing(None)
def idle_table(held: Held) -> Table:
    """Return how long an idle worker prefills."""
    lines = [
        {"GPU": held.scenarios[row.scenario].arms[row.arm].label,
         "prompt [tokens]": f"{row.tokens:,}",
         "measured [ms]": number(row.measured[0], 0), "simulated [ms]": number(row.simulated, 0),
         "simulated / measured": number(row.ratio, 2)}
        for row in _of(held, IDLE).itertuples()
    ]  # fmt: skip
    return Table(pd.DataFrame(lines), "Prefill of a new prompt on an idle worker.")


def _of_first_arm(held: Held) -> pd.DataFrame:
    """Return the figures of disaggregated workers whose KV transfer costs time."""
    grid = _of(held, DISAGGREGATED)
    return grid[grid["arm"].isin(grid["arm"].head(1))]


@drawn("hardware-disaggregated", lambda held: _of(held, DISAGGREGATED), source=_source)
def grid_figure(held: Held) -> Drawing:
    """Draw ratios by input length and users, with the KV transfer that costs time."""
    grid = _of_first_arm(held)
    if grid.empty:
        return "No scenario is disaggregated."
    figure, panels = plt.subplots(1, 3, figsize=(WIDTH_IN, 2.9), sharey=True)
    for axes, (metric, of) in zip(panels, grid.groupby("metric", sort=False), strict=True):
        for (users, line), look in zip(of.groupby("users"), LOOKS, strict=False):
            axes.plot(line["tokens"], line["ratio"], look, color=INK,
                      label=counted(int(users), "user"))  # fmt: skip
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.set(title=METRICS[str(metric)], xscale="log", xlabel="input [tokens]")
        axes.set_xticks([*grid["tokens"].unique()])
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1024:g}k")
        axes.minorticks_off()
    panels[0].set_ylabel("simulated / measured")
    legend_below(figure, panels[0])
    alone, busy = grid[grid["users"] == 1], grid[grid["users"] == grid["users"].max()]
    output, ttft, itl = (
        _range(_ratios(*of)) for of in ((busy, OUTPUT), (alone, TTFT), (alone, ITL))
    )
    caption = (
        f"With {busy['users'].iloc[0]} users the simulated output is {output} of the measured, "
        f"with one user TTFT {ttft} and ITL {itl}. Median and range over the input lengths; "
        f"{held.scenarios[grid['scenario'].iloc[0]].title}."
    )
    return (
        figure,
        caption,
        "Three panels of ratios by input length, a line for each number of users.",
    )


# --- what it means -------------------------------------------------------------------------------


def _errors(held: Held) -> pd.DataFrame:
    """Return the errors that touch one side of the study's comparison more than the other.

    The baseline is aggregated behind round-robin; the comparison disaggregated behind KV routing.
    A time that is too short favours the side that spends it.
    """
    grid, stages = _of_first_arm(held), _of(held, STAGES)
    base, kv = (stages[stages["router"] == router] for router in ("round_robin", "kv"))
    gains = _gains(held)
    gained = pd.Series([gains[0].mean() / gains[1]] if gains else [], dtype=float)
    ttft, itl, load = "TTFT, good share", "ITL, good share", "load that is carried"
    lines = []
    for what, touches, spends, ratios in (
        ("prefill steps, which delay decoding in the baseline alone", itl, BASELINE,
         _of(held, IDLE)["ratio"]),
        ("ITL of disaggregated workers", itl, COMPARISON, _ratios(grid, ITL)),
        ("TTFT of disaggregated workers with one user", ttft, COMPARISON,
         _ratios(grid[grid["users"] == 1], TTFT)),
        ("ITL of aggregated workers", itl, BASELINE, _ratios(base, "itl_ms_mean")),
        ("TTFT below saturation behind round-robin", ttft, BASELINE,
         _ratios(base[base["measured"].str[0] < QUICK_MS], "ttft_ms_mean")),
        ("output behind round-robin", load, BASELINE, 1 / _ratios(base, OUTPUT)),
        ("mean TTFT behind KV routing", ttft, COMPARISON, _ratios(kv, "ttft_ms_mean")),
        ("output that KV routing gains", load, COMPARISON, gained),
    ):  # fmt: skip
        if len(ratios):
            other = COMPARISON if spends == BASELINE else BASELINE
            favours = spends if ratios.median() < 1 else other
            lines.append((what, touches, _range(ratios), favours))
    columns = ["error of", "touches", "time, simulated / measured", "favours"]
    return pd.DataFrame(lines, columns=columns)


@unless_missing(None)
def meaning_table(held: Held) -> Table:
    """Return for each error which headlines it touches, and whom it favours."""
    caption = (
        "Which side each error favours: a time that is too short favours the side that spends it. "
        "Output is given as the time for a token. Median and range."
    )
    return Table(_errors(held), caption, ("touches", "favours"))


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
    return Table(pd.DataFrame(lines), caption, ("found", "conditions and source"))


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
    favours = _errors(held)["favours"]
    count = (favours == BASELINE).sum()
    pushes = (
        f"{count} of {counted(len(favours), 'error')} favour the baseline, the others the "
        "comparison; no number in this book is corrected for them."
    )
    return "\n".join(f"- {text}" for text in (routing(held), pushes) if text)


# --- elsewhere -----------------------------------------------------------------------------------


@unless_missing("")
def band(held: Held) -> str:
    """Return in one sentence how far the simulator was from hardware."""
    parts = []
    for start, label in ((OUTPUT, "output"), (TTFT, "TTFT"), (ITL, "ITL")):
        ratios = _ratios(held.own, start)
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
    for step, of_step, values in (("prefill", _of(held, IDLE)["ratio"], grid.columns),
                                  ("decode", _ratios(held.own, ITL), grid.index)):  # fmt: skip
        if of_step.empty:
            return ""
        ratios = 1 / of_step.to_numpy()
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
