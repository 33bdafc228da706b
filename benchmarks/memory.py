"""Memory over time of this process and of all that it starts.

Input: nothing. Output: pairs of seconds and gigabytes, twice a second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import psutil

EVERY_S = 0.5


@contextlib.contextmanager
def over_time(own: bool = True) -> Iterator[list[list[float]]]:
    """Give a list that grows by [seconds, GB] until the end; what processes share counts once.

    Without ``own`` only what this process starts is counted.
    """
    told: list[list[float]] = []
    done, this, start = threading.Event(), psutil.Process(), time.perf_counter()

    def look() -> None:
        while not done.wait(EVERY_S):
            held = 0
            for each in [this] * own + this.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it may end meanwhile
                    held += each.memory_full_info().pss
            told.append([round(time.perf_counter() - start, 2), round(held / 1e9, 4)])

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        done.set()
        thread.join()
