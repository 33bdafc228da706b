"""What a person reads: progress of long work, numbers in words, texts of others without secrets.

Input: status, numbers, logs, command lines. Output: standard error, or text; nothing is kept.
"""

from __future__ import annotations

import re
import time

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

QUIET_S = 60.0


class Display:
    """A table that is redrawn, or single lines where standard error is no terminal."""

    def __init__(self, title: str) -> None:
        self.console = Console(stderr=True, force_jupyter=False, highlight=False)
        self.title, self.start = title, time.monotonic()
        self.live: Live | None = None
        self.last, self.last_s = "", 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, note: str, table: Table | None = None) -> None:
        """Show where things stand: the table where it can be redrawn, the note in any case."""
        passed_s = time.monotonic() - self.start
        line = f"{self.title}, {passed_s:.0f} s: {note}"
        if self.live:
            text = Text(line, overflow="ellipsis", no_wrap=True)
            self.live.update(Group(table, text) if table else text, refresh=True)
        elif note != self.last or passed_s - self.last_s > QUIET_S:
            self.console.print(line, soft_wrap=True, markup=False)
            self.last, self.last_s = note, passed_s


def progress_bar(unit: str) -> Progress:
    """Return a bar on standard error: how many of all, in which unit, and the time left."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))


VALUE = r"""(?:'[^'\n]*'|"(?:[^"\\\n]|\\.)*"|[^\s"',\]}\\]+)"""
SECRETS = re.compile(
    r"(?P<token>hf_[A-Za-z0-9]{8,})"  # of the Hugging Face hub
    r"""|(?P<scheme>(?i:bearer)\s+)[^\s"',\\]+"""
    # An argument as a shell, JSON or YAML writes it; its value stands in the next place.
    rf"""|(?P<option>(?<![\w-])(?:--api-key|--header|-H)["']?(?:\s*,\s*|=|\s+(?:-\s+)?)){VALUE}"""
    # A variable, assigned or as the name and value of a manifest.
    r"""|(?P<variable>(?:[A-Z0-9]+_)*(?:TOKEN|PASSWORD|SECRET|API_KEY|ACCESS_KEY)"""
    rf"""(?:=|["']?,?\s*["']?value["']?:\s*)){VALUE}"""
)


def mask(text: str) -> str:
    """Return a text with its secrets replaced by ``***``; what announces them stays."""

    def masked(secret: re.Match[str]) -> str:
        announced = secret["scheme"] or secret["option"] or secret["variable"] or ""
        value = secret[0][len(announced) :]
        quote = value[0] if value[:1] in ("'", '"') else ""
        return f"{announced}{quote}***{quote}"

    return SECRETS.sub(masked, text)


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
    decimals = _decimals(value) if decimals is None else decimals
    return f"{value:,.{decimals}f}".replace("-", "−")


def _decimals(value: float) -> int:
    return 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2


def change(first: float, second: float, decimals: int | None = None) -> tuple[str, str, str]:
    """Return two numbers and their difference as they are printed, so that the three add up.

    All have the decimals that the smallest asks for; the difference is that of the rounded numbers.

    Examples
    --------
    >>> change(62.26, 86.04, 1), change(2137.4, 1216.6)
    (('62.3', '86.0', '+23.7'), ('2,137', '1,217', '−920'))
    """
    if decimals is None:
        sizes = [size for size in (first, second, second - first) if size and np.isfinite(size)]
        decimals = max(map(_decimals, sizes), default=0)
    first, second = round(first, decimals), round(second, decimals)
    return number(first, decimals), number(second, decimals), signed(second - first, decimals)


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


def percent(share: float | None, decimals: int = 1) -> str:
    """Return a share of 1 in per cent; a dash where undefined."""
    return "–" if share is None or np.isnan(share) else f"{number(100 * share, decimals)} %"


def interval(low: float | None, high: float | None, factor: float = 1) -> str:
    """Return an interval in words, or why there is none."""
    if low is None or high is None or np.isnan(low) or np.isnan(high):
        return "no interval: too few blocks"
    bounds = f"{signed(factor * low, 1 if factor != 1 else None)} to "
    return bounds + signed(factor * high, 1 if factor != 1 else None)
