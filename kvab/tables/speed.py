"""The tables of what the study's own steps take.

Input: what the benchmarks measured. Output: tables that a notebook shows.
"""

from __future__ import annotations

import pandas as pd

from kvab.formats import Table, number, percent, unless_missing


@unless_missing()
def ratios(measured: pd.DataFrame) -> Table:
    """Return how many times as fast each step is as what one would use instead."""
    lines = [
        {
            "step": row.step,
            "seconds": number(row.typical_s),
            "against": row.against,
            "times as fast": number(row.ratio),
            "range over pairs": f"{number(row.least)} to {number(row.most)} ({row.pairs})",
        }
        for row in measured.itertuples()
    ]
    caption = (
        "Seconds are medians on the machine that ran the benchmarks; only the ratios, measured in "
        "interleaved pairs of one run, travel to another machine."
    )
    return Table(pd.DataFrame(lines), caption, ("step", "against"))


@unless_missing()
def growth(measured: pd.DataFrame) -> Table:
    """Return time and memory of large inputs, each in a process of its own."""
    frame = pd.DataFrame({
        "step": measured["step"],
        "size": measured["size"],
        "seconds": measured["seconds"].map(number),
        "memory at most [GB]": measured["peak_gb"].map(number),
    })  # fmt: skip
    caption = "Each by itself; the memory of the book is that of all its processes together."
    return Table(frame, caption, ("step", "size"))


@unless_missing()
def comparison_profile(measured: pd.Series) -> Table:
    """Return where the time of the largest comparison goes, a row a part."""
    names = {
        "pairing.pair": "pairing the rows",
        "pairing.plan": "estimating the block length",
        "bootstrap._drawn": "drawing bursts (arch)",
        "pairing.sample": "sorting each metric",
        "percentiles.percentiles": "percentiles of every resample",
        "ranks.hodges_lehmann": "Hodges-Lehmann estimates and their ends",
    }
    parts = {text: measured[name] for name, text in names.items()}
    parts["the rest"] = measured["all"] - sum(parts.values())
    lines = [{"part": text, "seconds": number(seconds), "share": percent(seconds / measured["all"])}
             for text, seconds in parts.items()]  # fmt: skip
    return Table(pd.DataFrame(lines), "The largest comparison below, by part.", ("part",))


@unless_missing()
def profile(measured: pd.DataFrame) -> Table:
    """Return where the time of a replay goes, a row a part."""
    names = {
        "loading_s": "loading the simulator's packages, once a process",
        "planning_s": "reading the trace, checking the recipe",
        "simulator_s": "the simulator: its kernel data, the replay, its records",
        "reported_s": "… of which it reports the replay",
        "converting_s": "writing the trace for it, making the requests table",
        "writing_s": "writing the run folder",
    }
    frame = pd.DataFrame({"part": names.values()})
    for name, parts in measured.iterrows():
        frame[f"{name} [s]"] = [number(parts[each]) for each in names]
    caption = "Seconds of one replay of the whole trace by part, medians over processes."
    return Table(frame, caption, ("part",))
