"""``perf.yaml``: the AIPerf command, what a run sets in it, and the scripts that its Job mounts.

Input: the file. Output: a `Benchmark`, whose checked part is typed; or what is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

from pydantic import Field

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
class Benchmark:
    """A ``perf.yaml``: its documents, the Job as written and as checked."""

    path: Path
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
        if set(bounds) != set(SLOS.values()):
            self.reject("--goodput", f"{':<ms> '.join(SLOS)}:<ms>", f"'{text}'")
        return bounds

    def option(self, name: str) -> str:
        """Return the value of an option of the AIPerf command.

        Raises
        ------
        InputError
            If it has none.
        """
        if name not in self.command[:-1]:
            self.reject("args", f"the option {name} in the AIPerf command", "none")
        return self.command[self.command.index(name) + 1]

    def reject(self, key: str, expected: str, got: str) -> NoReturn:
        """Raise the error of this file: the place, what was expected and what came."""
        raise InputError(expected=expected, got=got, path=self.path, key=key, fix=FIX)

    def check(self) -> None:
        """Reject a file into which a run's own values cannot be put.

        Raises
        ------
        InputError
            Naming what it lacks.
        """
        if self.command[:2] != ["aiperf", "profile"]:
            self.reject("args", "'aiperf profile' and its options", " ".join(self.command)[:60])
        env = {variable.name: variable.value for variable in self.container.env}
        volumes = [volume.name for volume in self.declared.volumes]
        for key, needed, names in (
            ("env", BENCHMARK_ENV, [*env]),
            ("volumes", ("perf-cache",), volumes),
        ):
            for name in needed:
                if name not in names:
                    self.reject(key, f"{name} among the names", ", ".join(names) or "none")
        for name in ("--input-file", "--artifact-dir"):
            self.option(name)
        timeout = "--request-timeout-seconds"
        for key, text in {"env.READY_S": env["READY_S"], timeout: self.option(timeout)}.items():
            if not re.fullmatch(r"\d+(\.\d+)?", str(text)):
                self.reject(key, "seconds", f"{text!r:.60}")

    def check_scripts(self, scripts: Json) -> None:
        """Reject a Job that does not run one of the study's scripts from where it mounts them.

        Raises
        ------
        InputError
            Naming what differs.
        """
        name = scripts["metadata"]["name"]
        volumes = [v.name for v in self.declared.volumes if v.config_map == name]
        if not volumes:
            self.reject("volumes", f"the ConfigMap {name} of ../../benchmark", "none")
        folders = [m.path for m in self.container.mounts if m.name in volumes]
        programs = [f"{folder}/{script}" for folder in folders for script in scripts["data"]]
        command = self.container.command
        if command not in [("bash", program) for program in programs]:
            known = " or ".join(programs) or f"a script of the volume {volumes[0]}, mounted"
            self.reject("command", f"bash and {known}", " ".join(command)[:60])


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
