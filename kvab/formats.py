"""How numbers and tables are written, on every page alike.

Input: numbers and tables. Output: text, and HTML that fits a phone.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from IPython.display import Markdown

ACTIVE = re.compile(r"[\\`*_\[\]<>{}|~$&]")  # what Markdown, HTML and MyST read as more than text


def plain(text: object) -> str:
    r"""Return a text that others wrote for a place in Markdown where it stands as it is.

    Examples
    --------
    >>> print(plain("a [link](x)\n<b>"))
    a \[link\](x) \<b\>
    """
    return ACTIVE.sub(r"\\\g<0>", " ".join(str(text).split()))


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number with thousands separated and a minus sign; a dash where undefined.

    Examples
    --------
    >>> number(-867.4), number(17.72), number(None)
    ('−867', '17.7', '–')
    """
    if value is None or np.isnan(value):
        return "–"
    if decimals is None:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float | None, decimals: int | None = None) -> str:
    """Return a difference with its sign."""
    return ("+" if value is not None and value > 0 else "") + number(value, decimals)


def counted(count: int, thing: str) -> str:
    """Return a number of things, in the singular where it is one.

    Examples
    --------
    >>> counted(1, "replay"), counted(1200, "replay")
    ('1 replay', '1,200 replays')
    """
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def span(seconds: float) -> str:
    """Return a length of time as one would say it.

    Examples
    --------
    >>> span(3536), span(262), span(40)
    ('59 minutes', '4.4 minutes', '40 seconds')
    """
    if seconds < 90:
        return counted(round(seconds), "second")
    return f"{number(seconds / 60, 0 if seconds >= 600 else 1)} minutes"


def markdown(text: str) -> Markdown | None:
    """Return a text for a notebook to show; an empty one leaves nothing instead of a box."""
    from IPython.display import Markdown  # which the command line does without

    return Markdown(text) if text else None  # type: ignore[no-untyped-call]


def percent(share: float | None, decimals: int = 1) -> str:
    """Return a share of 1 in per cent; a dash where undefined."""
    return "–" if share is None or np.isnan(share) else f"{number(100 * share, decimals)} %"


def interval(
    low: float | None, high: float | None, factor: float = 1, *, none: str = "too few blocks"
) -> str:
    """Return an interval in words, or why there is none."""
    if low is None or high is None:
        return f"no interval: {none}"
    bounds = f"{signed(factor * low, 1 if factor != 1 else None)} to "
    return bounds + signed(factor * high, 1 if factor != 1 else None)


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
