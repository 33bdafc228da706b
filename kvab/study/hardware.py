"""Published measurements that the simulator is held against.

Input: ``recipes/hardware/<name>/scenario.yaml`` and ``measured.csv``. Output: checked scenarios,
with their topologies, the load as traces, and the figures that others measured.
"""

from __future__ import annotations

import csv
import itertools
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import yaml
from pydantic import Field, model_validator

from kvab.declarations import Declared, checked, read_declaration
from kvab.errors import InputError
from kvab.study import Count, PageText, Positive, Simulated, root
from kvab.study.topology import Engine, Router, Topology, WorkerGroup
from kvab.trace.reading import Trace

FILE, FIGURES = "scenario.yaml", "measured.csv"
COLUMNS = ("arm", "cell", "metric")  # and one for each publication
LADDER = "ladder"  # the cell that stands for all stages together
METRICS = {
    "output_tokens_per_s": "output [tokens/s]",
    "ttft_ms_mean": "mean TTFT [ms]",
    "ttft_ms_p50": "p50 TTFT [ms]",
    "ttft_ms_p90": "p90 TTFT [ms]",
    "itl_ms_mean": "mean ITL [ms]",
    "itl_ms_p50": "p50 ITL [ms]",
}


class Source(Declared):
    """Where figures were published: the file, its commit and its licence (or that it has none)."""

    what: PageText
    address: str
    commit: str
    licence: str


class MeasuredEngine(Engine):
    """Backend and settings of all workers."""

    backend: str


class Workers(Declared):
    """The workers of one role."""

    replicas: Count
    tensor_parallel: Count


class MeasuredArm(Declared):
    """A cluster that was measured; ``figures`` names another arm whose figures are its own too."""

    label: PageText
    hardware: str
    router: Router
    workers: dict[Literal["aggregated", "prefill", "decode"], Workers]
    kv_transfer_gb_per_s: Positive | None = None
    figures: str = ""

    @model_validator(mode="after")
    def _roles(self) -> MeasuredArm:
        if set(self.workers) not in ({"aggregated"}, {"prefill", "decode"}):
            raise ValueError("workers that are aggregated, or prefill and decode")
        return self


class Stage(Declared):
    """Poisson arrivals at a rate for a time."""

    rate_per_s: Positive
    seconds: Positive


class SharedPrefix(Declared):
    """Groups of prompts that begin alike, shuffled once and sent round and round, in stages.

    The first ``warm_up`` stages are replayed and not shown. ``drain_s`` is the pause after a stage,
    long enough for its last answer.
    """

    kind: Literal["shared-prefix"]
    seed: Annotated[int, Field(ge=0)]
    groups: Count
    prompts_per_group: Count
    shared_tokens: Count
    own_tokens: Count
    output_tokens: Count
    drain_s: Positive
    warm_up: Annotated[int, Field(ge=0)] = 0
    stages: Annotated[list[Stage], Field(min_length=1)]

    @property
    def cells(self) -> list[str]:
        """Names of what is measured: the rates, and all of them together."""
        return [f"{stage.rate_per_s:g}" for stage in self.stages[self.warm_up :]] + [LADDER]

    @property
    def starts_ms(self) -> np.ndarray:
        """When each stage begins."""
        lengths = [stage.seconds + self.drain_s for stage in self.stages[:-1]]
        return 1000 * np.cumsum([0.0, *lengths])

    def trace(self, block_tokens: int) -> Trace:
        """Return the requests of all stages, in blocks of the engine's size."""
        rng = np.random.default_rng(self.seed)
        prompts, tokens = self.groups * self.prompts_per_group, self.shared_tokens + self.own_tokens
        order = rng.permutation(prompts)
        drawn = []
        for start_ms, stage in zip(self.starts_ms, self.stages, strict=True):
            count = round(stage.rate_per_s * stage.seconds)
            drawn.append(start_ms + np.sort(rng.uniform(0, 1000 * stage.seconds, count)))
        at_ms = np.concatenate(drawn).round(3)
        shared, blocks = self.shared_tokens // block_tokens, math.ceil(tokens / block_tokens)
        ids = []
        for prompt in order.tolist():
            first = shared * (prompt // self.prompts_per_group)
            own = shared * self.groups + blocks * prompt
            ids.append((*range(first, first + shared), *range(own, own + blocks - shared)))
        rows = [ids[row % prompts] for row in range(len(at_ms))]
        inputs, outputs = (np.full(len(rows), count) for count in (tokens, self.output_tokens))
        return _made(at_ms, inputs, outputs, rows, block_tokens)


class ClosedLoop(Declared):
    """Users who each send the next request when the last is answered; no two prompts are alike.

    A cell is one input length and one number of users, who send ``requests_per_user`` each. One
    user with one request finds the cluster idle. Lengths are drawn evenly, from ``shortest_share``
    of the nominal ones to these.
    """

    kind: Literal["closed-loop"]
    seed: Annotated[int, Field(ge=0)] = 0
    input_tokens: Annotated[list[Count], Field(min_length=1)]
    output_tokens: Count
    shortest_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    concurrency: Annotated[list[Count], Field(min_length=1)]
    requests_per_user: Count

    @property
    def cells(self) -> list[str]:
        """Names of what is measured: input tokens and users, such as 8192x32."""
        return [f"{tokens}x{users}" for tokens in self.input_tokens for users in self.concurrency]

    def trace(self, block_tokens: int, input_tokens: int, users: int) -> Trace:
        """Return the requests of a cell; their times do not count."""
        rng, rows = np.random.default_rng(self.seed), users * self.requests_per_user
        inputs, outputs = (
            rng.integers(math.ceil(self.shortest_share * tokens), tokens, rows, endpoint=True)
            for tokens in (input_tokens, self.output_tokens)
        )
        ends = np.cumsum(-(-inputs // block_tokens)).tolist()
        ids = [tuple(range(*ends_of)) for ends_of in itertools.pairwise([0, *ends])]
        return _made(np.zeros(rows), inputs, outputs, ids, block_tokens)


def _made(
    at_ms: np.ndarray,
    inputs: np.ndarray,
    outputs: np.ndarray,
    ids: list[tuple[int, ...]],
    block_tokens: int,
) -> Trace:
    """Return a trace that lies in no file."""
    return Trace(
        name="made",
        path=Path(),
        sha256="",
        block_tokens=block_tokens,
        synthetic=True,
        timestamp_ms=at_ms,
        input_tokens=inputs.astype("int32"),
        output_tokens=outputs.astype("int32"),
        hash_ids=tuple(ids),
    )


class Effect(Declared):
    """What somebody measured of KV routing or of disaggregation."""

    what: PageText
    verdict: Literal["against", "conditional", "agrees"]
    found: PageText
    conditions: PageText
    source: PageText


class Effects(Declared):
    """The content of ``recipes/hardware/effects.yaml``."""

    schema_version: Literal[1] = Field(alias="schema")
    effects: list[Effect]


class Figure(Declared):
    """What others measured: one figure, or one for each publication."""

    arm: str
    cell: str
    metric: str
    measured: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)
    ]


class Scenario(Declared):
    """A published measurement: the clusters, their load, the sources, and what was assumed."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]*$")]
    title: PageText
    sources: Annotated[list[Source], Field(min_length=1)]
    assumed: list[PageText]
    engine: MeasuredEngine
    arms: dict[str, MeasuredArm]
    workload: Annotated[SharedPrefix | ClosedLoop, Field(discriminator="kind")]
    folder: Path = Field(exclude=True)

    def profile(self, arm: str) -> Simulated:
        """Return the simulated cluster that stands for an arm's."""
        declared = self.arms[arm]
        return Simulated(
            kind="simulated",
            name=f"{self.name} {arm}",
            description=declared.label,
            hardware=declared.hardware,
            backend=self.engine.backend,
            kv_transfer_gb_per_s=declared.kv_transfer_gb_per_s,
        )

    def topology(self, arm: str) -> Topology:
        """Return what an arm deploys."""
        declared, settings = self.arms[arm], self.engine.model_dump(exclude={"backend"})
        groups: dict[str, WorkerGroup] = {
            role: WorkerGroup(
                component=role,
                gpus_per_worker=workers.tensor_parallel,
                image="",
                kv_events=True,
                **workers.model_dump(),
                **settings,
            )
            for role, workers in declared.workers.items()
        }
        return Topology(f"{self.name} {arm}", declared.router, groups)

    @cached_property
    def figures(self) -> list[Figure]:
        """What was measured, in the order of ``measured.csv``, for each arm that it is of.

        Raises
        ------
        InputError
            Of the first line that is wrong, or of an arm without figures.
        """
        path = self.folder / FIGURES
        figures = [self._figure(path, line, values) for line, values in _rows(path)]
        own = {arm: declared.figures or arm for arm, declared in self.arms.items()}
        for arm, named in own.items():
            if named not in {figure.arm for figure in figures}:
                expected, fix = f"figures of the arm {named}", f"add them, or remove {arm}"
                raise InputError(expected=expected, got="none", path=path, line=1, fix=fix)
        return [
            figure.model_copy(update={"arm": arm})
            for arm, named in own.items()
            for figure in figures
            if figure.arm == named
        ]

    def _figure(self, path: Path, line: int, values: list[str]) -> Figure:
        row: dict[str, object] = dict(zip(COLUMNS, values, strict=False))
        row["measured"] = [text for text in values[len(COLUMNS) :] if text.strip()]
        known = ([*self.arms], self.workload.cells, [*METRICS])
        try:
            figure = checked(row, Figure, path, "correct it")
            for key, names in zip(COLUMNS, known, strict=True):
                if (got := getattr(figure, key)) not in names:
                    expected, fix = f"one of {', '.join(names)}", f"correct it or {FILE}"
                    raise InputError(expected=expected, got=got, path=path, key=key, fix=fix)
        except InputError as error:
            error.line = line
            raise
        return figure


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines below the header, numbered; those that begin with # are notes."""
    try:
        lines = enumerate(csv.reader(path.read_text(encoding="utf-8").splitlines()), 1)
    except (OSError, ValueError) as error:
        raise InputError(expected="a table", got=str(error), path=path, fix="write it") from None
    rows = [(n, values) for n, values in lines if values and not values[0].startswith("#")]
    if not rows or tuple(rows[0][1][:3]) != COLUMNS:
        line, got = (rows[0][0], ",".join(rows[0][1])) if rows else (1, "none")
        expected = f"the columns {','.join(COLUMNS)} and one for each publication"
        raise InputError(expected=expected, got=got, path=path, line=line, fix="correct them")
    return rows[1:]


def line_of(path: Path, key: str) -> int:
    """Return the line of a YAML file on which a dotted key stands, or what is nearest above it."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = 1
    for part in key.split("."):
        if isinstance(node, yaml.MappingNode):
            below = {name.value: (name, value) for name, value in node.value}
        else:
            below = {str(n): (item, item) for n, item in enumerate(getattr(node, "value", ()))}
        if part in below:
            name, node = below[part]
            line = name.start_mark.line + 1
    return line


def read_scenario(folder: Path) -> Scenario:
    """Return the scenario of a folder, its figures read.

    Raises
    ------
    InputError
        If one of its two files is wrong; the line is named.
    """
    path = folder / FILE
    try:
        scenario = read_declaration(path, Scenario, folder=folder)
        if scenario.name != folder.resolve().name:
            expected = f"{folder.resolve().name} as the folder is called"
            raise InputError(expected=expected, got=scenario.name, path=path, key="name")
    except InputError as error:
        if error.key:
            error.line = line_of(path, error.key)
            error.fix = error.fix or "correct it"
        raise
    _ = scenario.figures  # reads them
    return scenario


def load_scenarios(name: str | None = None, folder: Path | None = None) -> list[Scenario]:
    """Return the scenarios of the checkout, or of a folder: one, or one in each folder below.

    Raises
    ------
    InputError
        If there is none, none of that name, or one is wrong.
    """
    folder = folder or root() / "recipes" / "hardware"
    files = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(f"*/{FILE}"))
    scenarios = {path.parent.name: path.parent for path in files}
    if (name and name not in scenarios) or not files:
        known = ", ".join(scenarios) or f"none (a folder with {FILE} and {FIGURES})"
        raise InputError(
            f"no scenario {name or ''}".strip(), path=folder, fix=f"there are: {known}"
        )
    chosen = [scenarios[name]] if name else [*scenarios.values()]
    return [read_scenario(path) for path in chosen]


def load_effects() -> list[Effect]:
    """Return what others measured, the effects that contradict this study's answer first."""
    path = root() / "recipes" / "hardware" / "effects.yaml"
    effects = read_declaration(path, Effects).effects if path.is_file() else []
    order = ("against", "conditional", "agrees")
    return sorted(effects, key=lambda effect: order.index(effect.verdict))
