"""The look of every page: its notice and figures, and the mark of what is simulated.

Input: drawn figures. Output: what a notebook shows, fit for a phone.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from kvab.console import counted, plain
from kvab.pages.evidence import Evidence
from kvab.pages.printed import escaped, with_units
from kvab.study import Arm

Subject = TypeVar("Subject")
Shown = TypeVar("Shown")
Instead = TypeVar("Instead")
More = ParamSpec("More")
Drawing = tuple[Figure, str, str] | str

WIDTH_IN, PHONE_IN = 7.4, 3.4
SMALLEST_PT = 8.0  # at the width of a phone 11 pixels high
NAME_LENGTH, LINE_LENGTH = 16, 40  # characters of a name and of a line on a phone
LINE_IN = 0.15  # height of a line of text
GAP, LINE_PX = 1, 3  # pixels around a text; how far apart two on one line may be
GROWTHS, MOST_GROWTH = 2, 2.0  # how often a figure too low for its texts grows, and by how much
MANY_POINTS, IMAGE_DPI = 500, 200  # beyond as many, points are one image
PLAIN = FuncFormatter(lambda value, _: f"{value:,g}".replace("-", "\N{MINUS SIGN}"))
BASELINE, COMPARISON, GREY = "#0072B2", "#D55E00", "#767676"
RULE: Any = {"color": "#333333", "linewidth": 0.9}  # a line at zero or at a bound
EDGE = "#111111"  # of an outline on a map, whose colours are the same in the dark
STYLES = {
    "baseline": {"color": BASELINE, "linestyle": "-", "marker": "o"},
    "comparison": {"color": COMPARISON, "linestyle": "--", "marker": "s"},
}
ABLATIONS = (
    {"color": "#56A0C8", "linestyle": "-.", "marker": "^"},
    {"color": "#B8860B", "linestyle": ":", "marker": "D"},
)
THEME: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "axes.edgecolor": "#555555",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name may hold any sign
    "svg.fonttype": "none",  # text stays text
}
# Colours that the page's style changes in the dark: what they are called there, and as a text.
COLOURS = {
    "#000000": ("ink", "#000000"),
    "#333333": ("ink", "#333333"),
    "#555555": ("ink", "#555555"),
    "#ffffff": ("paper", ""),
    "#222222": ("failed", ""),
    "#e4e4e4": ("grid", ""),
    "#f0f0f0": ("grid", ""),
    "#767676": ("muted", "#6b6b6b"),
    "#8c8c8c": ("bars", ""),
    "#d9d9d9": ("good", ""),
    "#0072b2": ("baseline", "#0072b2"),
    "#d55e00": ("comparison", "#b34f00"),
    "#56a0c8": ("other", "#2b7199"),
    "#b8860b": ("another", "#8a6400"),
}
DROPPED = {  # of an SVG, what a page has itself or has no use for
    r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|<!--.*?-->": "",
    r' width="[^"]*pt" height="[^"]*pt"| version="1.1"': "",
    r';? font-family: [^;"]*': "",
    r' transform="rotate\(-0 [^"]*"': "",
    r"<g id=[^>]*/>": "",
    r"<g id=[^>]*>": "<g>",
    r"\s*\n\s*": " ",
}
WIDE, PHONE = 'class="kvab-wide"', 'class="kvab-phone" style="display: none"'
KINDS = {
    "simulated": "simulated, not measured",
    "live": "live on CPUs, engines mocked",
    "kubernetes": "measured",
    "imported": "imported",
}


# --- texts -------------------------------------------------------------------------------------


def markdown(text: str) -> Markdown | None:
    """Return a text for a notebook to show; an empty one leaves nothing instead of a box."""
    return Markdown(with_units(text)) if text else None  # type: ignore[no-untyped-call]


def unless_missing(
    instead: Instead,
) -> Callable[
    [Callable[Concatenate[Subject, More], Shown]],
    Callable[Concatenate[Subject | None, More], Shown | Instead],
]:
    """Return a decorator: where there is no subject (None), such as a sweep, show ``instead``."""

    def decorate(
        show: Callable[Concatenate[Subject, More], Shown],
    ) -> Callable[Concatenate[Subject | None, More], Shown | Instead]:
        @functools.wraps(show)
        def shown(
            subject: Subject | None, /, *args: More.args, **more: More.kwargs
        ) -> Shown | Instead:
            return instead if subject is None else show(subject, *args, **more)

        return shown

    return decorate


def banner(evidence: Evidence) -> str:
    """Return the notice on top of a page: what kind of numbers follow."""
    trace, cluster = evidence.manifest.trace, evidence.manifest.cluster
    rows = "" if trace.rows == trace.total_rows else f" (the first {trace.rows:,} requests)"
    what = f"{plain(cluster['description'])}, replaying {plain(trace.name)}{rows}."
    if trace.sha256 != evidence.study.trace.sha256:
        what += " **This is not the study's own trace.**"
    if evidence.synthetic:
        what += " **GENERATED WORKLOAD: the requests are generated.**"
    what += unequal(evidence.arms, evidence.gpus)
    if evidence.simulated:
        return f":::{{admonition}} Simulated, not measured\n:class: important\n{what}\n:::"
    return f":::{{note}}\n{what}\n:::"


def unequal(arms: dict[str, Arm], gpus: dict[str, int]) -> str:
    """Return that configurations fill different numbers of GPUs; nothing where they do not."""
    if len(set(gpus.values())) < 2:
        return ""
    counts = ", ".join(f"{arms[name].label} {count}" for name, count in gpus.items())
    return (
        f" **Unequal hardware: the configurations fill different numbers of GPUs ({counts}).** "
        "Goodput and load are compared per GPU; good shares and latencies are those of one load "
        "on all of them."
    )


def origin(evidence: Any, runs: bool = True) -> str:
    """Return the mark that a figure carries: simulated, generated workload, or nothing."""
    marks = ["SIMULATED"] * (evidence.simulated and runs)
    return " · ".join(marks + ["GENERATED WORKLOAD"] * evidence.synthetic)


def source(evidence: Evidence, runs: bool = True) -> str:
    """Return where a figure's data come from, for the end of its caption."""
    trace = evidence.manifest.trace
    kind = KINDS[evidence.manifest.kind]
    if not runs:
        kind = "GENERATED WORKLOAD" if evidence.synthetic else "a recorded trace"
        return f"Source: {trace.name}, {counted(trace.total_rows, 'request')}; {kind}."
    synthetic = " GENERATED WORKLOAD." if evidence.synthetic else ""
    return (
        f"Source: {evidence.cluster}, {counted(evidence.repeats, 'replay')} of "
        f"{counted(trace.rows, 'request')} for "
        f"each configuration; {kind}.{synthetic}"
    )


# --- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A drawn figure, wide and for a phone, with what must stand beside it; shows itself."""

    key: str
    svg: str
    phone: str
    caption: str
    alt: str
    csv: bytes

    def _repr_html_(self) -> str:
        if not self.svg:
            return f"<p>{escaped(self.caption)}</p>"
        table = base64.b64encode(self.csv).decode()
        return (
            f'<figure class="kvab-figure" id="fig-{self.key}">'
            f"{_labelled(self.svg, WIDE, self.alt)}{_labelled(self.phone, PHONE, self.alt)}"
            f"<figcaption>{escaped(self.caption)} "
            f'<a class="kvab-data" download="{self.key}.csv" href="data:text/csv;base64,{table}">'
            "Data (CSV)</a></figcaption></figure>"
        )


def _labelled(svg: str, attributes: str, alt: str) -> str:
    label = html.escape(alt, quote=True)
    return svg.replace("<svg", f'<svg {attributes} role="img" aria-label="{label}"', 1)


def drawn(
    key: str,
    data: Callable[[Any], pd.DataFrame],
    *,
    runs: bool = True,
    source: Callable[[Any, bool], str] = source,
) -> Callable[[Callable[[Subject], Drawing]], Callable[[Subject | None], Panel | None]]:
    """Return a decorator that draws a figure under the theme and returns its panel.

    What is simulated is marked. The decorated function returns the figure, its caption and its
    alternative text, or one text: why there is nothing to draw. Of nothing (None) nothing is drawn.

    Parameters
    ----------
    key : str
        Name of the figure, its anchor and its data: page and what it shows.
    data : callable
        Returns the table that the figure shows, which readers can download.
    runs : bool
        False for a figure of the workload alone, in which nothing is simulated.
    source : callable
        Returns where the data come from, if not from the evidence.
    """

    def decorate(draw: Callable[[Subject], Drawing]) -> Callable[[Subject | None], Panel | None]:
        @unless_missing(None)
        @functools.wraps(draw)
        def panel(subject: Subject) -> Panel:
            with mpl.rc_context(THEME):
                drawing = draw(subject)
                if isinstance(drawing, str):
                    return Panel(key, "", "", drawing, "", b"")
                figure, caption, alt = drawing
                if mark := origin(subject, runs):
                    figure.text(1, 1, mark, ha="right", va="top", color=GREY)
                svg = _svg(figure, key)
                _reflow(figure)
                phone = _svg(figure, f"{key}-phone")
                plt.close(figure)
            table = data(subject)
            table = table.reset_index([name for name in table.index.names if name])
            csv = table.to_csv(index=False, float_format="%.7g").encode()
            return Panel(key, svg, phone, f"{caption} {source(subject, runs)}", alt, csv)

        return panel

    return decorate


def _svg(figure: Figure, key: str) -> str:
    """Return a figure as a part of a page, whose style colours it; its ids are of its key."""
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)  # the theme's
    if figure.texts:  # room for the mark
        engine.set(rect=(0, 0, 1, 1 - LINE_IN / figure.get_figheight()))
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), ScalarFormatter | LogFormatter):
            axis.set_major_formatter(PLAIN)
    for text in figure.findobj(Text):
        text.set_fontsize(max(text.get_fontsize(), SMALLEST_PT))
    for points in figure.findobj(PathCollection):
        points.set_rasterized(len(np.asarray(points.get_offsets())) > MANY_POINTS)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(
            buffer, format="svg", dpi=IMAGE_DPI, transparent=True, metadata={"Date": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for dropped, instead in DROPPED.items():
        svg = re.sub(dropped, instead, svg, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", _coloured, svg)


def alone(svg: str) -> str:
    """Return a picture to stand without a page, on paper and with the colours of the light."""
    svg = re.sub(r"var\(--kvab-[\w-]+, (#\w+)\)", r"\1", svg)
    return svg.replace("<svg", '<svg style="background: #fff; font-family: sans-serif"', 1)


def _coloured(tag: re.Match[str]) -> str:
    """Return a tag of an SVG, its numbers rounded, with colours that the page's style changes."""
    text = tag[0].startswith("<text")

    def variable(colour: re.Match[str]) -> str:
        name, of_text = COLOURS.get(colour[0], ("", ""))
        if not name or (text and not of_text):
            return colour[0]
        return f"var(--kvab-{name}{'-text' * text}, {of_text if text else colour[0]})"

    return re.sub(r"#[0-9a-f]{6}\b", variable, re.sub(r"(\.\d\d)\d+", r"\1", tag[0]))


def _reflow(figure: Figure) -> None:
    """Make a drawn figure fit a phone: panels below each other, no text over another."""
    panels = [axes for axes in figure.axes if axes.get_subplotspec()]
    rows, columns = panels[0].get_gridspec().get_geometry()  # type: ignore[union-attr]
    grid = GridSpec(len(panels), 1, figure)
    for n, axes in enumerate(panels):
        if columns > 1:
            axes.set_subplotspec(grid[n])
            axes.tick_params(labelleft=True)
        names = [label.get_text() for label in axes.get_yticklabels()]
        if max(map(len, names), default=0) > NAME_LENGTH:
            axes.set_yticks(axes.get_yticks(), [textwrap.fill(name, NAME_LENGTH) for name in names])
        axes.set_xlabel(textwrap.fill(axes.get_xlabel(), LINE_LENGTH))
    stacked = len(panels) / rows if columns > 1 else 1
    figure.set_size_inches(PHONE_IN, figure.get_figheight() * stacked)
    for legend in [*figure.legends]:
        names = [text.get_text() for text in legend.get_texts()]
        figure.set_figheight(figure.get_figheight() + LINE_IN * len(names))
        handles = [handle for handle in legend.legend_handles if handle]
        figure.legend(handles, names, loc="outside lower left", frameon=False)
        legend.remove()
    figure.draw_without_rendering()
    for axes in panels:
        pairs = itertools.combinations(_boxes(_labels(axes.xaxis)), 2)
        if any(one.overlaps(other) for one, other in pairs):
            axes.tick_params(axis="x", labelrotation=90)
    for _ in range(GROWTHS):
        figure.draw_without_rendering()
        crowding = max(_crowding(_boxes([*_labels(a.yaxis), *a.texts])) for a in panels)
        figure.set_figheight(figure.get_figheight() * crowding)


def _labels(axis: Axis) -> list[Text]:
    """Return the labels of an axis that are in view."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]


def _boxes(texts: Iterable[Text]) -> list[Bbox]:
    """Return where the texts of a drawn figure lie."""
    return [text.get_window_extent().padded(GAP) for text in texts if text.get_text()]


def _crowding(boxes: list[Bbox]) -> float:
    """Return by how much boxes above each other must part not to overlap: 1 where they do not."""
    factors = [1.0]
    for one, other in itertools.combinations(boxes, 2):
        apart = abs(one.y0 + one.y1 - other.y0 - other.y1) / 2
        if one.overlaps(other) and apart > LINE_PX:  # what stands on one line no height parts
            factors.append((one.height + other.height) / 2 / apart)
    return min(max(factors), MOST_GROWTH)


def arm_styles(arms: dict[str, Arm]) -> dict[str, dict[str, Any]]:
    """Return colour, line and marker of each configuration; roles keep theirs everywhere."""
    ablations = itertools.cycle(ABLATIONS)
    return {name: STYLES.get(arm.role) or next(ablations) for name, arm in arms.items()}


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend for all panels below them."""
    handles, labels = axes.get_legend_handles_labels()
    if legend := axes.get_legend():
        legend.remove()
    fitting = sum(map(len, labels)) + 8 * len(labels) < 122  # the width of a figure
    columns = len(labels) if fitting else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
