"""A Kubernetes cluster with Dynamo's operator: the five steps of a run, each can be resumed.

Input: a profile and a job. Output: AIPerf's records as the requests table. What a lost laptop must
find again is written on the cluster's own objects; a small file beside the run says that there is
something to find.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kvab.cluster import applied, benchmarking, deploying, diagnostics, marks, preflight, preparing
from kvab.cluster.assembly import Assembly
from kvab.cluster.causes import condition
from kvab.cluster.kube import Kube
from kvab.cluster.podexec import Pod
from kvab.cluster.podfiles import download, helper_pod, read_marker, upload
from kvab.errors import DependencyError
from kvab.recipes import Topology
from kvab.study import Kubernetes
from kvab.trace import Trace
from kvab.watching import Display

if TYPE_CHECKING:
    from kvab.runs.jobs import Job

Object = dict[str, Any]
PROBES_PER_WORKER = 2


class Cluster:
    """The cluster of a profile; with a job, its run on it."""

    def __init__(self, profile: Kubernetes, job: Job | None = None) -> None:
        self.profile, self._job = profile, job
        self.provenance: dict[str, Any] = {}
        self.applied: dict[str, bytes] = {}
        self.made = False

    @property
    def job(self) -> Job:
        """What is asked for; without one nothing but `identity` can be asked."""
        assert self._job is not None
        return self._job

    @cached_property
    def run(self) -> Assembly:
        """What the job applies."""
        return Assembly(self.profile, self.job)

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
        missing = [found.what for found in self.run.findings(self.kube) if not found.ok]
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
        names, mark = self.run.deployments(), self.run.digest_mark()
        deploying.refuse_others(self.kube, mark, names)
        found = self._found(mark)
        self.made = True
        if found is None:
            run_id = self.run.new_id()
            # Noted first: whatever happens to this process, a later start looks for it.
            self.run.note(run_id, "deploying")
            found = deploying.create(self.kube, self.run.manifests(run_id)[0], mark, names)
        self.run_id = found["metadata"]["annotations"][marks.RUN_ID]
        self.run.note(self.run_id, "deployed")
        self.expected = self.run.expected(topology, found)
        if self.kube.get("Job", self.run.job_name) is None:
            workers = self.expected.prefill + self.expected.others
            deploying.wait_ready(self.kube, self.expected, PROBES_PER_WORKER * workers)
        # else the replay of an earlier start is under way: asking would disturb it
        versions, self.provenance = diagnostics.provenance(self.kube, self.expected)
        self.versions |= versions
        for manifest in self.run.manifests(self.run_id):
            name = f"applied/{manifest['kind'].lower()}.json"
            self.applied[name] = json.dumps(manifest, indent=1).encode()

    def _found(self, mark: marks.Mark) -> Object | None:
        """Return the run's own deployment if it can go on; remove what is left of another try."""
        name = self.run.recipe.deployment
        found, job = (
            self.kube.get(deploying.DEPLOYMENT, name),
            self.kube.get("Job", self.run.job_name),
        )
        if found and mark.owns(found) and not found["metadata"].get("deletionTimestamp"):
            ids = {part["metadata"]["annotations"].get(marks.RUN_ID) for part in (found, job)
                   if part}  # fmt: skip
            if len(ids) == 1 and not condition(job, "Failed"):
                return found
        self._delete_benchmark()
        if found:
            deploying.take_down(self.kube, name, found["metadata"]["uid"])
        return None

    def replay(
        self, trace: Trace, order: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> None:
        """Run the benchmark's Job, or find it running, and see it to its end.

        Raises
        ------
        DependencyError
            If it fails, a serving pod is restarted, or a KV router saw no caches.
        """
        sending, content = self.run.workload
        _, scripts, job = self.run.manifests(self.run_id)
        self.folder = applied.artifact_folder(job, self.run_id)
        found = self.kube.get("Job", self.run.job_name)
        if found is None:
            if sending.staged:
                with self._files() as pod:
                    upload(pod, content, applied.staged_path(sending.sha256))
            state = benchmarking.state(self.kube, self.expected)
            job["metadata"]["annotations"][marks.BEFORE] = json.dumps(state)
            self.kube.create(scripts)
            found = self.kube.create(job)
        self.run.note(self.run_id, "replaying")
        before = marks.annotation(found, marks.BEFORE)
        benchmarking.wait_finished(
            self.kube,
            self.expected,
            self.run.job_name,
            before["restarts"],
            sending.rows,
            sending.span_s,
            self.folder,
            progress,
        )
        after = benchmarking.state(self.kube, self.expected)
        earlier = before["restarts"]
        during = {pod: count - earlier.get(pod, 0) for pod, count in after["restarts"].items()}
        router = {"before": before["router"], "after": after["router"]}
        self.provenance |= {"restarts": during, "router": router}
        if self.topology.router == "kv":
            benchmarking.check_router(**router)

    def collect(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """Return the requests table and the artifacts by file name.

        Raises
        ------
        DependencyError
            If the artifacts are not whole, or do not arrive as they are.
        """
        from kvab import aiperf, tidy

        self.run.note(self.run_id, "collecting")
        local = self.job.path.with_name(f".{self.job.path.name}.collecting") / self.run_id
        with self._files() as pod, Display("collect") as display:
            marker = read_marker(pod, self.folder, self.run_id)
            names = download(
                pod, self.folder, marker, local,
                lambda done, total: display.show(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"),
            )  # fmt: skip
        read = aiperf.read_artifacts(local)
        requests = tidy.from_aiperf(read, self.job.trace, self.job.order())
        if self.topology.mode == "disaggregated":
            requests = tidy.without_cached(requests)
        self.versions["aiperf"] = read.version or "unknown"
        self.provenance["router"] |= aiperf.router_counters(local)
        files = {name: (local / name).read_bytes() for name in names}
        shutil.rmtree(local.parent)
        return requests, files

    def teardown(self) -> None:
        """Delete the run's deployment, Job and helpers; storage stays.

        Raises
        ------
        DependencyError
            If something does not go away; it is named.
        """
        if not self.made and not self.run.state_file.exists():
            return
        name = self.run.recipe.deployment
        self._delete_benchmark()
        found = self.kube.get(deploying.DEPLOYMENT, name)
        own, run = found["metadata"] if found else {}, self.run.mark("", "").run
        if not found or (own.get("annotations") or {}).get(marks.RUN) == run:
            deploying.take_down(self.kube, name, own.get("uid"))  # or see the rest of it go
        self.run.state_file.unlink(missing_ok=True)

    def _delete_benchmark(self) -> None:
        """Remove the run's Job, its scripts and the helper pod, if they are the study's."""
        run = self.run
        names = {"Job": run.job_name, "ConfigMap": run.scripts_name, "Pod": run.helper}
        for kind, name in names.items():
            deploying.remove(self.kube, kind, name, self.job.study.name)

    def _files(self) -> AbstractContextManager[Pod]:
        """Return a running pod that mounts the volume, made for it if the benchmark's is gone."""
        pod = self.run.files_pod(self.run_id)
        return helper_pod(self.kube, pod, self.run.job_name)

    def diagnostics(self) -> dict[str, bytes]:
        """Return what tells why the run failed, by file name; nothing if nothing was made."""
        if not self.made:
            return {}
        return {**self.applied, **diagnostics.files(self.kube, *self.run.witnesses())}
