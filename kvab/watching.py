"""What a person sees while long work goes on: a live table in a terminal, else a line a change.

Input: how things stand. Output: standard error; nothing is kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

QUIET_S = 60.0
TERMINAL = "KVAB_TERMINAL"


class Display:
    """A table that is redrawn, or single lines where standard error is no terminal."""

    def __init__(self, title: str) -> None:
        self.console = Console(
            stderr=True, force_jupyter=False, force_terminal=_in_terminal(), highlight=False
        )
        self.title, self.start = title, time.monotonic()
        self.live: Live | None = None
        self.last, self.last_s = "", 0.0

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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


def tell_kernels() -> None:
    """Tell the kernels of notebooks started from here about the terminal, if this is one.

    What a kernel writes to standard error reaches it, but the kernel cannot see that.
    """
    os.environ[TERMINAL] = "1" if sys.stderr.isatty() else "0"
    if sys.stderr.isatty():
        size = shutil.get_terminal_size()
        os.environ.update(COLUMNS=str(size.columns), LINES=str(size.lines))


def _in_terminal() -> bool:
    told = os.environ.get(TERMINAL)
    return told == "1" if told else sys.stderr.isatty()
