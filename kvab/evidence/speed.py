"""How fast the study's own steps are, as its benchmarks measured them.

Input: the files that `make bench` writes. Output: a table of ratios, each within one run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.study import root

FOLDER = Path("benchmarks/results")
PARTS = ("planning_s", "simulator_s", "converting_s", "writing_s")  # of a replay, once loaded
COLUMNS = ["step", "against", "typical_s", "ratio", "least", "most", "pairs"]


def load_speed(folder: Path = FOLDER) -> pd.DataFrame | None:
    """Return what was measured against something else, in interleaved pairs of one run.

    Returns
    -------
    DataFrame or None
        A row a comparison: ``step``, ``against``, ``typical_s`` (median seconds of the step),
        ``ratio`` (median over pairs of the other's seconds over the step's; above one is faster),
        ``least`` and ``most`` (over the pairs), ``pairs``. None where nothing was measured.

    Raises
    ------
    InputError
        If a file cannot be read or lacks what it should hold.
    """
    place = root() / folder
    if not place.is_dir():
        return None
    rows = []
    for name, rows_of in (("replay", _replay), ("records", _records), ("comparison", _comparison),
                          ("report", _report), ("startup", _startup)):  # fmt: skip
        path = place / f"{name}.json"
        if not path.is_file():
            continue
        try:
            rows += rows_of(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{path}: expected what `make bench` writes, got {type(error).__name__} ({error}); "
                "run it again"
            ) from None
    return pd.DataFrame(rows, columns=COLUMNS) if rows else None


def load_growth(folder: Path = FOLDER) -> pd.DataFrame | None:
    """Return what large inputs take: ``step``, ``size``, ``seconds``, ``peak_gb``; None if none."""
    place, rows = root() / folder, []
    if (path := place / "comparison.json").is_file():
        for each in json.loads(path.read_bytes())["growth"]:
            size = f"{each['rows']:,} pairs"
            rows.append(("comparison, 2,000 resamples", size, each["seconds"], each["peak_gb"]))
    if (path := place / "records.json").is_file():
        large = json.loads(path.read_bytes())["large"]
        size = f"{large['requests']:,} requests, {large['bytes'] / 1e9:.1f} GB"
        rows.append(("reading AIPerf's records", size, large["seconds"], large["peak_mb"] / 1e3))
    if (path := place / "report.json").is_file():
        large = json.loads(path.read_bytes())["large"]
        size = f"{large['runs']:,} runs of the trace"
        rows.append(("the book", size, large["seconds"], large["peak_gb"]))
    return pd.DataFrame(rows, columns=["step", "size", "seconds", "peak_gb"]) if rows else None


def load_profile(folder: Path = FOLDER) -> pd.DataFrame | None:
    """Return where a replay's time goes, medians over processes; None if nobody measured it.

    Returns
    -------
    DataFrame or None
        A row a configuration, its name as index: ``loading_s``, then `PARTS` in their order, and
        ``reported_s``, what the simulator reports of itself within ``simulator_s``.
    """
    path = root() / folder / "replay.json"
    told = json.loads(path.read_bytes()).get("profile") if path.is_file() else None
    return pd.DataFrame(told).groupby("arm", sort=False).median() if told else None


def _row(step: str, against: str, ours: list[float], theirs: list[float]) -> tuple[Any, ...]:
    ratios = np.array(theirs) / np.array(ours)
    typical = (float(np.median(ours)), float(np.median(ratios)))
    return step, against, *typical, float(ratios.min()), float(ratios.max()), len(ratios)


def _both(pairs: list[dict], ours: str, theirs: str) -> tuple[list[float], list[float]]:
    return [each[ours] for each in pairs], [each[theirs] for each in pairs]


def _replay(told: dict) -> list[tuple]:
    """Return a row for each part that was measured; a short session measures the first alone."""
    rows = [
        _row(f"replay of {label} arms", f"{label} aisimulate commands, one after the other",
             *_both(told[label], "kvab", "commands"))
        for label in ("two", "four") if label in told
    ]  # fmt: skip
    if "profile" in told:
        whole = [sum(each[name] for name in PARTS) for each in told["profile"]]
        spent = [each["simulator_s"] for each in told["profile"]]
        rows.append(_row("replay of one arm", "the simulator's own time in it", whole, spent))
    if "scaling" in told:
        cores, pairs = told["scaling"][0]["cores"], _both(told["scaling"], "all", "one")
        step = f"sixteen cells of a sweep on {cores} cores"
        rows.append(_row(step, "the same on one core", *pairs))
    return rows


def _records(told: dict) -> list[tuple]:
    step = f"reading {told['requests']:,} records of AIPerf"
    others = {"pandas": "pandas.read_json(lines=True)", "aiperf": "the loader of `aiperf plot`"}
    return [_row(step, text, *_both(told["pairs"], "kvab", name)) for name, text in others.items()]


def _comparison(told: dict) -> list[tuple]:
    step = f"comparison, {told['resamples']:,} resamples"
    return [_row(step, "one arch call a statistic", *_both(told["pairs"], "kvab_s", "arch_s"))]


def _report(told: dict) -> list[tuple]:
    pairs = [{name: each[name]["seconds"] for name in ("cold", "cached")} for each in told["pairs"]]
    step = "the book again, nothing changed"
    return [_row(step, "the book with an empty cache", *_both(pairs, "cached", "cold"))]


def _startup(told: dict) -> list[tuple]:
    first = "import pandas"
    steps = [name for name in told["pairs"][0] if name != first]
    against = "`python -c 'import pandas'`"
    return [_row(f"`{name}`", against, *_both(told["pairs"], name, first)) for name in steps]
