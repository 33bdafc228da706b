"""Tables as pages show them, and the table of one run; loaded without what draws.

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

TEXT = ' class="kvab-text"'


@dataclass(frozen=True)
class Table:
    """A table of finished text with its caption; shows itself in a notebook.

    The first column names the rows.
    """

    frame: pd.DataFrame
    caption: str = ""
    text_columns: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        marks = [TEXT * (name in self.text_columns) for name in self.frame.columns]
        head = _row(self.frame.columns, [f'th scope="col"{mark}' for mark in marks])
        cells = [f'th scope="row"{marks[0]}', *(f"td{mark}" for mark in marks[1:])]
        body = "".join(_row(row, cells) for row in self.frame.itertuples(index=False))
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        name = html.escape(self.caption.split(". ")[0] or ", ".join(self.frame.columns))
        return (
            f'<div class="kvab-table" role="region" tabindex="0" aria-label="{name}"><table>'
            f"{caption}<thead>{head}</thead><tbody>{body}</tbody></table></div>"
        )


def _row(values: Iterable[object], tags: list[str]) -> str:
    cells = (f"<{tag}>{html.escape(str(value))}</{tag[:2]}>"
             for value, tag in zip(values, tags, strict=True))  # fmt: skip
    return f"<tr>{''.join(cells)}</tr>"


def run_table(path: Path, slo: Slo) -> Table:
    """Return the metrics of one run folder."""
    lines = summary_lines(of_run(read_run(path)), slo)
    return Table(pd.DataFrame(lines, columns=["quantity", "value"]), path.name, ("quantity",))
