"""What a run asks of a cluster, and what every kind of cluster answers.

A kind of cluster is two classes: a `Cluster`, which looks at what a profile describes, and a
`ClusterRun`, which carries out one `Job` there. `kvab.runs.replay` takes its steps in order,
writes what they return, and tears down what fails. `kvab.clusters.open_cluster` knows the kinds.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kvab.declarations import Json, digest
from kvab.errors import DependencyError, KvabError
from kvab.study import Profile, Study
from kvab.study.manifests import Configuration, Object, at, read_configuration, read_scripts
from kvab.study.topology import Topology, declared_topology
from kvab.study.variants import AS_DECLARED, Variant
from kvab.trace.reading import Trace, burst_order

if TYPE_CHECKING:  # what only looks at declarations does without, a third of a second sooner
    import pandas as pd

    from kvab.requests.aiperf import Artifacts

Progress = Callable[[int], None]
"""Called with the number of requests done so far."""


def run_path(runs: Path, study: Study, cluster: str, configuration: str, repeat: int) -> Path:
    """Return the folder of a run."""
    return runs / study.name / cluster / configuration / f"r{repeat}"


def capacity_path(runs: Path, study: Study, cluster: str) -> Path:
    """Return the folder of a cluster's capacity sweep, which `find_runs` does not look into."""
    return runs / study.name / cluster / "capacity"


@dataclass(frozen=True)
class Job:
    """What one run is asked to do; ``identity`` is what it depends on of the kind of cluster."""

    study: Study
    cluster: Profile
    configuration: str
    repeat: int
    rows: int
    trace: Trace
    runs: Path
    identity: dict[str, object]
    variant: Variant = AS_DECLARED

    @property
    def path(self) -> Path:
        """The run's folder; that of a variant lies beside the normal ones."""
        if self.variant.place:
            folder = capacity_path(self.runs, self.study, self.cluster.name)
            repeat = f"-r{self.repeat}" if self.repeat > 1 else ""
            return folder / self.configuration / f"{self.variant.place}{repeat}"
        return run_path(self.runs, self.study, self.cluster.name, self.configuration, self.repeat)

    @cached_property
    def recipe(self) -> Configuration:
        """The manifests of the configuration."""
        folder = self.study.configuration_folder(self.configuration)
        return read_configuration(folder, self.configuration)

    @cached_property
    def topology(self) -> Topology:
        """What is deployed, checked against the study's declaration."""
        return self.variant.topology(declared_topology(self.study, self.configuration))

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.trace.arrival_ms[: self.rows].max()) / 1000

    def order(self) -> np.ndarray:
        """Trace rows in sending order: the file's for repeat 1, else shuffled within bursts."""
        return burst_order(self.trace.timestamp_ms[: self.rows], self.study.seed(self.repeat))

    def requests(self, read: Artifacts) -> pd.DataFrame:
        """Return the requests table of what AIPerf left of the run."""
        from kvab.requests.matching import from_aiperf
        from kvab.requests.table import without_cached

        requests = from_aiperf(read, self.trace, self.order())
        split = self.topology.mode == "disaggregated"
        return without_cached(requests) if split else requests

    def depends_on(self) -> Json:
        """Return what the result depends on; a run serves as long as none of it changes."""
        recipe = self.recipe
        manifests = {"deploy.yaml": recipe.digest}
        if self.cluster.kind != "simulated":
            manifests["perf.yaml"] = recipe.benchmark.digest
        if self.cluster.kind == "kubernetes":
            manifests["benchmark"] = digest(read_scripts(self.study.folder)["data"])
        return {
            **manifests,
            "trace": self.trace.sha256,
            "rows": self.rows,
            "order": self.study.seed(self.repeat),
            **self.variant.depends_on(),
            **self.identity,
        }


class Finding(NamedTuple):
    """One thing that was looked at: whether it is as a run needs it, and what it is."""

    ok: bool
    what: str


def installed(extra: str, *packages: str) -> dict[str, str]:
    """Return the versions of packages.

    Raises
    ------
    DependencyError
        If one is not installed; the extra of kvab that brings it is named.
    """
    try:
        return {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        problem = f"the package {error.name} is not installed; run `make env`, or install kvab with"
        raise DependencyError(f"{problem} its extra `{extra}`") from None


def look(prefix: str, look_at: Callable[[], str]) -> Finding:
    """Return a finding; an expected failure says how to fix it."""
    try:
        return Finding(True, f"{prefix}: {look_at()}")
    except KvabError as error:
        return Finding(False, f"{prefix}: {error}")


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What is brought home of a run, and what is known of how it was made.

    Attributes
    ----------
    requests : DataFrame or None
        The requests table (`kvab.requests.table`), None if nothing was answered.
    files : dict of str to bytes
        The artifacts of a replay, or what tells why it failed, by file name.
    manifests : dict of str to bytes
        What was applied beside ``deploy.yaml`` and ``perf.yaml``, by file name.
    versions : dict of str to str
        Versions of what served, beside Python's and kvab's.
    host : dict
        What else ``run.json`` is to say of where it ran.
    """

    requests: pd.DataFrame | None
    files: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    host: dict[str, object] = field(default_factory=dict)


class Cluster(ABC):
    """A cluster as its profile describes it; looking at it changes nothing."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Return what a result depends on beside the manifests and the trace.

        Raises
        ------
        DependencyError
            If a package is not installed.
        """

    @abstractmethod
    def check(self, study: Study) -> Iterable[Finding]:
        """Return what it has and lacks for the runs of a study, in the order of need."""

    @abstractmethod
    def start(self, job: Job, *, take_over: bool = False) -> ClusterRun:
        """Return the run of a job, of which nothing is started yet.

        With ``take_over`` it is taken from a client that is alive, where runs outlive clients.
        """


class ClusterRun(ABC):
    """One run: `prepare`, `deploy`, `replay`, `collect`, `teardown`, in this order.

    If a step fails, `diagnostics` is asked what tells why, and then `teardown` is called. Steps
    raise `InputError` for what the user declared and `DependencyError` for what the cluster lacks
    or does, with the cause and what to do.
    """

    @abstractmethod
    def prepare(self) -> dict[str, str]:
        """Make sure that the cluster has what a replay needs; return the versions in use."""

    @abstractmethod
    def deploy(self) -> None:
        """Bring the job's topology up, and return when all of it serves."""

    @abstractmethod
    def replay(self, on_progress: Progress | None = None) -> None:
        """Send the rows of the job in its order, each when the trace says."""

    @abstractmethod
    def collect(self) -> Collected:
        """Return the requests and all that is kept beside them."""

    @abstractmethod
    def diagnostics(self) -> Collected:
        """Return what tells why a step failed; no files if there is nothing to tell."""

    @abstractmethod
    def teardown(self, *, keep_answers: bool) -> str:
        """Stop what was started, of this process or an earlier one; safe to call again.

        With ``keep_answers`` the answers of a finished replay that only wait to be collected
        stay.

        Returns
        -------
        str
            What a later start resumes from, if anything.
        """


def last_lines(log: str, lines: int = 4) -> str:
    """Return the last lines of a log that say something, on one line."""
    texts = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    return " | ".join(text[:300] for text in texts[-lines:])


# --- whether Dynamo's frontend serves ----------------------------------------------------------

Ask = Callable[..., tuple[int, str]]
"""Called with a path, and a body to post; returns status and text, 0 if nobody answers."""
ANSWERS_PER_WORKER = 2
PROMPT = "Hello"  # shorter than a block: no cache is warm afterwards
TOKEN = re.compile(r'content"\s*:\s*"[^"]')


def missing_to_serve(ask: Ask, topology: Topology) -> Iterator[str]:
    """Yield what is missing before every worker serves; completions are asked for last of all.

    A model is listed seconds before a request to it succeeds, and the first answer of a program
    takes seconds longer than others.
    """
    groups = topology.groups
    model = next(iter(groups.values())).model
    status, text = ask("v1/models")
    models = [at(entry, "id") for entry in _listed(status, text, "data")]
    if model not in models:
        yield f"{model} is listed, now {', '.join(map(str, models)) or status or text}"
    instances = {
        (at(entry, "component"), at(entry, "instance_id"))
        for entry in _listed(*ask("health"), "instances")
        if at(entry, "endpoint") == "generate" and "router" not in str(at(entry, "component"))
    }
    registered = Counter(component == "prefill" for component, _ in instances)
    wanted = {role == "prefill": group.replicas for role, group in groups.items()}
    for prefill, kind in ((True, "prefill workers"), (False, "workers")):
        if registered[prefill] != wanted.get(prefill, 0):
            yield f"{wanted.get(prefill, 0)} {kind} registered, now {registered[prefill]}"
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "stream": True}
    for _ in range(ANSWERS_PER_WORKER * sum(wanted.values())):
        status, text = ask("v1/chat/completions", body)
        if status != 200 or "[DONE]" not in text or not TOKEN.search(text):
            yield f"a streamed completion, now {status} {text[:120]}"


def _listed(status: int, text: str, key: str) -> list[Object]:
    """Return the list in an answer, empty if there is none."""
    try:
        return list(json.loads(text)[key]) if status == 200 else []
    except (ValueError, LookupError, TypeError):
        return []
