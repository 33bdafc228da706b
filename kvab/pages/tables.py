"""Tables as pages show them, and page 03's of one run; loaded without what draws.

Input: tables of finished text, a run folder. Output: what a notebook shows, fit for a phone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kvab.pages.printed import summary_lines
from kvab.runs.folder import read_run
from kvab.runs.sources import of_run
from kvab.study import Slo

LEFT, TEXT = ' style="text-align: left"', ' class="kvab-text"'


@dataclass(frozen=True)
class Table:
    """A table of finished text with its caption; shows itself in a notebook."""

    frame: pd.DataFrame
    caption: str = ""
    text_columns: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        text = [name in self.text_columns for name in self.frame.columns]
        head = _row("th", self.frame.columns, [LEFT if each else "" for each in text])
        marks = [TEXT if each else "" for each in text]
        body = "".join(_row("td", row, marks) for row in self.frame.itertuples(index=False))
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        name = html.escape(self.caption.split(". ")[0] or "Table")
        return (
            f'<div class="kvab-table" role="region" tabindex="0" aria-label="{name}"><table>'
            f"{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>"
        )


def _row(tag: str, values: Iterable[object], marks: list[str]) -> str:
    cells = zip(values, marks, strict=True)
    row = "".join(f"<{tag}{mark}>{html.escape(str(value))}</{tag}>" for value, mark in cells)
    return f"<tr>{row}</tr>"


def run_table(path: Path, slo: Slo) -> Table:
    """Return the metrics of one run folder."""
    lines = summary_lines(of_run(read_run(path)), slo)
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), path.name, ("quantity",))
