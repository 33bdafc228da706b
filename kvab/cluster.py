"""A Kubernetes cluster with Dynamo's operator: the five steps of a run, each can be resumed.

Input: a profile and a job. Output: AIPerf's records as the requests table. What a lost laptop must
find again is written on the cluster's own objects; a small file beside the run says that there is
something to find.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kvab import applied, benchmarking, deploying, diagnostics, preflight, preparing, readiness
from kvab.causes import condition
from kvab.errors import DependencyError
from kvab.kube import Kube
from kvab.manifests import Configuration, read_configuration
from kvab.podfiles import Pod, download, helper_pod, read_marker, upload
from kvab.recipes import Topology
from kvab.runs import write_beside
from kvab.study import Kubernetes, Study
from kvab.trace import Trace, reordered, write_rows
from kvab.watching import Display

if TYPE_CHECKING:
    from kvab.replay import Job

Object = dict[str, Any]
PROBES_PER_WORKER = 2


class Cluster:
    """The cluster of a profile; with a job, its run on it."""

    def __init__(self, profile: Kubernetes, job: Job | None = None) -> None:
        self.profile, self.job = profile, job
        self.provenance: dict[str, Any] = {}
        self.applied: dict[str, bytes] = {}
        self.made = False

    def identity(self) -> dict[str, str]:
        """Return what a result depends on beside the manifests and the trace."""
        selector = self.profile.node_selector
        nodes = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
        return {
            "image": self.profile.image or "as in deploy.yaml",
            "nodes": nodes,
            "rdma": self.profile.rdma_resource or "",
        }

    @cached_property
    def kube(self) -> Kube:
        """The client; made when it is first needed."""
        return Kube(self.profile)

    @cached_property
    def recipe(self) -> Configuration:
        """The manifests of the job's configuration."""
        return self.job.recipe

    @cached_property
    def state_file(self) -> Path:
        """Where it is noted, beside the run, that the cluster holds something of it."""
        return self.job.path.with_name(f".{self.job.path.name}.state.json")

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
        """Return deployment, ConfigMap and Job of the run, marked as its own."""
        recipe, (sending, _) = self.recipe, self.workload
        deployment = applied.deployment(recipe, self.profile)
        plain = [deployment, *applied.benchmark(recipe, self.profile, sending, "")]
        mark = self.mark(applied.content_digest(plain, sending), run_id)
        made = [deployment, *applied.benchmark(recipe, self.profile, sending, run_id)]
        return [mark.put(manifest, self.profile.namespace) for manifest in made]

    def mark(self, digest: str, run_id: str) -> applied.Mark:
        """Return the marks of the run."""
        study = self.job.study
        return applied.Mark(study.name, applied.run_name(study, self.job.path), run_id, digest)

    def prepare(self) -> dict[str, str]:
        """Check the cluster, make sure of storage and model files; return versions.

        Raises
        ------
        InputError
            If the profile or a manifest is wrong.
        DependencyError
            If the cluster lacks something: all of it in one line.
        """
        applied.check_profile(self.profile)
        arms = [(self.recipe, self.manifests("preflight"))]
        found = _findings(self.job.study, self.profile, self.kube, arms)
        missing = [finding.what for finding in found if not finding.ok]
        if missing:
            raise DependencyError(f"cluster {self.profile.name}: {'; '.join(missing)}")
        versions = preflight.versions(self.kube)
        study, self.made = self.job.study, True
        preparing.claim_storage(self.kube, applied.storage(study, self.profile))
        preparing.fetch_model(self.kube, applied.download(study, self.profile))
        self.versions = {**versions, "model revision": study.model.revision}
        return self.versions

    def deploy(self, topology: Topology) -> None:
        """Create the deployment, or find the one that an earlier start made, and wait for it.

        Raises
        ------
        DependencyError
            If another deployment of the study holds the GPUs, or with the cause why it does not
            come up.
        """
        self.topology, self.made = topology, False
        study = self.job.study
        folders = [study.configuration_folder(name) for name in study.configurations]
        names = {read_configuration(folder).deployment for folder in folders}
        plain = self.manifests("")[0]
        mark = self.mark(plain["metadata"]["annotations"][applied.DIGEST], "")
        deploying.refuse_others(self.kube, mark, names)
        found = self._found(mark)
        self.made = True
        if found is None:
            now = datetime.now(UTC)
            run_id = f"{self.job.configuration}-r{self.job.repeat}-{now:%Y%m%dt%H%M%S}"
            # Noted first: whatever happens to this process, a later start looks for it.
            self._note(run_id, "deploying")
            found = deploying.create(self.kube, self.manifests(run_id)[0], mark, names)
        self.run_id = found["metadata"]["annotations"][applied.RUN_ID]
        self._note(self.run_id, "deployed")
        self.expected = self._expected(found)
        workers = self.expected.prefill + self.expected.others
        deploying.wait_ready(self.kube, self.expected, PROBES_PER_WORKER * workers)
        versions, self.provenance = diagnostics.provenance(self.kube, self.expected)
        self.versions |= versions
        for manifest in self.manifests(self.run_id):
            name = f"applied/{manifest['kind'].lower()}.json"
            self.applied[name] = json.dumps(manifest, indent=1).encode()

    def _found(self, mark: applied.Mark) -> Object | None:
        """Return the run's own deployment if it can go on; remove what is left of another try."""
        name = self.recipe.deployment
        found, job = self.kube.get(deploying.DEPLOYMENT, name), self.kube.get("Job", self.job_name)
        if found and mark.owns(found) and not found["metadata"].get("deletionTimestamp"):
            ids = {part["metadata"]["annotations"].get(applied.RUN_ID) for part in (found, job)
                   if part}  # fmt: skip
            if len(ids) == 1 and not condition(job, "Failed"):
                return found
        self._delete_benchmark()
        if found:
            deploying.take_down(self.kube, name, found["metadata"]["uid"])
        return None

    def _expected(self, found: Object) -> readiness.Expected:
        recipe, groups = self.recipe, self.topology.groups
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

    @cached_property
    def job_name(self) -> str:
        """Name of the benchmark's Job."""
        return next(m["metadata"]["name"] for m in self.recipe.perf if m["kind"] == "Job")

    def replay(
        self, trace: Trace, order: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> None:
        """Run the benchmark's Job, or find it running, and see it to its end.

        Raises
        ------
        DependencyError
            If it fails, a serving pod is restarted, or a KV router saw no caches.
        """
        sending, content = self.workload
        _, scripts, job = self.manifests(self.run_id)
        self.folder = applied.artifact_folder(job, self.run_id)
        found = self.kube.get("Job", self.job_name)
        if found is None:
            if sending.staged:
                with self._files() as pod:
                    upload(pod, content, applied.staged_path(sending.sha256))
            before = {
                "restarts": benchmarking.serving(self.kube, self.expected),
                "router": benchmarking.router_counters(self.kube, self.expected.service),
            }
            job["metadata"]["annotations"][applied.BEFORE] = json.dumps(before)
            self.kube.create(scripts)
            found = self.kube.create(job)
        self._note(self.run_id, "replaying")
        before = applied.annotation(found, applied.BEFORE)
        benchmarking.wait_finished(
            self.kube,
            self.expected,
            self.job_name,
            before["restarts"],
            sending.rows,
            sending.span_s,
            self.folder,
            progress,
        )
        after = benchmarking.router_counters(self.kube, self.expected.service)
        self.provenance |= {"restarts": before["restarts"],
                            "router": {"before": before["router"], "after": after}}  # fmt: skip
        if self.topology.router == "kv":
            benchmarking.check_router(before["router"], after)

    def collect(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """Return the requests table and the artifacts by file name.

        Raises
        ------
        DependencyError
            If the artifacts are not whole, or do not arrive as they are.
        """
        from kvab.aiperf import read_artifacts
        from kvab.tidy import from_aiperf

        self._note(self.run_id, "collecting")
        local = self.job.path.with_name(f".{self.job.path.name}.collecting") / self.run_id
        with self._files() as pod, Display("collect") as display:
            marker = read_marker(pod, self.folder)
            if marker["exit_code"] or marker["run_id"] != self.run_id:
                raise DependencyError(
                    f"{self.folder}: expected the artifacts of a finished run {self.run_id}, got "
                    f"{marker['run_id']} with exit code {marker['exit_code']}; run again"
                )
            names = download(
                pod, self.folder, marker, local,
                lambda done, total: display.show(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
            )  # fmt: skip
        order = self.job.order()
        sent = from_aiperf(read_artifacts(local), reordered(self.job.trace, order), len(order))
        requests = sent.assign(row=order[sent["row"]].astype("int32")).sort_values("row")
        files = {name: (local / name).read_bytes() for name in names}
        shutil.rmtree(local.parent)
        return requests.reset_index(drop=True), files

    def teardown(self) -> None:
        """Delete the run's deployment, Job and helpers; storage stays.

        Raises
        ------
        DependencyError
            If something does not go away; it is named.
        """
        if not self.made and not self.state_file.exists():
            return
        name = self.recipe.deployment
        self._delete_benchmark()
        found = self.kube.get(deploying.DEPLOYMENT, name)
        run = self.mark("", "").run
        if found and (found["metadata"].get("annotations") or {}).get(applied.RUN) == run:
            deploying.take_down(self.kube, name, found["metadata"]["uid"])
        self.state_file.unlink(missing_ok=True)

    def _delete_benchmark(self) -> None:
        """Remove the run's Job, its scripts and the helper pod, if they are the study's."""
        scripts = next(m["metadata"]["name"] for m in self.recipe.perf
                       if m["kind"] == "ConfigMap")  # fmt: skip
        for kind, name in (("Job", self.job_name), ("ConfigMap", scripts), ("Pod", self.helper)):
            deploying.remove(self.kube, kind, name, self.job.study.name)

    @property
    def helper(self) -> str:
        """Name of the pod through which files go in and out."""
        return f"{self.recipe.deployment}-files"

    def _files(self) -> AbstractContextManager[Pod]:
        """Return a running pod that mounts the volume, made for it if the benchmark's is gone."""
        job = self.manifests(self.run_id)[2]
        mark = self.mark(job["metadata"]["annotations"][applied.DIGEST], self.run_id)
        pod = mark.put(applied.files_pod(job, self.helper), self.profile.namespace)
        return helper_pod(self.kube, pod, self.job_name)

    def _note(self, run_id: str, step: str) -> None:
        self.state_file.parent.mkdir(parents=True, exist_ok=True)
        note = {"run_id": run_id, "step": step, "at": datetime.now(UTC).isoformat()}
        write_beside(self.state_file, json.dumps(note, indent=1).encode())

    def diagnostics(self) -> dict[str, bytes]:
        """Return what tells why the run failed, by file name; nothing if nothing was made."""
        if not self.made:
            return {}
        recipe = self.recipe
        selectors = [f"{readiness.DEPLOYMENT}={recipe.deployment}",
                     f"job-name={self.job_name}", "job-name=model-download"]  # fmt: skip
        names = [(deploying.DEPLOYMENT, recipe.deployment), ("Job", self.job_name)]
        names += [("Job", "model-download")]
        names += [("PersistentVolumeClaim", claim["metadata"]["name"])
                  for claim in applied.storage(self.job.study, self.profile)]  # fmt: skip
        return {**self.applied, **diagnostics.files(self.kube, selectors, names)}


def study_findings(study: Study, profile: Kubernetes) -> Iterator[preflight.Finding]:
    """Yield what a cluster lacks for the configurations of a study; nothing is created."""
    applied.check_profile(profile)
    arms = []
    for name in study.configurations:
        recipe = read_configuration(study.configuration_folder(name), name)
        sending = applied.Sending(study.trace.sha256, study.trace.rows, 0.0, False)
        mark = applied.Mark(study.name, f"{study.name}/{name}/doctor", "doctor", "")
        plain = [applied.deployment(recipe, profile)]
        plain += applied.benchmark(recipe, profile, sending, "doctor")
        arms.append((recipe, [mark.put(each, profile.namespace) for each in plain]))
    yield from _findings(study, profile, Kube(profile), arms)


def _findings(
    study: Study, profile: Kubernetes, kube: Kube, arms: list[tuple[Configuration, list[Object]]]
) -> Iterator[preflight.Finding]:
    shared = [*applied.storage(study, profile), applied.download(study, profile)]
    yield from preflight.findings(kube, profile, study.gpus, arms, shared)
