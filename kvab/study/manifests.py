"""A configuration's manifests: read, checked, and the services in them.

Input: a folder with ``deploy.yaml`` and ``perf.yaml``. Output: a `Configuration` whose manifests
are about one deployment and can be applied, with the AIPerf command and what a run sets in it; the
same deployment in the form of the other API version; the scripts that its Job mounts.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import AfterValidator, Field

from kvab.declarations import Json, Part, below, checked, digest, read_yaml
from kvab.errors import InputError

BENCHMARK_ENV = ("RUN_ID", "TRACE_SHA256", "READY_S")  # a run puts its own values there
SLOS = {"time_to_first_token": "ttft_ms", "inter_token_latency": "itl_ms"}
FIX = "fix it there"


class Named(Part):
    """An entry of a list that is known by its name."""

    name: str


class Variable(Named):
    """A variable of a container's environment."""

    value: object = None
    source: object = Field("", alias="valueFrom")


class Mount(Named):
    """Where a container sees a volume."""

    path: str = Field(alias="mountPath")


class Volume(Named):
    """A volume of a pod."""

    config_map: Annotated[str, below("configMap.name")] = ""


class Container(Part):
    """The container that runs AIPerf."""

    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...]
    env: tuple[Variable, ...] = ()
    mounts: tuple[Mount, ...] = Field((), alias="volumeMounts")


class Job(Part):
    """The Job of a benchmark."""

    name: Annotated[str, below("metadata.name")]
    labels: Annotated[dict[str, object] | None, below("metadata.labels")] = None
    annotations: Annotated[dict[str, object] | None, below("metadata.annotations")] = None
    containers: Annotated[
        tuple[Container, ...], below("spec.template.spec.containers"), Field(min_length=1)
    ]
    volumes: Annotated[tuple[Volume, ...], below("spec.template.spec.volumes")] = ()


@dataclass(frozen=True)
class Manifest:
    """A file that is wrong where one of its keys is not what it should be."""

    path: Path

    def reject(self, key: str, expected: str, got: object = "") -> NoReturn:
        """Raise the error of this file: the key, what was expected and what came."""
        raise InputError(expected=expected, got=str(got), path=self.path, key=key, fix=FIX)

    def expect(self, right: bool, key: str, expected: str, got: object = "") -> None:
        """Reject the file unless a key is right."""
        if not right:
            self.reject(key, expected, got)


@dataclass(frozen=True)
class Benchmark(Manifest):
    """A ``perf.yaml``: its documents, the Job as written and as checked."""

    documents: list[Json]
    job: Json
    declared: Job

    @property
    def digest(self) -> str:
        """SHA-256 of the parsed file as canonical JSON."""
        return digest(self.documents)

    @property
    def container(self) -> Container:
        """The container that runs AIPerf."""
        return self.declared.containers[0]

    @property
    def command(self) -> list[str]:
        """The AIPerf command, as written in the arguments of the Job."""
        return [*self.container.args]

    def slo(self) -> dict[str, float]:
        """Return the bounds of ``--goodput`` in ms, as ``{"ttft_ms": ..., "itl_ms": ...}``."""
        text = self.option("--goodput")
        try:
            pairs = (word.split(":") for word in text.split())
            bounds = {SLOS[metric]: float(ms) for metric, ms in pairs}
        except (ValueError, KeyError):
            bounds = {}
        expected = f"{':<ms> '.join(SLOS)}:<ms>"
        self.expect(set(bounds) == set(SLOS.values()), "--goodput", expected, f"'{text}'")
        return bounds

    def option(self, name: str) -> str:
        """Return the value of an option of the AIPerf command.

        Raises
        ------
        InputError
            If it has none.
        """
        there = name in self.command[:-1]
        self.expect(there, "args", f"the option {name} in the AIPerf command", "none")
        return self.command[self.command.index(name) + 1]

    def check(self) -> None:
        """Reject a file into which a run's own values cannot be put.

        Raises
        ------
        InputError
            Naming what it lacks.
        """
        right, got = self.command[:2] == ["aiperf", "profile"], " ".join(self.command)[:60]
        self.expect(right, "args", "'aiperf profile' and its options", got)
        env = {variable.name: variable.value for variable in self.container.env}
        volumes = [volume.name for volume in self.declared.volumes]
        needed = [("env", name, [*env]) for name in BENCHMARK_ENV]
        for key, name, names in (*needed, ("volumes", "perf-cache", volumes)):
            got = ", ".join(names) or "none"
            self.expect(name in names, key, f"{name} among the names", got)
        for name in ("--input-file", "--artifact-dir"):
            self.option(name)
        timeout = "--request-timeout-seconds"
        for key, text in {"env.READY_S": env["READY_S"], timeout: self.option(timeout)}.items():
            right = bool(re.fullmatch(r"\d+(\.\d+)?", str(text)))
            self.expect(right, key, "seconds", f"{text!r:.60}")

    def check_scripts(self, scripts: Json) -> None:
        """Reject a Job that does not run one of the study's scripts from where it mounts them.

        Raises
        ------
        InputError
            Naming what differs.
        """
        name = scripts["metadata"]["name"]
        volumes = [v.name for v in self.declared.volumes if v.config_map == name]
        expected = f"the ConfigMap {name} of ../../benchmark"
        self.expect(bool(volumes), "volumes", expected, "none")
        folders = [m.path for m in self.container.mounts if m.name in volumes]
        programs = [f"{folder}/{script}" for folder in folders for script in scripts["data"]]
        known = " or ".join(programs) or f"a script of the volume {volumes[0]}, mounted"
        command = self.container.command
        right = command in [("bash", program) for program in programs]
        self.expect(right, "command", f"bash and {known}", " ".join(command)[:60])


def read_benchmark(path: Path) -> Benchmark:
    """Return a ``perf.yaml``; in that of an older run the scripts' ConfigMap is beside the Job.

    Raises
    ------
    InputError
        If it is not YAML, has not one Job, or one into which a run's values cannot be put.
    """
    documents = read_yaml(path)
    kinds = [part.get("kind") if isinstance(part, dict) else None for part in documents]
    if kinds.count("Job") != 1:
        got = ", ".join(map(str, kinds)) or "nothing"
        raise InputError(expected="one Job", got=got, path=path, key="kind", fix=FIX)
    job = documents[kinds.index("Job")]
    benchmark = Benchmark(path, documents, job, checked(job, Job, path, FIX))
    benchmark.check()
    return benchmark


def read_scripts(study: Path) -> Json:
    """Return the ConfigMap of a study's scripts, as ``kubectl apply -k`` makes it of their folder.

    Raises
    ------
    InputError
        If the folder is not whole.
    """
    path = study / "benchmark" / "kustomization.yaml"
    try:
        (declared,) = read_yaml(path)
        (made,) = declared["configMapGenerator"]
        metadata = {"name": made["name"], "labels": {**declared["generatorOptions"]["labels"]}}
        data = {name: (path.parent / name).read_text(encoding="utf-8") for name in made["files"]}
    except (LookupError, TypeError, ValueError, OSError) as error:
        expected = "one configMapGenerator with a name and files that are there, and " \
            "generatorOptions with labels"  # fmt: skip
        fix = "copy it from the study that you began with"
        raise InputError(expected=expected, got=str(error), path=path, fix=fix) from None
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


# --- deploy.yaml -------------------------------------------------------------------------------

Object = Json
DEPLOY, PERF = "deploy.yaml", "perf.yaml"
KIND, ALPHA, BETA = "DynamoGraphDeployment", "nvidia.com/v1alpha1", "nvidia.com/v1beta1"
FRONTEND, VLLM = "dynamo.frontend", "dynamo.vllm"
PROGRAMS = {"frontend": FRONTEND, "worker": VLLM, "prefill": VLLM, "decode": VLLM}
ALIASES = {"-tp": "--tensor-parallel-size"}
MAIN_CONTAINER = "extraPodSpec.mainContainer"


def _devices(count: object) -> object:
    if count is not None and not str(count).isdecimal():
        raise ValueError("a number of devices")
    return count


class Amounts(Part):
    """The devices that a service asks for."""

    gpu: Annotated[str, AfterValidator(_devices)] = ""
    custom: dict[str, Annotated[object, AfterValidator(_devices)]] | None = None


class Resources(Part):
    """What a service asks for, and at most gets."""

    limits: Amounts = Amounts()
    requests: Amounts = Amounts()


class Service(Part):
    """The checked part of a service, of which a profile's values and a topology are made."""

    kind: Literal["frontend", "worker", "prefill", "decode"] = Field(alias="componentType")
    role: str = Field("", alias="subComponentType")
    replicas: Annotated[int, Field(ge=1, strict=True)] = 1
    image: Annotated[str | None, below(f"{MAIN_CONTAINER}.image")] = None
    command: Annotated[tuple[str, ...], below(f"{MAIN_CONTAINER}.command")] = ()
    args: Annotated[tuple[str, ...], below(f"{MAIN_CONTAINER}.args")] = ()
    env: Annotated[tuple[Variable, ...], below(f"{MAIN_CONTAINER}.env")] = ()
    envs: tuple[Variable, ...] = ()
    resources: Resources = Resources()
    selector: Annotated[dict[str, object] | None, below("extraPodSpec.nodeSelector")] = None
    tolerations: Annotated[tuple[object, ...], below("extraPodSpec.tolerations")] = ()


class Deployment(Part):
    """The checked part of a ``deploy.yaml``."""

    version: Literal["nvidia.com/v1alpha1"] = Field(alias="apiVersion")
    kind: Literal["DynamoGraphDeployment"]
    name: Annotated[str, below("metadata.name")]
    labels: Annotated[dict[str, object] | None, below("metadata.labels")] = None
    annotations: Annotated[dict[str, object] | None, below("metadata.annotations")] = None
    envs: Annotated[tuple[Variable, ...], below("spec.envs")] = ()
    services: Annotated[dict[str, Service], below("spec.services")]


class BetaDeployment(Part):
    """The checked part of a deployment in v1beta1 form, of which one in v1alpha1 is made."""

    components: Annotated[tuple[Named, ...], below("spec.components")]


@dataclass(frozen=True)
class Component(Manifest):
    """A service as written and as checked; ``flags`` are its arguments, None for a bare switch."""

    name: str
    service: Object
    declared: Service
    program: str
    flags: dict[str, str | None]
    environment: dict[str, str]

    @property
    def container(self) -> Object:
        """The main container, as written."""
        container: Object = self.service["extraPodSpec"]["mainContainer"]
        return container

    def reject(self, key: str, expected: str, got: object = "") -> NoReturn:
        """Raise the error of a key of the service."""
        super().reject(f"{self.name}.{key}", expected, got)


@dataclass(frozen=True)
class Configuration(Manifest):
    """The manifests of a recipe folder: the deployment as written and as checked, the benchmark.

    ``path`` is that of ``deploy.yaml``.
    """

    name: str
    deploy: Object
    declared: Deployment
    benchmark: Benchmark

    @property
    def digest(self) -> str:
        """SHA-256 of the parsed ``deploy.yaml`` as canonical JSON."""
        return digest(self.deploy)

    @property
    def folder(self) -> Path:
        """The recipe folder."""
        return self.path.parent

    @property
    def deployment(self) -> str:
        """Name of the deployment."""
        return self.declared.name

    def components(self) -> dict[str, Component]:
        """Return the services by name, with their command lines parsed."""
        return {name: self._component(name) for name in self.declared.services}

    def _component(self, name: str) -> Component:
        declared = self.declared.services[name]
        tokens = [*declared.command, *declared.args]
        if tokens[1:2] == ["-c"] and Path(tokens[0]).name in ("sh", "bash"):
            try:
                tokens = shlex.split(" ".join(tokens[2:3]))
            except ValueError as error:
                self.reject(f"{name}.command", "one plain command", str(error))
        program = PROGRAMS[declared.kind]
        got = " ".join(tokens[:3]) or "nothing"
        self.expect(program in tokens, f"{name}.command", f"python3 -m {program}", got)
        flags = self._flags(name, tokens[tokens.index(program) + 1 :])
        environment = {
            variable.name: str(variable.value or variable.source)
            for variable in (*self.declared.envs, *declared.envs, *declared.env)
        }
        service = self.deploy["spec"]["services"][name]
        return Component(self.path, name, service, declared, program, flags, environment)

    def _flags(self, name: str, tokens: list[str]) -> dict[str, str | None]:
        flags: dict[str, str | None] = {}
        flag = ""
        for token in tokens:
            if token.startswith("-") and not token[1:2].isdigit():
                text, equals, value = token.partition("=")
                flag = ALIASES.get(text, text.replace("_", "-"))
                self.expect(flag not in flags, f"{name}.args.{flag}", "it once", "it twice")
                flags[flag] = value if equals else None
            else:
                self.expect(flags.get(flag, token) is None, f"{name}.args", "a flag", token)
                flags[flag] = token
        return flags


def read_configuration(folder: Path | str, name: str | None = None) -> Configuration:
    """Return the manifests of a recipe folder; the name is the folder's unless given.

    Raises
    ------
    InputError
        If a manifest is missing, not YAML or of another kind, has no frontend, worker or AIPerf
        command, lacks what a run sets in it, or if the two manifests are not about the same
        deployment and model.
    """
    path = (folder := Path(folder)) / DEPLOY
    documents = read_yaml(path)
    manifest = documents[0] if documents else {}
    if at(manifest, "apiVersion") == BETA:
        manifest = to_alpha(manifest, path)
    declared = checked(manifest, Deployment, path, FIX)
    benchmark = read_benchmark(folder / PERF)
    configuration = Configuration(path, name or folder.name, manifest, declared, benchmark)
    got = f"{len(documents)} documents"
    configuration.expect(len(documents) == 1, "the file", f"one {KIND}", got)
    programs = {part.program: part for part in configuration.components().values()}
    for program in (FRONTEND, VLLM):
        expected = f"a service that runs {program}"
        configuration.expect(program in programs, "spec.services", expected, "none")
    served = {
        "--url": f"http://{declared.name}-{programs[FRONTEND].name.lower()}:8000",
        "-m": programs[VLLM].flags.get("--model"),
    }
    for option, value in served.items():
        got = benchmark.option(option)
        benchmark.expect(got == value, option, f"{value} as in {DEPLOY}", got)
    return configuration


def at(value: object, path: str) -> Any:
    """Return what stands at a dotted path of nested mappings, None if nothing does."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


# The two forms of a deployment: v1alpha1, in which it is written, and v1beta1. Each field goes
# where the operator's conversion webhook takes it (ai-dynamo/dynamo 1.5.0,
# deploy/operator/api/v1alpha1/shared_spec_conversion.go). A claim is a volume of the pod there, and
# the list of claims is left out.

BETA_FILE = "deploy.v1beta1.yaml"
HEADER = """\
# deploy.yaml in the form that Dynamo's operator stores from 1.5 on, for kubectl. kvab reads
# deploy.yaml alone: change that, and `kvab check --fix` writes this file anew.
"""
GPU, MAIN = "nvidia.com/gpu", "main"
WORKER_TYPES = ("prefill", "decode")  # a subtype of workers there, types here
SAME = ("replicas", "runtimeVersionOverride", "multinode", "scalingAdapter", "modelRef")
PROBES = ("livenessProbe", "readinessProbe")


def to_beta(manifest: Object) -> Object:
    """Return a v1alpha1 deployment as v1beta1.

    Raises
    ------
    InputError
        Naming a field that v1beta1 does not have, or that is not what it should be.
    """
    made = copy.deepcopy(manifest)
    spec = made["spec"]
    services = spec.pop("services")
    claims = spec.pop("pvcs", None) or []
    if not isinstance(claims, list) or any(at(claim, "create") for claim in claims):
        raise InputError("v1beta1 creates no claims", key="spec.pvcs", fix="set create: false")
    if "envs" in spec:
        spec["env"] = spec.pop("envs")
    spec["components"] = [
        {"name": name, **_converted(name, service, _beta_component)}
        for name, service in services.items()
    ]
    return {**made, "apiVersion": BETA}


def to_alpha(manifest: Object, path: Path) -> Object:
    """Return a v1beta1 deployment, read from a file, as v1alpha1.

    Raises
    ------
    InputError
        Naming a field that v1alpha1 does not have, or that is not what it should be.
    """
    made = copy.deepcopy(manifest)
    checked(made, BetaDeployment, path, FIX)
    spec = made["spec"]
    if "env" in spec:
        spec["envs"] = spec.pop("env")
    services = {}
    for component in spec.pop("components"):
        name = component.pop("name")
        services[name] = _converted(name, component, _alpha_service, path)
    mounts = (mount for part in services.values() for mount in part.get("volumeMounts", []))
    names = dict.fromkeys(mount["name"] for mount in mounts)
    spec["pvcs"] = [{"name": name, "create": False} for name in names]
    return {**made, "apiVersion": ALPHA, "spec": {**spec, "services": services}}


def pod_templates(manifest: Object) -> dict[str, tuple[Object, int]]:
    """Return pod template and replicas of each component of a v1alpha1 deployment, by name.

    Fields that v1beta1 does not have are left out: they are not the pod's.
    """
    services = copy.deepcopy(manifest["spec"]["services"])
    parts = {name: _beta_component(service) for name, service in services.items()}
    return {name: (part["podTemplate"], part.get("replicas", 1)) for name, part in parts.items()}


def beta_text(manifest: Object) -> str:
    """Return the content of `BETA_FILE` for a v1alpha1 deployment."""
    text: str = yaml.safe_dump(to_beta(manifest), sort_keys=False, width=1000)
    return HEADER + text


def _converted(
    name: str, fields: Object, convert: Callable[[Object], Object], path: Path | str = ""
) -> Object:
    """Return a component converted; what is left of its fields has no place in the other form."""
    try:
        made = convert(fields)
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
        problem = f"not a component ({type(error).__name__}: {error})"
        raise InputError(problem, path=path, key=name, fix=FIX) from None
    if fields:
        problem = "the other API version has no such field"
        raise InputError(problem, path=path, key=f"{name}.{next(iter(fields))}", fix=FIX)
    return made


def _beta_component(fields: Object) -> Object:
    kind, pod = fields.pop("componentType"), fields.pop("extraPodSpec", {})
    role = fields.pop("subComponentType", kind)
    made: Object = {"type": role if kind == "worker" and role in WORKER_TYPES else kind}
    made |= {key: fields.pop(key) for key in SAME if key in fields}
    main = {"name": MAIN, **pod.pop("mainContainer")}
    main |= {key: fields.pop(key) for key in PROBES if key in fields}
    if env := [*fields.pop("envs", []), *main.get("env", [])]:
        main["env"] = list({entry["name"]: entry for entry in env}.values())
    if secret := fields.pop("envFromSecret", None):
        main["envFrom"] = [{"secretRef": {"name": secret}}, *main.get("envFrom", [])]
    if amounts := fields.pop("resources", None):
        main["resources"] = {key: _native(amount) for key, amount in amounts.items()}
    mounts, volumes = list(main.get("volumeMounts", [])), list(pod.get("volumes", []))
    for mount in fields.pop("volumeMounts", []):
        name, path = mount["name"], mount.get("mountPoint")
        if mount.get("useAsCompilationCache"):
            made["compilationCache"] = {"pvcName": name} | ({"mountPath": path} if path else {})
        else:
            mounts.append({"name": name, "mountPath": path})
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    main |= {"volumeMounts": mounts} if mounts else {}
    pod |= {"volumes": volumes} if volumes else {}
    metadata = fields.pop("extraPodMetadata", None)
    template = {"metadata": metadata} if metadata else {}
    spec = {**pod, "containers": [main, *pod.get("containers", [])]}
    return {**made, "podTemplate": {**template, "spec": spec}}


def _alpha_service(fields: Object) -> Object:
    kind, template = fields.pop("type"), fields.pop("podTemplate")
    made: Object = {"componentType": "worker" if kind in WORKER_TYPES else kind}
    made |= {"subComponentType": kind} if kind in WORKER_TYPES else {}
    made |= {key: fields.pop(key) for key in SAME if key in fields}
    pod = template["spec"]
    containers, volumes = pod.pop("containers"), pod.pop("volumes", [])
    main = next(part for part in containers if part["name"] == MAIN)
    others = [part for part in containers if part is not main]
    del main["name"]
    made |= {key: main.pop(key) for key in PROBES if key in main}
    sources = main.pop("envFrom", [])
    if sources and "secretRef" in sources[0]:
        made["envFromSecret"] = sources.pop(0)["secretRef"]["name"]
    claims = {volume["name"] for volume in volumes
              if volume.get("persistentVolumeClaim") == {"claimName": volume["name"]}}  # fmt: skip
    mounts = main.pop("volumeMounts", [])
    flat = [{"name": mount["name"], "mountPoint": mount["mountPath"]}
            for mount in mounts if mount["name"] in claims]  # fmt: skip
    if cache := fields.pop("compilationCache", None):
        path = {"mountPoint": cache["mountPath"]} if "mountPath" in cache else {}
        flat.append({"name": cache["pvcName"], **path, "useAsCompilationCache": True})
    made |= {"volumeMounts": flat} if flat else {}
    if metadata := template.get("metadata"):
        made["extraPodMetadata"] = metadata
    if amounts := main.pop("resources", None):
        made["resources"] = {key: _flat(amount) for key, amount in amounts.items()}
    kept = {"containers": others, "volumes": [v for v in volumes if v["name"] not in claims]}
    pod |= {key: value for key, value in kept.items() if value}
    own = {"envFrom": sources, "volumeMounts": [m for m in mounts if m["name"] not in claims]}
    main |= {key: value for key, value in own.items() if value}
    return {**made, "extraPodSpec": {**pod, "mainContainer": main}}


def _native(amounts: Object) -> Object:
    """Return amounts of devices as a container has them."""
    native = {key: value for key, value in amounts.items() if key not in ("gpu", "custom")}
    native |= {GPU: amounts["gpu"]} if "gpu" in amounts else {}
    return native | amounts.get("custom", {})


def _flat(amounts: Object) -> Object:
    flat = {key: value for key, value in amounts.items() if key in ("cpu", "memory")}
    flat |= {"gpu": amounts[GPU]} if GPU in amounts else {}
    custom = {key: value for key, value in amounts.items() if key not in (*flat, GPU)}
    return flat | ({"custom": custom} if custom else {})
