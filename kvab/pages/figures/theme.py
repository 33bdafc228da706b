"""The look of every figure, and the panel that a notebook shows it in.

Input: a drawn figure. Output: SVG with caption and alternative text.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from kvab.pages.wording import captions
from kvab.study import Arm

WIDTH_IN = 7.4
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
Drawing = tuple[Figure, str, str] | str
BASELINE, COMPARISON, GREY = "#0072B2", "#D55E00", "#767676"
STYLES = {
    "baseline": {"color": BASELINE, "linestyle": "-", "marker": "o"},
    "comparison": {"color": COMPARISON, "linestyle": "--", "marker": "s"},
}
ABLATIONS = (
    {"color": "#56A0C8", "linestyle": "-.", "marker": "^"},
    {"color": "#B8860B", "linestyle": ":", "marker": "D"},
)


def arm_styles(arms: dict[str, Arm]) -> dict[str, dict[str, str]]:
    """Return colour, line and marker of each configuration; roles keep theirs everywhere."""
    ablations = itertools.cycle(ABLATIONS)
    return {name: STYLES.get(arm.role) or next(ablations) for name, arm in arms.items()}


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
        image, table = (base64.b64encode(each).decode() for each in (self.svg, self.csv))
        return (
            f'<figure class="kvab-figure" id="fig-{self.key}">'
            f'<img src="data:image/svg+xml;base64,{image}" alt="{html.escape(self.alt, True)}">'
            f"<figcaption>{html.escape(self.caption)} "
            f'<a class="kvab-data" download="{self.key}.csv" href="data:text/csv;base64,{table}">'
            "Data (CSV)</a></figcaption></figure>"
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


def drawn(
    key: str,
    data: Callable[[Any], pd.DataFrame],
    *,
    runs: bool = True,
    source: Callable[..., str] = captions.source,
) -> Callable[[Callable[[Any], Drawing]], Callable[[Any], Panel | None]]:
    """Draw a figure under the theme, mark what is simulated, and return its panel.

    ``data`` returns the table that the figure shows, which readers can download.
    ``runs`` is False for a figure of the workload alone, in which nothing is simulated; ``source``
    says where the data come from, if not from the evidence.
    Of nothing (None) nothing is drawn. The decorated function returns the figure, its caption and
    its alternative text, or one text: why there is nothing to draw.
    """

    def decorate(draw: Callable[[Any], Drawing]) -> Callable[[Any], Panel | None]:
        @functools.wraps(draw)
        def panel(evidence: Any) -> Panel | None:
            if evidence is None:
                return None
            with mpl.rc_context(THEME):
                drawing = draw(evidence)
                if isinstance(drawing, str):
                    return Panel(key, b"", drawing, "", b"")
                figure, caption, alt = drawing
                mark = captions.origin(evidence, runs)
                figure.text(0.995, 0.995, mark, ha="right", va="top", fontsize=7, color=GREY)
                engine = figure.get_layout_engine()
                assert isinstance(engine, ConstrainedLayoutEngine)  # the theme's
                engine.set(rect=(0, 0, 1, 0.955))
                buffer = io.BytesIO()
                figure.savefig(buffer, format="svg", metadata={"Date": None})
                plt.close(figure)
            table, said = data(evidence), f"{caption} {source(evidence, runs)}"
            table = table.reset_index([name for name in table.index.names if name])
            csv = table.to_csv(index=False, float_format="%.7g").encode()
            return Panel(key, buffer.getvalue(), said, alt, csv)

        return panel

    return decorate


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
