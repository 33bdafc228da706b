"""Page 13: which configuration at your bounds and load: maps, and an explorer that works offline.

Input: a sweep judged at a grid of bounds. Output: the static maps, and the explorer: native sliders
whose script (``bounds.js``) reads the counts from the page itself; plotly draws for it.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from kvab.console import percent
from kvab.pages.capacity import provenance as of_sweep
from kvab.pages.capacity import source
from kvab.pages.theme import COLOURS, WIDTH_IN, Drawing, arm_styles, drawn, unless_missing
from kvab.runs.bounds import Bounds
from kvab.stats.crossings import GOOD_REQUEST, GOOD_TOKEN

PLOTLY = "_static/plotly.min.js"  # written into the book when it is built
SHOWN = 6  # loads of a map
MOST_GOOD = "keeps most requests good"
CHEAPEST_TOKENS = "has the cheapest output tokens of good requests"
LABELS = {"load": "Load", "ttft_ms": "First token within", "itl_ms": "Next ones within, each"}
HEADS = ("configuration", "good requests", "workload interval [%]",
         "GPU-hours for 1,000 good", "dollars for 1M good output tokens")  # fmt: skip
NO_BOUNDS = (
    ":::{note}\nNo sweep of this study was judged at other bounds yet: run `kvab capacity`.\n:::"
)


def _source(bounds: Bounds, runs: bool = True) -> str:
    """Return where a figure's data come from: the sweep."""
    return source(bounds.swept, runs)


@unless_missing(NO_BOUNDS)
def provenance(bounds: Bounds) -> str:
    """Return the notice on top of the page: that of the sweep, and what dollars assume."""
    swept = bounds.swept
    price = swept.declared(swept.study).gpu_dollars_per_hour
    cost = (
        f"\n\nDollars assume {price:g} an hour for each GPU, as study.yaml says." if price else ""
    )
    return of_sweep(swept) + cost


def _leaders(leads: pd.DataFrame) -> pd.DataFrame:
    """Return who leads at each point of the grid: ``best``, ``sure`` (beyond noise)."""
    ahead = leads["margin"] > 0
    return pd.DataFrame({"best": leads["best"].where(ahead), "sure": ahead & (leads["low"] > 0)})


def _loads(bounds: Bounds) -> list[float]:
    """Return the loads of the map: the trace's own, the ends, and some between."""
    loads = bounds.grid["load"]
    at = np.unique(np.linspace(0, len(loads) - 1, SHOWN).round().astype(int))
    return sorted({*(loads[n] for n in at), 1.0} & {*loads})


@drawn("bounds-map", lambda b: b.best, source=_source)
def map_figure(bounds: Bounds) -> Drawing:
    """Who keeps most requests good, by both bounds: a panel for each of some loads."""
    return _maps(bounds, bounds.leads, MOST_GOOD)


@drawn("bounds-tokens", lambda b: b.cheapest(GOOD_TOKEN).reset_index(), source=_source)
def tokens_map(bounds: Bounds) -> Drawing:
    """Whose output tokens of good requests cost least, in the same way."""
    return _maps(bounds, bounds.cheapest(GOOD_TOKEN), CHEAPEST_TOKENS)


def _maps(bounds: Bounds, leads: pd.DataFrame, what: str) -> Drawing:
    loads, leaders = _loads(bounds), _leaders(leads)
    columns = 3 if len(loads) > 4 else 2
    rows = -(-len(loads) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, 0.4 + 2.3 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axes in panels.flat[len(loads) :]:
        axes.remove()
    for axes, load in zip(panels.flat, loads, strict=False):
        _panel(axes, bounds, leaders.loc[load])
        axes.set_title(f"load {load:g}x")
    for axes in panels[-1]:
        axes.set_xlabel("TTFT within [ms]")
    for axes in panels[:, 0]:
        axes.set_ylabel("ITL within [ms]")
    letters = ", ".join(f"{arm.short}: {arm.label}" for arm in bounds.swept.arms.values())
    caption = (
        f"{lead(bounds, 1.0 if 1.0 in loads else loads[0], leads, what)} Each field is a pair of "
        f"bounds, its colour the configuration that leads there ({letters}); faint where the lead "
        "is within noise, empty on a tie."
    )
    return figure, caption, f"Small maps of bounds, one for each load. {caption}"


def _panel(axes: Axes, bounds: Bounds, leaders: pd.DataFrame) -> None:
    """Draw who leads at one load."""
    arms, grid = bounds.swept.arms, bounds.grid
    styles = arm_styles(arms)
    number = {name: n for n, name in enumerate(arms)}
    best = leaders["best"].map(number).unstack("ttft_ms")
    sure = leaders["sure"].unstack("ttft_ms")
    axes.imshow(
        best, origin="lower", aspect="auto", vmin=-0.5, vmax=len(arms) - 0.5,
        cmap=ListedColormap([styles[name]["color"] for name in arms]),
        alpha=np.where(sure, 0.85, 0.3),
    )  # fmt: skip
    for name, n in number.items():
        at = np.argwhere(best.to_numpy() == n)
        if len(at):
            y, x = at[np.abs(at - np.median(at, axis=0)).sum(axis=1).argmin()]
            axes.text(
                x, y, arms[name].short, ha="center", va="center", fontsize=8, fontweight="bold",
                bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
            )  # fmt: skip
    for ticks, key in ((axes.set_xticks, "ttft_ms"), (axes.set_yticks, "itl_ms")):
        ticks(range(0, len(grid[key]), 3), [f"{value:g}" for value in grid[key][::3]])
    axes.grid(visible=False)


def lead(bounds: Bounds, load: float, leads: pd.DataFrame, what: str) -> str:
    """Return at how many pairs of bounds each configuration leads at a load, the most first."""
    leaders, arms = _leaders(leads).loc[load], bounds.swept.arms
    ahead = leaders.groupby("best")["sure"].agg(["size", "sum"]).sort_values("size")[::-1]
    clauses = [f"{arms[str(name)].label} at {of['size']} ({of['sum']} beyond noise)"
               for name, of in ahead.iterrows()]  # fmt: skip
    text = f"Who {what}, of {len(leaders)} pairs of bounds at load {load:g}: {', '.join(clauses)}."
    if what == MOST_GOOD:
        return text
    saved = leads.loc[load, "margin"]
    return (
        f"{text} That is {percent(saved.median())} less than with the next one at the median "
        f"pair, {percent(saved.max())} at most."
    )


@unless_missing("")
def same_leader(bounds: Bounds) -> str:
    """Return how often the share of good requests and each cost have the same leader, and why."""
    most = _leaders(bounds.leads)["best"]
    costs = {per: _leaders(bounds.cheapest(per))["best"] for per in (GOOD_REQUEST, GOOD_TOKEN)}
    same = {per: percent((most == least)[most.notna() & least.notna()].mean(), 1)
            for per, least in costs.items()}  # fmt: skip
    hours = pd.Series(bounds.gpu_hours).groupby(level=0)
    longest = (hours.max() / hours.min() - 1).max()
    return (
        f"At {same[GOOD_REQUEST]} of all points with a lead, whoever keeps most requests good also "
        "takes the fewest GPU-hours for each: at one load no configuration takes more than "
        f"{percent(longest)} more GPU-hours than another. The cheapest good output tokens have the "
        f"same leader at {same[GOOD_TOKEN]}."
    )


@unless_missing("")
def lesson(bounds: Bounds) -> str:
    """Return what the maps say of the lowest load, the trace's own, and the highest."""
    loads = bounds.grid["load"]
    shown = sorted({loads[0], 1.0, loads[-1]} & {*loads})
    lines = [lead(bounds, load, bounds.leads, MOST_GOOD) for load in shown]
    return "\n".join(f"- {line}" for line in [*lines, same_leader(bounds)])


@dataclass(frozen=True)
class Explorer:
    """The explorer, which shows itself in a notebook; without scripts nothing of it is seen.

    ``data`` holds what each workload's sweep says; the first is shown first.
    """

    data: list[dict[str, Any]]

    def _repr_html_(self) -> str:
        content = json.dumps(self.data, separators=(",", ":")).replace("</", "<\\/")
        heads = "".join(f'<th scope="col">{head}</th>' for head in HEADS)
        names = "".join(f"<option>{of['workload']}</option>" for of in self.data)
        sliders = "".join(
            f'<label>{label}: <output name="{key}"></output>'
            f'<input type="range" name="{key}" min="0"></label>'
            for key, label in LABELS.items()
        )
        script = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
        return (
            '<section id="kvab-explorer" aria-label="Explorer of bounds and load" hidden>'
            f"<label>Workload: <select>{names}</select></label>{sliders}"
            '<p aria-live="polite"></p><div class="kvab-table" role="region" tabindex="0" '
            f'aria-label="Configurations at these bounds"><table><thead><tr>{heads}</tr></thead>'
            '<tbody></tbody></table></div><div class="kvab-bars" aria-hidden="true"></div>'
            "<p>Who leads at this load, by both bounds; the ring is where the sliders stand.</p>"
            '<div class="kvab-map" aria-hidden="true"></div></section>'
            f'<script type="application/json" id="kvab-bounds">{content}</script>'
            f'<script src="{PLOTLY}" defer></script><script>{script}</script>'
        )


def explorer(every: list[Bounds]) -> Explorer | None:
    """Return the explorer of workloads, which begins at the study's own bounds and load."""
    return Explorer([*map(_explored, every)]) if every else None


def _explored(bounds: Bounds) -> dict[str, Any]:
    swept, grid = bounds.swept, bounds.grid
    names = [*swept.arms]
    styles = arm_styles(swept.arms)
    shares = bounds.shares.reindex(
        pd.MultiIndex.from_product([*grid.values(), names], names=bounds.shares.index.names)
    )
    leads = bounds.leads
    start = {"load": 1.0, "ttft_ms": swept.study.slo.ttft_ms, "itl_ms": swept.study.slo.itl_ms}
    return {
        "workload": swept.study.workload,
        "grid": grid,
        "arms": [{"label": html.escape(swept.arms[n].label), "color": styles[n]["color"],
                  "name": COLOURS[styles[n]["color"].lower()][0]} for n in names],
        "start": {key: int(np.searchsorted(grid[key], value, side="right")) - 1
                  for key, value in start.items()},
        "requests": int(shares["requests"].iloc[0]),
        "good": shares["good"].tolist(),
        "tokens": shares["good_output_tokens"].tolist(),
        "low": _tenths(shares["low"]),
        "high": _tenths(shares["high"]),
        "leads": [*zip(
            (names.index(name) for name in leads["best"]),
            (names.index(name) for name in leads["next"]),
            *(_exact(leads[key]) for key in ("margin", "low", "high")), strict=True)],
        "hours": [bounds.gpu_hours[load, name] for load in grid["load"] for name in names],
        "price": swept.declared(swept.study).gpu_dollars_per_hour,
        "level": swept.study.statistics.percent,
    }  # fmt: skip


def _exact(shares: pd.Series) -> list[float | None]:
    """Return shares in points, unrounded: a lead of 0.01 points still has its sign."""
    return [None if np.isnan(value) else float(f"{100 * float(value):.6g}") for value in shares]


def _tenths(shares: pd.Series) -> list[int | None]:
    """Return shares in tenths of a point, the digit that is printed: whole numbers are short."""
    return [
        None if np.isnan(value) else round(10 * round(100 * float(value), 1)) for value in shares
    ]
