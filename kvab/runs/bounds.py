"""The capacity sweep at bounds and a load of one's own: which configuration to take, and its cost.

Input: the tables ``bounds``, ``best`` and ``costs`` of a sweep, of loads with bursts at once.
Output: what is advised. Nothing is interpolated: a bound between two that were judged counts as the
stricter one, and a load that was not swept is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from kvab.errors import InputError
from kvab.requests import metrics
from kvab.runs.sweep import Sweep, load_sweep
from kvab.stats.crossings import COSTS
from kvab.study import Study, load_study

AXES = ["load", "ttft_ms", "itl_ms"]


@dataclass(frozen=True)
class Option:
    """A configuration at the bounds: share of good requests, its workload interval, what it costs.

    The interval is None where blocks are too few, costs where no request is good, and dollars where
    the study declares no price.
    """

    good_share: float
    ci_low: float | None
    ci_high: float | None
    gpu_hours_per_1000_good: float | None
    dollars_per_million_output_tokens: float | None


class Change(NamedTuple):
    """The nearest value of a load or bound, all else as asked, at which another one leads."""

    key: str
    value: float
    configuration: str
    margin: float
    within_noise: bool


@dataclass(frozen=True)
class Advice:
    """What a sweep says at a load and two bounds.

    Attributes
    ----------
    swept : Sweep
        The sweep.
    load : float
        In multiples of the trace's arrival speed.
    asked, judged : Bounds
        The bounds, and those of the table that stand for them.
    options : dict of str to Option
        Every configuration, the one with most good requests first.
    lead : Series
        ``best``, ``next``, ``margin`` between their shares, ``low``, ``high`` (paired interval).
    changes_if : list of Change
        Where another configuration leads.
    """

    swept: Sweep
    load: float
    asked: metrics.Bounds
    judged: metrics.Bounds
    options: dict[str, Option]
    lead: pd.Series
    changes_if: list[Change]

    @property
    def configuration(self) -> str | None:
        """The configuration to take; None where none keeps any request good."""
        name = str(self.lead["best"])
        return name if self.options[name].good_share else None

    @property
    def within_noise(self) -> bool:
        """Whether the lead may be one of these requests alone: its interval holds zero."""
        return _within_noise(self.lead)

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``kvab advise --json``."""
        return {
            "schema": 1,
            "workload": self.swept.study.workload,
            "cluster": self.swept.cluster,
            "load": self.load,
            "ttft_ms": self.asked.ttft_ms,
            "itl_ms": self.asked.itl_ms,
            "judged_at": self.judged._asdict(),
            "configurations": {name: asdict(option) for name, option in self.options.items()},
            "recommendation": {
                "configuration": self.configuration,
                "next": str(self.lead["next"]),
                "margin": float(self.lead["margin"]),
                "ci_low": _known(self.lead["low"]),
                "ci_high": _known(self.lead["high"]),
                "within_noise": self.within_noise,
                "changes_if": [change._asdict() for change in self.changes_if],
            },
        }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _within_noise(lead: pd.Series) -> bool:
    return not lead["low"] > 0


@dataclass(frozen=True)
class Bounds:
    """A sweep judged at a grid of bounds."""

    swept: Sweep
    table: pd.DataFrame
    best: pd.DataFrame
    costs: pd.DataFrame

    simulated: ClassVar = True

    @property
    def synthetic(self) -> bool:
        """Whether the workload is generated."""
        return self.swept.synthetic

    @cached_property
    def grid(self) -> dict[str, list[float]]:
        """The loads that were swept, and the bounds at which they were judged, rising."""
        return {key: sorted(map(float, self.best[key].unique())) for key in AXES}

    @cached_property
    def shares(self) -> pd.DataFrame:
        """``table`` by load, bounds and configuration."""
        return self.table.set_index([*AXES, "configuration"]).sort_index()

    @cached_property
    def leads(self) -> pd.DataFrame:
        """``best`` by load and bounds."""
        return self.best.set_index(AXES).sort_index()

    def cheapest(self, per: str) -> pd.DataFrame:
        """Return ``costs`` of one of `COSTS` by load and bounds."""
        return self.costs[self.costs["per"] == per].set_index(AXES).sort_index()

    @cached_property
    def gpu_hours(self) -> dict[tuple[float, str], float]:
        """What each replay took, by load and configuration."""
        cells = self.swept.load_cells
        return {(cell.load, cell.configuration): cell.gpu_hours_spent for cell in cells}

    def at(self, ttft_ms: float, itl_ms: float, load: float) -> Advice:
        """Return what the sweep says at two bounds, in ms, and a load.

        Raises
        ------
        InputError
            If the load was not swept, or a bound is outside the grid.
        """
        if load not in self.grid["load"]:
            swept = ", ".join(f"{swept:g}" for swept in self.grid["load"])
            fix = "choose one of them, or declare it in study.yaml and run `kvab capacity`"
            expected = f"a load that was swept ({swept})"
            raise InputError(expected=expected, got=f"{load:g}", key="--load", fix=fix)
        judged = metrics.Bounds(
            _stricter(self.grid["ttft_ms"], ttft_ms, "--ttft-ms"),
            _stricter(self.grid["itl_ms"], itl_ms, "--itl-ms"),
        )
        rows = self.shares.loc[(load, *judged)]
        options = {name: self._option(load, name, rows.loc[name]) for name in self.swept.arms}
        ordered = sorted(options.items(), key=lambda item: -item[1].good_share)
        return Advice(
            self.swept, load, metrics.Bounds(ttft_ms, itl_ms), judged, dict(ordered),
            self.leads.loc[(load, *judged)], [*self._changes((load, *judged))],
        )  # fmt: skip

    def _option(self, load: float, name: str, row: pd.Series) -> Option:
        hours = self.gpu_hours[load, name]
        price = Sweep.declared(self.swept.study).gpu_dollars_per_hour
        good, tokens = int(row["good"]), int(row["good_output_tokens"])
        return Option(
            good / int(row["requests"]),
            _known(row["low"]),
            _known(row["high"]),
            hours / (good / 1000) if good else None,
            price * hours / (tokens / 1e6) if price and tokens else None,
        )

    def _changes(self, point: tuple[float, ...]) -> Iterator[Change]:
        here = dict(zip(AXES, point, strict=True))
        for key, values in self.grid.items():
            at = values.index(here[key])
            for values_away in (values[:at][::-1], values[at + 1 :]):
                for value in values_away:
                    lead = self.leads.loc[tuple({**here, key: value}.values())]
                    if lead["margin"] > 0 and lead["best"] != self.leads.loc[point, "best"]:
                        yield Change(key, value, str(lead["best"]), float(lead["margin"]),
                                     _within_noise(lead))  # fmt: skip
                        break


def _stricter(grid: list[float], value: float, option: str) -> float:
    """Return the largest bound of the grid that is not above a value."""
    if not grid[0] <= value <= grid[-1]:
        raise InputError(expected=f"milliseconds from {grid[0]:g} to {grid[-1]:g}",
                         got=f"{value:g}", key=option)  # fmt: skip
    return grid[int(np.searchsorted(grid, value, side="right")) - 1]


def load_bounds(study: str | Path | Study, cluster: str, folder: str | Path) -> Bounds | None:
    """Return the bounds of a cluster's sweep, else of the published one; None without any.

    Raises
    ------
    InputError
        If the sweep's files do not belong together, or lack a cell.
    """
    swept = load_sweep(study, cluster, folder)
    if swept is None or swept.bounds is None or swept.best is None or swept.costs is None:
        return None
    judged = Bounds(swept, swept.bounds, swept.best, swept.costs)
    points, arms = math.prod(map(len, judged.grid.values())), len(swept.arms)
    for name, rows, needed in (
        ("best", len(judged.best), points),
        ("bounds", len(judged.table), points * arms),
        ("costs", len(judged.costs), points * len(COSTS)),
        ("cells", len(judged.gpu_hours), len(judged.grid["load"]) * arms),
    ):
        if rows != needed:
            raise InputError(expected=f"{needed} {name} of the sweep of {swept.study.name}",
                             got=f"{rows}", fix="run `kvab capacity` again")  # fmt: skip
    return judged


def load_every(study: str | Path | Study, cluster: str, folder: str | Path) -> list[Bounds]:
    """Return the bounds of every workload of a study that has some, the study's own first."""
    read = load_study(study)
    names = sorted(read.workloads, key=lambda name: name != read.workload)
    judged = (load_bounds(read.on(name), cluster, folder) for name in names)
    return [bounds for bounds in judged if bounds]


def advise(study: Study, cluster: str, folder: Path, bounds: metrics.Bounds, load: float) -> Advice:
    """Return what the sweep of a study says at two bounds and a load.

    Raises
    ------
    InputError
        If no sweep was judged at bounds; see also `Bounds.at`.
    """
    Sweep.declared(study)
    judged = load_bounds(study, cluster, folder)
    if judged is None:
        command = f"kvab capacity --workload {study.workload}"
        raise InputError(f"no sweep of {study.name} was judged at bounds yet",
                         path=folder / study.name / cluster, fix=f"run `{command}`")  # fmt: skip
    return judged.at(*bounds, load)
