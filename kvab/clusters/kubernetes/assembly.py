"""Everything that one run applies to a cluster, assembled from recipe, profile and workload.

Input: a profile and a job. Output: marked manifests, names, and what must be there when it serves.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kvab.cache import write_beside
from kvab.clusters.base import Finding, Job
from kvab.clusters.kubernetes import applied, deploying, marks, preflight, readiness
from kvab.clusters.kubernetes.kube import Kube
from kvab.study import Kubernetes, Study
from kvab.study.recipes import Configuration, Topology, read_configuration
from kvab.trace import write_rows

Object = dict[str, Any]


class Assembly:
    """One run as a cluster gets it."""

    def __init__(self, profile: Kubernetes, job: Job) -> None:
        self.profile, self.job = profile, job

    @cached_property
    def recipe(self) -> Configuration:
        """The manifests of the job's configuration."""
        return self.job.recipe

    @cached_property
    def workload(self) -> tuple[applied.Sending, bytes]:
        """What is sent, and its file unless the benchmark fetches the published one."""
        trace, order = self.job.trace, self.job.order()
        published = trace.sha256 == self.job.study.trace.sha256
        whole = np.array_equal(order, np.arange(len(trace)))
        span_s = float(trace.arrival_ms[order].max()) / 1000
        if published and whole:
            return applied.Sending(trace.sha256, len(order), span_s, False), b""
        with tempfile.TemporaryDirectory(prefix="kvab-") as folder:
            path = write_rows(trace, order, Path(folder) / "trace.jsonl")
            content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        return applied.Sending(sha256, len(order), span_s, True), content

    def manifests(self, run_id: str = "") -> list[Object]:
        """Return deployment and Job, marked as the run's own, with the scripts between them."""
        recipe, (sending, _) = self.recipe, self.workload
        deployment = applied.deployment(recipe, self.profile)
        scripts = applied.scripts(self.job.study, recipe, self.profile)
        plain = [deployment, scripts, applied.benchmark(recipe, self.profile, sending, "")]
        mark = self.mark(applied.content_digest(plain, sending), run_id)
        job = applied.benchmark(recipe, self.profile, sending, run_id)
        marked = [mark.put(manifest, self.profile.namespace) for manifest in (deployment, job)]
        return [marked[0], scripts, marked[1]]

    def mark(self, digest: str, run_id: str) -> marks.Mark:
        """Return the marks of the run."""
        study = self.job.study
        return marks.Mark(study.name, marks.run_name(study, self.job.path), run_id, digest)

    def digest_mark(self) -> marks.Mark:
        """Return the marks by which an earlier start of the same run is known."""
        plain = self.manifests()[0]
        return self.mark(plain["metadata"]["annotations"][marks.DIGEST], "")

    def lease(self) -> Object:
        """Return the Lease of the run, which at most one client holds."""
        mark = self.digest_mark()
        name = re.sub("[^a-z0-9-]+", ".", f"kvab.{mark.run}".lower()).strip(".-")
        made = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}}
        return mark.put(made, self.profile.namespace)

    def files_pod(self, run_id: str) -> Object:
        """Return the pod through which files go in and out."""
        job = self.manifests(run_id)[2]
        mark = self.mark(job["metadata"]["annotations"][marks.DIGEST], run_id)
        return mark.put(applied.files_pod(job, self.helper), self.profile.namespace)

    def deployments(self) -> set[str]:
        """Return the names of all deployments of the study."""
        study = self.job.study
        folders = [study.configuration_folder(name) for name in study.configurations]
        return {read_configuration(folder).deployment for folder in folders}

    def findings(self, kube: Kube) -> Iterator[Finding]:
        """Yield what the cluster lacks for the run."""
        arms = [(self.recipe, self.manifests("preflight"))]
        return _findings(self.job.study, self.profile, kube, arms)

    def new_id(self) -> str:
        """Return a name for this try of the run, of which no other has the artifacts' folder."""
        at = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(3)}"
        return f"{self.job.configuration}-r{self.job.repeat}-{at}"

    @cached_property
    def job_name(self) -> str:
        """Name of the benchmark's Job."""
        return self.recipe.job["metadata"]["name"]

    @property
    def helper(self) -> str:
        """Name of the pod through which files go in and out."""
        return f"{self.recipe.deployment}-files"

    def expected(self, topology: Topology, found: Object) -> readiness.Expected:
        """Return what must be there when the deployment serves."""
        recipe, groups = self.recipe, topology.groups
        prefill = groups["prefill"].replicas if "prefill" in groups else 0
        return readiness.Expected(
            deployment=recipe.deployment,
            uid=found["metadata"]["uid"],
            replicas=applied.replicas(recipe.deploy),
            frontend=applied.component(recipe),
            service=applied.service_name(recipe),
            model=self.job.study.model.name,
            prefill=prefill,
            others=sum(group.replicas for group in groups.values()) - prefill,
        )

    def witnesses(self) -> tuple[list[str], list[tuple[str, str]]]:
        """Return what tells why the run failed: selectors of pods; kinds and names of the rest."""
        jobs = (self.job_name, "model-download")
        claims = applied.storage(self.job.study, self.profile)
        names = [(deploying.DEPLOYMENT, self.recipe.deployment), *(("Job", name) for name in jobs)]
        names += [("PersistentVolumeClaim", claim["metadata"]["name"]) for claim in claims]
        pods = f"{readiness.DEPLOYMENT}={self.recipe.deployment}"
        return [pods, *(f"job-name={name}" for name in jobs)], names

    def stays(self) -> str:
        """Return what is left in the namespace for later runs, and how to remove it."""
        study = self.job.study
        made = [applied.download(study, self.profile), *applied.storage(study, self.profile)]
        made.append(applied.scripts(study, self.recipe, self.profile))
        kinds = {"Job": "job", "PersistentVolumeClaim": "pvc", "ConfigMap": "configmap"}
        names = " ".join(f"{kinds[each['kind']]}/{each['metadata']['name']}" for each in made)
        return (
            "model files, caches, scripts and the artifacts of every run stay for later runs; "
            f"`kubectl -n {self.profile.namespace} delete {names}` removes them for good"
        )

    @cached_property
    def state_file(self) -> Path:
        """Where it is noted, beside the run, that the cluster holds something of it."""
        return self.job.path.with_name(f".{self.job.path.name}.state.json")

    def note(self, run_id: str, step: str, **kept: Any) -> None:
        """Note beside the run how far it is, and what the cluster cannot be asked for later."""
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        at = datetime.now(UTC).isoformat()
        note = {"run_id": run_id, "step": step, "at": at, **kept}
        write_beside(self.state_file, json.dumps(note, indent=1).encode())

    def noted(self, digest: str) -> dict[str, Any] | None:
        """Return what an earlier start noted when it had replayed this very run, else None."""
        try:
            note = json.loads(self.state_file.read_bytes())
            mine = (note["step"], note["digest"]) == ("replayed", digest)
            return note if mine and note.keys() >= {"run_id", "versions", "provenance"} else None
        except (OSError, ValueError, LookupError, TypeError):
            return None


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield what a cluster lacks for the configurations of a study; nothing is created."""
    applied.check_profile(profile)
    arms = []
    for name in study.configurations:
        recipe = read_configuration(study.configuration_folder(name), name)
        sending = applied.Sending(study.trace.sha256, study.trace.rows, 0.0, False)
        mark = marks.Mark(study.name, f"{study.name}/{name}/doctor", "doctor", "")
        job = applied.benchmark(recipe, profile, sending, "doctor")
        plain = [mark.put(m, profile.namespace) for m in (applied.deployment(recipe, profile), job)]
        arms.append((recipe, [*plain, applied.scripts(study, recipe, profile)]))
    # Whoever asks waits for the answer: little patience.
    yield from _findings(study, profile, Kube(profile).hasty(), arms)


def _findings(
    study: Study, profile: Kubernetes, kube: Kube, arms: list[tuple[Configuration, list[Object]]]
) -> Iterator[Finding]:
    shared = [*applied.storage(study, profile), applied.download(study, profile)]
    yield from preflight.findings(kube, profile, study.gpus, arms, shared)
