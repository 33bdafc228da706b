"""What is declared: a study with every path of it, and the cluster profiles.

Input: YAML files under ``recipes/``. Output: frozen models that the other modules read; a new study
begun from one that works.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, RootModel, model_validator

from kvab.declarations import Declared, digest, read_declaration
from kvab.errors import InputError
from kvab.trace.finding import TraceSource

ACTIVE = "<>[]{}`$\\"  # what Markdown and HTML would take for more than text


def _plain(text: str) -> str:
    if active := set(text) & set(ACTIVE):
        raise ValueError(f"expected a plain text for pages, without {' '.join(sorted(active))}")
    return text


PageText = Annotated[str, AfterValidator(_plain)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
WorkloadName = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9-]*$")]
MetricKey = Annotated[str, Field(pattern="^(ttft_ms|itl_ms|latency_ms|good_share)$")]


class Source(Declared):
    """The page that a study takes its question and its bounds from."""

    name: PageText
    url: Annotated[str, Field(pattern=r"^https://[^\s<>()\[\]]+$")]


class Model(Declared):
    """The served model and the revision of its files."""

    name: str
    revision: str


class Gpus(Declared):
    """The hardware: ``count`` GPUs for each configuration; where they differ, for the largest.

    The number of ``nodes`` that hold them is told, and not checked.
    """

    product: str
    count: Count
    nodes: Count | None = None
    differ: bool = False


class Slo(Declared):
    """The service level that a good request meets, both bounds in milliseconds."""

    ttft_ms: Positive
    itl_ms: Positive


class Factors(Declared):
    """Place of a configuration in the 2x2 of split and routing."""

    split: Literal["aggregated", "disaggregated"]
    routing: Literal["round-robin", "kv"]


class Arm(Declared):
    """A configuration as the study presents it; its topology is written in its manifests."""

    path: str
    label: PageText
    phrase: PageText
    short: PageText
    role: Literal["baseline", "comparison", "ablation"]
    factors: Factors


class Statistics(Declared):
    """Settings of the interval methods."""

    level: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: int

    @property
    def percent(self) -> str:
        """The level of the intervals as pages write it."""
        return f"{100 * self.level:g} %"


class Split(Declared):
    """How many workers prefill and how many decode."""

    prefill: Count
    decode: Count

    @property
    def label(self) -> str:
        """The field's short form, such as 6P2D."""
        return f"{self.prefill}P{self.decode}D"


class Capacity(Declared):
    """The sweep: arrival speeds, the good shares asked for, and layouts on the same GPUs.

    At ``layout_loads`` the comparison's workers are laid out as each of ``splits``, and those of
    aggregated configurations with ``tensor_parallel`` GPUs each. ``repeats`` of the two main
    configurations are replayed at the loads next to a crossing. Every load is judged at every two
    bounds of ``ttft_ms`` and ``itl_ms``.
    """

    loads: list[Positive]
    good_shares: list[Annotated[float, Field(gt=0, lt=1)]]
    headline: float
    repeats: Count = 1
    splits: list[Split]
    tensor_parallel: list[Count] = Field(default_factory=list)
    layout_loads: list[Positive] = Field(default=[1.0])
    ttft_ms: list[Positive] = Field(default_factory=list)
    itl_ms: list[Positive] = Field(default_factory=list)
    gpu_dollars_per_hour: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Capacity:
        if len(self.loads) < 2 or self.loads != sorted(set(self.loads)) or 1 not in self.loads:
            raise ValueError("loads that rise, 1 (the trace's own speed) among them")
        for key in ("good_shares", "ttft_ms", "itl_ms"):
            if (values := getattr(self, key)) != sorted(set(values)):
                raise ValueError(f"{key} that rise")
        if not {*self.layout_loads} <= {*self.loads} or 1 not in self.layout_loads:
            raise ValueError("layout_loads of the loads, 1 among them")
        if bool(self.ttft_ms) != bool(self.itl_ms):
            raise ValueError("ttft_ms and itl_ms, or neither")
        if self.headline not in self.good_shares:
            raise ValueError("headline to be one of good_shares")
        return self


class Hours(Declared):
    """How many hours are made of the trace's conversations, and the seed of what is drawn."""

    count: Annotated[int, Field(ge=3)]
    seed: Annotated[int, Field(ge=0)]


class Sensitivity(Declared):
    """What the simulation leaves out or takes for granted, replayed at other values.

    ``kv_transfer_gb_per_s`` and ``frontend_ms_per_1k_tokens`` are a profile's, ``chunk_tokens``
    the engines' --max-num-batched-tokens, ``time_ratios`` stretch steps of prefill and decode,
    ``reuse`` is the share of conversations that keep what they reuse of others and of themselves;
    ``again`` replays of the very same order show what the router's own chance is worth.
    """

    kv_transfer_gb_per_s: list[Positive | Literal["free"]]
    frontend_ms_per_1k_tokens: list[Annotated[float, Field(ge=0)]]
    chunk_tokens: list[Count]
    time_ratios: list[Positive]
    reuse: list[Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=list)
    again: Count


class Study(Declared):
    """The whole declaration of a study, with the folder it was read from.

    Of its workloads one is replayed: the first, or another one in the study that `on` returns.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]*$")]
    version: Count
    title: PageText
    about: PageText = ""
    source: Source | None = None
    model: Model
    gpus: Gpus
    workloads: Annotated[dict[WorkloadName, TraceSource], Field(min_length=1)]
    slo: Slo
    other_slos: list[Slo] = Field(default_factory=list)
    configurations: dict[str, Arm]
    repeats: Count
    seeds: list[int]
    margins: dict[MetricKey, Positive]
    statistics: Statistics
    capacity: Capacity | None = None
    hours: Hours | None = None
    sensitivity: Sensitivity | None = None
    folder: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        roles = [arm.role for arm in self.configurations.values()]
        for role in ("baseline", "comparison"):
            if roles.count(role) != 1:
                raise ValueError(f"exactly one configuration with the role {role}")
        most = max(self.repeats, self.capacity.repeats if self.capacity else 1)
        if len(self.seeds) < most or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a different seed for each of the {most} repeats in seeds")
        if len(self.margins) != 4:
            raise ValueError("ttft_ms, itl_ms, latency_ms and good_share in margins")
        return self

    @property
    def file(self) -> Path:
        """Where it is declared."""
        return self.folder / "study.yaml"

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration's content; comments and order do not count."""
        return digest(self.model_dump(mode="json"))

    @property
    def base(self) -> str:
        """Name of the study, whatever its workload."""
        return self.name.partition(WITH)[0]

    @property
    def workload(self) -> str:
        """Name of the workload that is replayed."""
        return self.name.partition(WITH)[2] or next(iter(self.workloads))

    @property
    def trace(self) -> TraceSource:
        """The workload that is replayed."""
        source = self.workloads[self.workload]
        return source.model_copy(update={"first": self.name == self.base})

    def on(self, workload: str = "") -> Study:
        """Return the study of another of its workloads, by default of the first.

        With any but the first it has a name of its own, such as ``qwen3-32b+toolagent``, and so its
        own folders of runs, tables and published files: nothing of two workloads is ever pooled.

        Raises
        ------
        InputError
            If it declares no workload of that name.
        """
        first = next(iter(self.workloads))
        workload = workload or first
        if workload not in self.workloads:
            fix = f"choose one of {', '.join(self.workloads)}"
            raise InputError(f"no workload '{workload}'", path=self.file, fix=fix)
        name = self.base if workload == first else f"{self.base}{WITH}{workload}"
        return self.model_copy(update={"name": name})

    @property
    def baseline(self) -> str:
        """Name of the baseline configuration."""
        return next(name for name, arm in self.configurations.items() if arm.role == "baseline")

    @property
    def comparison(self) -> str:
        """Name of the comparison configuration."""
        return next(name for name, arm in self.configurations.items() if arm.role == "comparison")

    @property
    def main(self) -> tuple[str, str]:
        """Names of the baseline and the comparison."""
        return self.baseline, self.comparison

    def configuration_folder(self, name: str) -> Path:
        """Return the recipe folder of a configuration.

        Raises
        ------
        InputError
            If the study has no configuration of that name.
        """
        if name not in self.configurations:
            fix = f"choose one of {', '.join(self.configurations)}"
            raise InputError(f"no configuration '{name}'", path=self.file, fix=fix)
        return self.folder / self.configurations[name].path

    def seed(self, repeat: int) -> int:
        """Return the seed of a repeat, counted from 1."""
        if not 1 <= repeat <= len(self.seeds):
            expected = f"a repeat from 1 to {len(self.seeds)} (one a seed)"
            fix = "add a seed or choose another repeat"
            raise InputError(expected=expected, got=f"{repeat}", path=self.file, fix=fix)
        return self.seeds[repeat - 1]


PUBLISHED = Path("book/published")
WITH = "+"  # between the name of a study and that of its workload, if that is not the first
FRAGMENT = "#"  # between a study file and a workload


def root() -> Path:
    """Return the checkout: ``KVAB_ROOT``, else above the working folder, else above the package.

    Raises
    ------
    InputError
        If none of them holds ``recipes/`` and ``notebooks/``.
    """
    here = Path.cwd()
    package = Path(__file__).resolve().parents[2]
    named = os.environ.get("KVAB_ROOT")
    for folder in [Path(named)] if named else [here, *here.parents, package]:
        if (folder / "recipes").is_dir() and (folder / "notebooks").is_dir():
            return folder
    expected = "a checkout of the study (recipes/ and notebooks/)"
    fix = "go there or name it in KVAB_ROOT"
    raise InputError(expected=expected, path=named or here, fix=fix)


def default_study() -> Path:
    """Return the file of the study meant where none is named: the only one, or only published one.

    Raises
    ------
    InputError
        If several could be meant, or there is none.
    """
    checkout = root()
    known = sorted((checkout / "recipes").glob("*/study.yaml"))
    published = [path for path in known if (checkout / PUBLISHED / path.parent.name).is_dir()]
    for meant in (known, published):
        if len(meant) == 1:
            return meant[0]
    names = ", ".join(str(path.relative_to(checkout)) for path in known) or "none"
    problem = f"which study? there are: {names}"
    raise InputError(problem, path=checkout / "recipes", fix="name one (--study)")


def load_study(path: str | Path | Study = "") -> Study:
    """Return the study declared in a file; without a name, that of `default_study`.

    A relative path counts from the checkout. ``study.yaml#toolagent`` is the study of that
    workload. A study that is loaded already is returned as it is.
    """
    if isinstance(path, Study):
        return path
    file, _, workload = str(path).partition(f".yaml{FRAGMENT}")
    path = Path(f"{file}.yaml" if workload else path or default_study())
    path = path if path.is_absolute() else root() / path
    study = read_declaration(path, Study, folder=path.parent)
    return study.on(workload) if workload else study


# --- the cluster profiles: where configurations are deployed -----------------------------------

PRODUCT = "nvidia.com/gpu.product"


class Timed(Declared):
    """What both kinds say whose engines only wait: hardware and backend name measured kernel data.

    ``kv_transfer_gb_per_s`` is what a worker sends of its KV cache to another, over all of its
    GPUs, in GB/s; None is free. ``frontend_ms_per_1k_tokens`` is how long the frontend takes for
    each thousand prompt tokens, one request after the other, before the router has a request; 0 is
    at once, and all requests of a burst reach the router at one instant. On a live cluster it says
    how the run is simulated, and changes nothing of the run.
    """

    name: str
    description: str
    hardware: str
    backend: str
    kv_transfer_gb_per_s: Positive | None = None
    frontend_ms_per_1k_tokens: Annotated[float, Field(ge=0)] = 0.0


class Simulated(Timed):
    """NVIDIA's simulator on this machine.

    ``prefill_time_ratio`` and ``decode_time_ratio`` stretch the simulator's times of a step that
    prefills and of one that only decodes, for hardware whose error is known.
    """

    kind: Literal["simulated"]
    prefill_time_ratio: Positive = 1.0
    decode_time_ratio: Positive = 1.0


class Live(Timed):
    """Dynamo's frontend, router and mocker engines on this machine, under real AIPerf."""

    kind: Literal["live"]


class Limits(Declared):
    """Longest waits on a cluster, in seconds.

    ``retry_s`` bounds the patience with an API server that does not answer, ``grace_s`` how long
    a cause of failure that may pass is watched, ``poll_s`` the time between two looks, and ten
    times the first pause before a failed call is repeated. A client on another machine counts as
    gone when it has shown no sign of life for ``lease_s``.
    """

    prepare_s: Positive = 600
    deploy_s: Positive = 7200
    replay_s: Positive = 10800
    teardown_s: Positive = 900
    retry_s: Positive = 300
    grace_s: Annotated[float, Field(ge=0)] = 60
    lease_s: Positive = 60
    poll_s: Positive = 5


class Kubernetes(Declared):
    """A cluster with GPUs, Dynamo's operator and the manifests applied as they are rendered."""

    kind: Literal["kubernetes"]
    name: str
    description: str
    context: str | None = None
    namespace: str
    storage_class: str
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    image: str | None = None
    runtime_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+")] | None = None
    image_pull_secret: str | None = None
    hf_token_secret: str = "hf-token-secret"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, str]] = Field(default_factory=list)
    rdma_resource: str | None = None
    campaign_image: str | None = None
    campaign_parallelism: Count = 16
    limits: Limits = Limits()


Profile = Annotated[Simulated | Live | Kubernetes, Field(discriminator="kind")]


class _File(RootModel[Profile]):
    """The content of a profile's file."""


def load_cluster(name: str) -> Profile:
    """Return the cluster profile ``recipes/clusters/<name>.yaml``.

    Raises
    ------
    InputError
        If there is no such profile, or its name is not its file's.
    """
    folder = root() / "recipes" / "clusters"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        fix = f"choose one of {', '.join(known)}, or copy example-h200.yaml"
        raise InputError(f"no cluster '{name}'", path=folder, fix=fix)
    path = folder / f"{name}.yaml"
    profile = read_declaration(path, _File).root
    if profile.name != name:
        expected, fix = f"{name} as the file is called", "rename one of the two"
        raise InputError(expected=expected, got=profile.name, path=path, key="name", fix=fix)
    return profile


def check_product(study: Study, profile: Profile) -> None:
    """Reject a cluster of other GPUs than the study is about, as far as its profile names them.

    Raises
    ------
    InputError
        Naming both.
    """
    if isinstance(profile, Kubernetes):
        key, product = f"node_selector {PRODUCT}", profile.node_selector.get(PRODUCT)
    else:
        key, product = "hardware", profile.hardware
    wanted = study.gpus.product
    if product is not None and _chip(product) != _chip(wanted):
        problem = f"gpus.product is {wanted}, but cluster {profile.name} has {product} ({key})"
        fix = f"choose a profile of {wanted} with --cluster, or change one of the two"
        raise InputError(problem, path=study.file, fix=fix)


def _chip(text: str) -> str:
    """Return the name of a GPU without vendor and form: h200 of ``NVIDIA-H200`` and h200_sxm."""
    words = re.split("[^a-z0-9]+", text.lower())
    return next((word for word in words if re.search(r"\d", word)), text.lower())


# --- a new study -------------------------------------------------------------------------------

NEW_NAME = "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"  # it becomes part of Kubernetes labels
NEXT = """\
{study}
  title, model, gpus, workloads, slo, configurations, seeds, margins: say what you ask, and of what;
  gpus.differ: true where configurations are meant to fill different numbers of GPUs
{folder}/*/*/deploy.yaml
  the topology of each configuration: model, replicas, GPUs, router
{folder}/*/*/perf.yaml
  the AIPerf command: the same model, and --goodput as in slo
{folder}/model-cache/
  which model files a Kubernetes cluster fetches once
{profile}
  where it is replayed: name and description; hardware, the simulator's measured data of the chip
  that gpus.product names, and backend
kvab doctor --study {study} --cluster {cluster}
  says what does not fit together yet, and what the simulator has no data of
kvab report --study {study} --cluster {cluster}
  replays everything and builds its book"""


def new_study(name: str, like: Path, cluster: str = "simulated-h200") -> str:
    """Copy a study's declaration, manifests and a profile to new names; return what to change next.

    Raises
    ------
    InputError
        If the name cannot be a study's, or ``recipes/`` has something of the new names.
    """
    if not re.match(NEW_NAME, name):
        expected = "a name of lower-case letters, digits and dashes, 40 at most, such as my-study"
        raise InputError(expected=expected, path=name)
    source = load_study(like)
    target, like_profile = root() / "recipes" / name, load_cluster(cluster)
    profile = target.parent / "clusters" / f"{like_profile.kind}-{name}.yaml"
    for path in (target, profile):
        if path.exists():
            raise InputError("exists already", path=path, fix="choose another name")
    old = re.escape(source.name)
    own = re.compile(rf"(?<![\w/-]){old}(?![\w-])|(?<=/){old}(?=/)")
    with tempfile.TemporaryDirectory(prefix=".new-", dir=target.parent) as beside:
        copy = shutil.copytree(source.folder, Path(beside) / name)
        for path in copy.rglob("*.yaml"):
            text = own.sub(name, path.read_text(encoding="utf-8"))
            if path.name == "study.yaml":
                text = re.sub(r"(?m)^version: \d+$", "version: 1", text)
                text = re.sub(r"(?m)(^#.*\n)?^source:\n(  .*\n)+", "", text)  # the question is new
            path.write_text(text, encoding="utf-8")
        load_study(copy / "study.yaml")
        text = profile.with_stem(cluster).read_text(encoding="utf-8")
        text = re.sub("(?m)^name: .*", f"name: {profile.stem}", text)
        profile.write_text(text, encoding="utf-8")
        copy.rename(target)
    folder = target.relative_to(root())
    return NEXT.format(
        folder=folder,
        study=folder / "study.yaml",
        profile=profile.relative_to(root()),
        cluster=profile.stem,
    )
