"""The look of every page: its notice and figures, and the mark of what is simulated.

Input: drawn figures. Output: what a notebook shows, fit for a phone.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from kvab.console import counted, plain
from kvab.pages.evidence import Evidence
from kvab.study import Arm

Subject = TypeVar("Subject")
Shown = TypeVar("Shown")
Instead = TypeVar("Instead")
More = ParamSpec("More")
Drawing = tuple[Figure, str, str] | str

WIDTH_IN = 7.4
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
BASELINE, COMPARISON, GREY = "#0072B2", "#D55E00", "#767676"
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
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
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
    "svg.hashsalt": "kvab",
}
KINDS = {
    "simulated": "simulated, not measured",
    "live": "live on CPUs, engines mocked",
    "kubernetes": "measured",
    "imported": "imported",
}


# --- texts -------------------------------------------------------------------------------------


def markdown(text: str) -> Markdown | None:
    """Return a text for a notebook to show; an empty one leaves nothing instead of a box."""
    return Markdown(text) if text else None  # type: ignore[no-untyped-call]


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
    """A drawn figure with what must stand beside it; shows itself in a notebook."""

    key: str
    svg: bytes
    caption: str
    alt: str
    csv: bytes

    def _repr_html_(self) -> str:
        if not self.svg:
            return f"<p>{html.escape(self.caption)}</p>"
        image, table = (base64.b64encode(content).decode() for content in (self.svg, self.csv))
        return (
            f'<figure class="kvab-figure" id="fig-{self.key}">'
            f'<img src="data:image/svg+xml;base64,{image}" alt="{html.escape(self.alt, True)}">'
            f"<figcaption>{html.escape(self.caption)} "
            f'<a class="kvab-data" download="{self.key}.csv" href="data:text/csv;base64,{table}">'
            "Data (CSV)</a></figcaption></figure>"
        )


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
                    return Panel(key, b"", drawing, "", b"")
                figure, caption, alt = drawing
                mark = origin(subject, runs)
                figure.text(0.995, 0.995, mark, ha="right", va="top", fontsize=7, color=GREY)
                engine = figure.get_layout_engine()
                assert isinstance(engine, ConstrainedLayoutEngine)  # the theme's
                engine.set(rect=(0, 0, 1, 0.955))
                buffer = io.BytesIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None})
                plt.close(figure)
            table = data(subject)
            table = table.reset_index([name for name in table.index.names if name])
            csv = table.to_csv(index=False, float_format="%.7g").encode()
            return Panel(key, buffer.getvalue(), f"{caption} {source(subject, runs)}", alt, csv)

        return panel

    return decorate


def arm_styles(arms: dict[str, Arm]) -> dict[str, dict[str, str]]:
    """Return colour, line and marker of each configuration; roles keep theirs everywhere."""
    ablations = itertools.cycle(ABLATIONS)
    return {name: STYLES.get(arm.role) or next(ablations) for name, arm in arms.items()}


def log_ms(axes: Axes, label: str) -> None:
    """Make the x axis logarithmic, in milliseconds, with plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(PLAIN)
    axes.set_xlabel(f"{label} [ms, log scale]")


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put one legend for all panels below them."""
    handles, labels = axes.get_legend_handles_labels()
    if legend := axes.get_legend():
        legend.remove()
    columns = 4 if sum(map(len, labels)) < 90 else 2  # what fits the width of a figure
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
