"""A table as a page shows it, and what a page says where there is nothing to say.

Input: tables of finished text. Output: HTML that fits a phone.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from IPython.display import Markdown


def unless_missing(instead: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function say ``instead`` of nothing (None), such as a sweep that nobody replayed."""

    def decorate(say: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(say)
        def said(of: Any, *more: Any) -> Any:
            return instead if of is None else say(of, *more)

        return said

    return decorate


@dataclass(frozen=True)
class Table:
    """A table of finished text with its caption; shows itself in a notebook."""

    frame: pd.DataFrame
    caption: str = ""
    text_columns: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        styled = self.frame.style.format(escape="html").set_caption(html.escape(self.caption))
        classes = pd.DataFrame("", index=self.frame.index, columns=self.frame.columns)
        classes[list(self.text_columns)] = "kvab-text"
        if isinstance(self.frame.index, pd.RangeIndex):
            styled = styled.hide(axis="index")
        styled = styled.format_index(escape="html", axis="columns").format_index(escape="html")
        styled = styled.set_td_classes(classes).apply_index(self._header, axis="columns")
        name = html.escape(self.caption.split(". ")[0] or "Table", quote=True)
        region = f'class="kvab-table" role="region" tabindex="0" aria-label="{name}"'
        return f"<div {region}>{styled.to_html(table_uuid='kvab')}</div>"

    def _header(self, names: pd.Index) -> list[str]:
        return ["text-align: left" if name in self.text_columns else "" for name in names]


def markdown(text: str) -> Markdown | None:
    """Return a text for a notebook to show; an empty one leaves nothing instead of a box."""
    return Markdown(text) if text else None  # type: ignore[no-untyped-call]
