"""The simulator beside published measurements: each scenario simulated once, and held together.

Input: the scenarios of `kvab.study.hardware`. Output: ``runs/hardware/``, a small file for each
cluster that was measured, named by the digest of all that its simulation depends on; the published
ones lie in ``book/published/hardware/``. `load_hardware` reads them beside what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, ValidationError

from kvab.cache import write_beside
from kvab.clusters import simulated
from kvab.clusters.base import Progress, installed
from kvab.declarations import Declared, digest
from kvab.errors import DependencyError, InputError
from kvab.runs.campaign import side_by_side
from kvab.study import PUBLISHED, root
from kvab.study.hardware import FILE, LADDER, Scenario, SharedPrefix, line_of, load_scenarios
from kvab.trace.reading import Trace

FOLDER = "hardware"
Cells = dict[str, dict[str, float]]


class Simulation(Declared):
    """The content of a file, schema 1: every cell's metrics, and what simulated them."""

    schema_version: Literal[1] = Field(1, alias="schema")
    scenario: str
    arm: str
    versions: dict[str, str]
    cells: Cells


@dataclass(frozen=True)
class Task:
    """One arm of a scenario to simulate, with all its cells; ``runs`` is the folder of runs."""

    scenario: Scenario
    arm: str
    runs: Path

    @property
    def rows(self) -> int:
        """Requests to replay."""
        return sum(len(trace) for trace, _ in self.replays.values())

    @cached_property
    def replays(self) -> dict[str, tuple[Trace, int | None]]:
        """The traces of one replay each, with the number of users of a closed loop."""
        load, block_tokens = self.scenario.workload, self.scenario.engine.block_size
        if isinstance(load, SharedPrefix):
            return {LADDER: (load.trace(block_tokens), None)}
        return {
            f"{tokens}x{users}": (load.trace(block_tokens, tokens, users), users)
            for tokens in load.input_tokens
            for users in load.concurrency
        }

    @cached_property
    def file(self) -> str:
        """Name of its file, by all that the simulation depends on."""
        arm = self.scenario.arms[self.arm].model_dump(exclude={"label", "figures"})
        asked = [self.scenario.engine.model_dump(), arm, self.scenario.workload.model_dump()]
        return f"{self.scenario.name}-{self.arm}-{digest(asked)[:12]}.json"

    def read(self) -> Simulation | None:
        """Return the simulation, of this machine's runs, else the published one."""
        for folder in (self.runs, root() / PUBLISHED):
            path = folder / FOLDER / self.file
            if path.is_file():
                try:
                    return Simulation.model_validate_json(path.read_bytes())
                except ValidationError as error:
                    got = str(error).splitlines()[0]
                    raise InputError(expected="a simulation", got=got, path=path,
                                     fix="remove it and run `kvab hardware`") from None  # fmt: skip
        return None

    def check(self) -> None:
        """Reject hardware and models that the simulator has no data of; names their line."""
        profile, key = self.scenario.profile(self.arm), f"arms.{self.arm}.hardware"
        try:
            simulated.versions(profile)
            key = "engine.model"
            simulated.timed(self.scenario.topology(self.arm), profile)
        except InputError as error:
            error.path, error.key = self.scenario.folder / FILE, key
            error.line = line_of(error.path, key)
            raise


def _simulate(task: Task, on_progress: Progress) -> None:
    """Simulate one arm and write its file."""
    profile, topology = task.scenario.profile(task.arm), task.scenario.topology(task.arm)
    versions, done = simulated.versions(profile), 0
    cells: Cells = {}
    for name, (trace, users) in task.replays.items():
        order = np.arange(len(trace))
        report, _ = simulated.simulated(profile, topology, trace, order, trace.arrival_ms, users)
        records = pd.DataFrame(report.per_request)
        records["end_ms"] = records["arrival_time_ms"] + records["e2e_latency_ms"]
        load = task.scenario.workload
        cells |= (
            _stages(task, records, load, trace.timestamp_ms[0])
            if isinstance(load, SharedPrefix)
            else {name: _measures(records)}
        )
        on_progress(done := done + len(trace))
    made = Simulation(scenario=task.scenario.name, arm=task.arm, versions=versions, cells=cells)
    text = json.dumps(made.model_dump(by_alias=True), indent=1) + "\n"
    write_beside(task.runs / FOLDER / task.file, text.encode())


def _stages(task: Task, records: pd.DataFrame, load: SharedPrefix, first_ms: float) -> Cells:
    """Return the metrics of each stage, and of all; an output rate of all is the stages' mean."""
    starts, names = load.starts_ms - first_ms, load.cells[:-1]
    stage = np.searchsorted(starts, records["arrival_time_ms"] + 0.001, side="right") - 1
    ends = records.groupby(stage)["end_ms"].max().to_numpy()
    if (ends[:-1] > starts[1:]).any():
        path, key = task.scenario.folder / FILE, "workload.drain_s"
        needed = np.ceil((ends[:-1] - starts[1:]).max() / 1000) + load.drain_s
        raise InputError(expected=f"{needed:g} s or more", got=f"{load.drain_s:g}: the next stage "
                         "would begin before the last answer", path=path, key=key,
                         line=line_of(path, key), fix="raise it")  # fmt: skip
    shown = stage - load.warm_up
    cells = {name: _measures(records[shown == n]) for n, name in enumerate(names)}
    rates = [cell["output_tokens_per_s"] for cell in cells.values()]
    whole = _measures(records[shown >= 0]) | {"output_tokens_per_s": float(np.mean(rates))}
    return cells | {LADDER: whole}


def _measures(records: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of some requests: ``output_tokens_per_s``, and times in ms.

    Output counts from the first sending to the last answer; ITL is that of each request.
    """
    seconds = (records["end_ms"].max() - records["arrival_time_ms"].min()) / 1000
    measures = {"output_tokens_per_s": records["output_length"].sum() / seconds}
    more = records["output_length"] - 1
    itl_ms = ((records["e2e_latency_ms"] - records["ttft_ms"]) / more)[more > 0]
    for key, values in (("ttft_ms", records["ttft_ms"]), ("itl_ms", itl_ms)):
        if len(values):
            measures |= {f"{key}_mean": values.mean(), f"{key}_p50": values.median(),
                         f"{key}_p90": values.quantile(0.9)}  # fmt: skip
    return {name: float(f"{value:.6g}") for name, value in measures.items()}


@dataclass(frozen=True)
class Held:
    """Measured figures beside simulated ones.

    ``rows`` has a row a figure: scenario, arm, cell, metric, measured (a tuple, one for each
    publication), simulated, and ratio: simulated over the mean of the measured. ``cells`` has every
    simulated number: scenario, arm, cell, metric, simulated.
    """

    scenarios: dict[str, Scenario]
    rows: pd.DataFrame
    cells: pd.DataFrame
    versions: dict[str, str]

    simulated = True
    synthetic = False

    @cached_property
    def key(self) -> str:
        """Digest of everything that a page shows of it."""
        return digest([self.rows.to_csv(), self.cells.to_csv(), self.versions])

    @cached_property
    def own(self) -> pd.DataFrame:
        """The rows of figures that are not held against a second simulated cluster."""
        arms = zip(self.rows["scenario"], self.rows["arm"], strict=True)
        return self.rows[[not self.scenarios[name].arms[arm].figures for name, arm in arms]]

    def summary(self, scenario: str) -> dict[str, dict[str, float | None]]:
        """Return the ratios of each metric of a scenario, and how far publications differ.

        The noise floor is the median of how much larger the larger of two published figures is, as
        a share; None where there is one publication.
        """
        rows = self.rows[self.rows["scenario"] == scenario]
        result = {}
        for metric, of in rows.groupby("metric", sort=False):
            apart = [max(two) / min(two) - 1 for two in of["measured"] if len(two) > 1]
            ratios = of["ratio"]
            result[str(metric)] = {
                "median_ratio": float(ratios.median()),
                "low": float(ratios.min()),
                "high": float(ratios.max()),
                "noise_floor": float(np.median(apart)) if apart else None,
            }
        return result

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``kvab hardware --json``."""
        columns = ["arm", "cell", "metric", "measured", "simulated", "ratio"]
        return {
            "schema": 1,
            "scenarios": {
                name: {
                    "rows": json.loads(of[columns].to_json(orient="records", double_precision=6)),
                    "summary": self.summary(str(name)),
                }
                for name, of in self.rows.groupby("scenario", sort=False)
            },
        }


def _tasks(scenarios: Sequence[Scenario], runs: Path) -> list[Task]:
    return [Task(scenario, arm, runs) for scenario in scenarios for arm in scenario.arms]


def hold(scenarios: Sequence[Scenario], runs: Path) -> Held:
    """Simulate what no file of this simulator's version is of; return all beside what was measured.

    Raises
    ------
    InputError
        If the simulator has no data of a model or its hardware.
    """
    tasks = _tasks(scenarios, runs)
    kept = [task.read() for task in tasks]
    try:
        versions = installed("simulate", *simulated.PACKAGES)
    except DependencyError:
        if None in kept:
            raise
        versions = {}  # what is published is read without a simulator
    missing = [
        task
        for task, simulation in zip(tasks, kept, strict=True)
        if simulation is None or not versions.items() <= simulation.versions.items()
    ]
    for task in missing:
        task.check()
    if missing:
        side_by_side(sorted(missing, key=lambda task: -task.rows), _simulate)
    return _held(tasks)


def _declared() -> list[Scenario]:
    """Return the checkout's scenarios, none where it has no folder of them."""
    return load_scenarios() if any((root() / "recipes" / FOLDER).glob(f"*/{FILE}")) else []


def load_hardware(runs: str | Path = "runs") -> Held | None:
    """Return the checkout's scenarios of which every arm is simulated, or None without any."""
    by_scenario = [_tasks([scenario], root() / runs) for scenario in _declared()]
    whole = [task for tasks in by_scenario if all(task.read() for task in tasks) for task in tasks]
    return _held(whole) if whole else None


def _held(tasks: Sequence[Task]) -> Held:
    rows: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for task in tasks:
        kept = task.read()
        assert kept is not None
        versions |= kept.versions
        place = {"scenario": task.scenario.name, "arm": task.arm}
        for name, metrics in kept.cells.items():
            cells += [{**place, "cell": name, "metric": metric, "simulated": value}
                      for metric, value in metrics.items()]  # fmt: skip
        for figure in task.scenario.figures:
            if figure.arm == task.arm:
                value = kept.cells[figure.cell].get(figure.metric, np.nan)
                ratio = value / float(np.mean(figure.measured))
                rows.append({**place, **figure.model_dump(), "simulated": value, "ratio": ratio})
    scenarios = {task.scenario.name: task.scenario for task in tasks}
    return Held(scenarios, pd.DataFrame(rows), pd.DataFrame(cells), versions)


def publish_hardware(runs: Path, published: Path) -> None:
    """Copy this machine's simulations of the checkout's scenarios to the published ones."""
    folder = published / FOLDER
    tasks = _tasks(_declared(), runs)
    own = [task for task in tasks if (runs / FOLDER / task.file).is_file()]
    for task in own:
        write_beside(folder / task.file, (runs / FOLDER / task.file).read_bytes())
    if own:
        for path in {*folder.glob("*.json")} - {folder / task.file for task in tasks}:
            path.unlink()
