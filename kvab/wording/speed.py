"""What the benchmarks say, in sentences.

Input: what the benchmarks measured. Output: Markdown.
"""

from __future__ import annotations

import pandas as pd

from kvab.evidence.speed import Memory
from kvab.formats import number, unless_missing

NOTHING = "Nothing was measured in this checkout: run `make bench`."


def memory_caption(measured: Memory) -> str:
    """Return the caption of the memory figure."""
    most = measured.table.groupby("step", sort=False)["gb"].max().sort_values(ascending=False)
    each = ", ".join(f"{step} {number(gb)} GB" for step, gb in most.items())
    return (
        f"No large input needs more than {number(most.max())} GB: {each}. Memory of all "
        "processes over time, twice a second; what they share counts once."
    )


def memory_source(measured: Memory, runs: bool = True) -> str:
    """Return where the memory figure's data come from."""
    return "Source: make bench, measured."


@unless_missing(NOTHING)
def lesson(measured: pd.DataFrame) -> str:
    """Return where most is gained, and where nothing is."""
    work = measured[~measured["step"].str.startswith("kvab ")]  # start-up has no rival
    ordered = work.sort_values("ratio", ascending=False)
    best, worst = ordered.iloc[0], ordered.iloc[-1]
    return (
        f"Most is gained in {best['step']}: {number(best['ratio'])} times as fast as "
        f"{best['against']}. Least in {worst['step']}: {number(worst['ratio'])} times as fast as "
        f"{worst['against']}."
    )
