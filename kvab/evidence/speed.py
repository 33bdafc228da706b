"""How fast the study's own steps are, as its benchmarks measured them.

Input: the files that `make bench` writes. Output: a table of ratios, each within one run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.study import root

Row = TypeVar("Row")
FOLDER = Path("benchmarks/results")
PARTS = ("planning_s", "simulator_s", "converting_s", "writing_s")  # of a replay, once loaded
LARGE = {"comparison": "comparison", "records": "reading AIPerf's records", "report": "the book"}
COLUMNS = ["step", "against", "typical_s", "ratio", "least", "most", "pairs"]


@dataclass(frozen=True)
class Memory:
    """Memory over time of the large inputs, measured; columns ``step``, ``seconds``, ``gb``."""

    table: pd.DataFrame
    simulated = synthetic = False


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
    takers = {"replay": _replay, "records": _records, "comparison": _comparison,
              "report": _report, "startup": _startup}  # fmt: skip
    rows = [row for name, taken in takers.items() for row in _taken(folder, name, taken)]
    return pd.DataFrame(rows, columns=COLUMNS) if rows else None


def load_growth(folder: Path = FOLDER) -> pd.DataFrame | None:
    """Return what large inputs take: ``step``, ``size``, ``seconds``, ``peak_gb``; None if none.

    Raises
    ------
    InputError
        As `load_speed`.
    """
    takers = {"comparison": _many_pairs, "records": _many_records, "report": _many_runs}
    rows = [row for name, taken in takers.items() for row in _taken(folder, name, taken)]
    return pd.DataFrame(rows, columns=["step", "size", "seconds", "peak_gb"]) if rows else None


def load_profile(folder: Path = FOLDER) -> pd.DataFrame | None:
    """Return where a replay's time goes, medians over processes; None if nobody measured it.

    Returns
    -------
    DataFrame or None
        A row a configuration, its name as index: ``loading_s``, then `PARTS` in their order, and
        ``reported_s``, what the simulator reports of itself within ``simulator_s``.

    Raises
    ------
    InputError
        As `load_speed`.
    """
    told = _taken(folder, "replay", lambda told: told.get("profile", []))
    return pd.DataFrame(told).groupby("arm", sort=False).median() if told else None


def load_comparison_profile(folder: Path = FOLDER) -> pd.Series | None:
    """Return seconds of each part of the largest comparison, and of ``all``; None if unmeasured.

    Raises
    ------
    InputError
        As `load_speed`.
    """
    rows = _taken(folder, "comparison", lambda told: told["growth"][-1:])
    found = [pd.Series(each["parts"] | {"all": each["seconds"]}) for each in rows
             if "parts" in each]  # fmt: skip
    return found[0] if found else None


def load_memory(folder: Path = FOLDER) -> Memory | None:
    """Return the memory over time of the large inputs; None if nobody measured it.

    Raises
    ------
    InputError
        As `load_speed`.
    """
    takers = {
        "comparison": lambda told: told["growth"][-1:],
        "records": lambda told: [told["large"]],
        "report": lambda told: [told["large"]],
    }
    parts = [
        pd.DataFrame(each["memory"], columns=["seconds", "gb"]).assign(step=LARGE[name])
        for name, taken in takers.items()
        for each in _taken(folder, name, taken)
        if "memory" in each
    ]
    return Memory(pd.concat(parts, ignore_index=True)) if parts else None


def _taken(folder: Path, name: str, take: Callable[[dict], list[Row]]) -> list[Row]:
    """Return what one function takes from the file of one benchmark; nothing without a file."""
    path = root() / folder / f"{name}.json"
    if not path.is_file():
        return []
    try:
        return take(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: expected what `make bench` writes, got {type(error).__name__} ({error}); "
            "run it again"
        ) from None


def _row(step: str, against: str, ours: list[float], theirs: list[float]) -> tuple[Any, ...]:
    ratios = np.array(theirs) / np.array(ours)
    typical = (float(np.median(ours)), float(np.median(ratios)))
    return step, against, *typical, float(ratios.min()), float(ratios.max()), len(ratios)


def _both(pairs: list[dict], ours: str, theirs: str) -> tuple[list[float], list[float]]:
    return [each[ours] for each in pairs], [each[theirs] for each in pairs]


def _replay(told: dict) -> list[tuple]:
    rows = [
        _row(f"replay of {label} arms", f"{label} aisimulate commands, one after the other",
             *_both(told[label], "kvab", "commands"))
        for label in ("two", "four") if label in told
    ]  # fmt: skip
    if "profile" in told:
        whole = [sum(each[name] for name in PARTS) for each in told["profile"]]
        spent = [each["simulator_s"] for each in told["profile"]]
        rows.append(_row("replay of one arm", "the simulator's calls within it", whole, spent))
    if "scaling" in told:
        cores, pairs = told["scaling"][0]["cores"], _both(told["scaling"], "all", "one")
        step = f"sixteen cells of a sweep on {cores} cores"
        rows.append(_row(step, "the same on one core", *pairs))
    return rows


def _records(told: dict) -> list[tuple]:
    step = f"reading {told['requests']:,} records of AIPerf"
    others = {"pandas": "pandas.read_json(lines=True)", "aiperf": "the loader of aiperf plot"}
    return [_row(step, text, *_both(told["pairs"], "kvab", name)) for name, text in others.items()]


def _comparison(told: dict) -> list[tuple]:
    step = f"comparison, {told['resamples']:,} resamples"
    return [_row(step, "one arch call a statistic", *_both(told["pairs"], "kvab_s", "arch_s"))]


def _report(told: dict) -> list[tuple]:
    pairs = [{name: each[name]["seconds"] for name in ("cold", "cached")} for each in told["pairs"]]
    step = "the book again, nothing changed"
    return [_row(step, "the book with an empty cache", *_both(pairs, "cached", "cold"))]


def _many_pairs(told: dict) -> list[tuple]:
    return [(LARGE["comparison"], f"{each['rows']:,} pairs", each["seconds"], each["peak_gb"])
            for each in told["growth"]]  # fmt: skip


def _many_records(told: dict) -> list[tuple]:
    large = told["large"]
    size = f"{large['requests']:,} requests, {large['bytes'] / 1e9:.1f} GB"
    return [(LARGE["records"], size, large["seconds"], large["peak_mb"] / 1e3)]


def _many_runs(told: dict) -> list[tuple]:
    large = told["large"]
    size = f"{large['runs']:,} runs of the trace"
    return [(LARGE["report"], size, large["seconds"], large["peak_gb"])]


def _startup(told: dict) -> list[tuple]:
    first = "import pandas"
    steps = [name for name in told["pairs"][0] if name != first]
    against = "python -c 'import pandas'"
    return [_row(name, against, *_both(told["pairs"], name, first)) for name in steps]
