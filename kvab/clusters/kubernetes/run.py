"""A Kubernetes cluster with Dynamo's operator: the five steps of a run, each can be resumed.

Input: a profile and a job. Output: AIPerf's records as the requests table. What a lost laptop must
find again is written on the cluster's own objects; a small file beside the run says that there is
something to find.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cached_property

from kvab.clusters.base import Cluster, ClusterRun, Collected, Diagnostics, Finding, Job, Progress
from kvab.clusters.kubernetes import benchmark, deployment, diagnostics, files, objects, preflight
from kvab.clusters.kubernetes.api import Kube, Object, Pod
from kvab.clusters.kubernetes.lease import Held, Lease
from kvab.clusters.kubernetes.objects import Assembly
from kvab.errors import DependencyError, InputError
from kvab.requests import aiperf
from kvab.requests.matching import from_aiperf
from kvab.requests.table import without_cached
from kvab.study import Kubernetes, Study

PROBES_PER_WORKER = 2


class KubernetesCluster(Cluster):
    """The cluster of a profile."""

    def __init__(self, profile: Kubernetes) -> None:
        self.profile = profile

    def identity(self) -> dict[str, object]:
        """Return what a result depends on beside the manifests and the trace."""
        selector = sorted(self.profile.node_selector.items())
        return {
            "image": self.profile.image or "as in deploy.yaml",
            "nodes": ",".join(f"{key}={value}" for key, value in selector),
            "rdma": self.profile.rdma_resource or "",
        }

    def check(self, study: Study) -> Iterator[Finding]:
        """Yield what the cluster has and lacks for the configurations of a study."""
        return preflight.study_findings(study, self.profile)

    def start(self, job: Job, *, take_over: bool = False) -> KubernetesRun:
        """Return the run of a job, which may be under way on the cluster already."""
        return KubernetesRun(self.profile, job, take_over=take_over)


class KubernetesRun(ClusterRun):
    """A run on the cluster; its objects there outlive this process."""

    def __init__(self, profile: Kubernetes, job: Job, *, take_over: bool = False) -> None:
        self.profile, self.job, self.take_over = profile, job, take_over
        self.run = Assembly(profile, job)
        self.versions: dict[str, str] = {}
        self.provenance: Object = {}
        self.applied: dict[str, bytes] = {}
        self.made = self.replayed = False

    @cached_property
    def kube(self) -> Kube:
        """The client; made when it is first needed."""
        return Kube(self.profile)

    @cached_property
    def lease(self) -> Lease:
        """The right to work on the run, through a client of its own."""
        return Lease(Kube(self.profile), self.run.lease())

    def _hold(self, take_over: bool = False) -> None:
        """Make this the run's one client.

        Raises
        ------
        Held
            If another one is alive, or left what this one would replace.
        """
        self.lease.take(take_over)
        if not take_over:
            try:
                deployment.check_left(self.kube, self.run)
            except Held:
                self.lease.leave()
                raise
        self.kube.guard, self.kube.explain = self.lease.guard, self.lease.explain

    def prepare(self) -> dict[str, str]:
        """Check the cluster, make sure of storage and model files; return versions.

        Raises
        ------
        InputError
            If the profile or a manifest is wrong.
        DependencyError
            If the cluster lacks something, all of it in one line; or another client has the run.
        """
        objects.check_profile(self.profile)
        listed = preflight.run_findings(self.kube, self.run)
        missing = [finding.what for finding in listed if not finding.ok]
        if missing:
            raise DependencyError(f"cluster {self.profile.name}: {'; '.join(missing)}")
        self._hold(self.take_over)
        if not self.run.state_file.exists():
            self.run.note("", "preparing")
        versions = preflight.versions(self.kube)
        study, self.made = self.job.study, True
        files.claim_storage(self.kube, objects.storage(study, self.profile))
        files.fetch_model(self.kube, objects.download(study, self.profile))
        self.versions = {**versions, "model revision": study.model.revision}
        return self.versions

    def deploy(self) -> None:
        """Create the deployment, or find the one that an earlier start made, and wait for it.

        Nothing is deployed for a replay whose artifacts wait on the volume.

        Raises
        ------
        DependencyError
            If another deployment of the study holds the GPUs, or with the cause why it does not
            come up.
        """
        self.made = False
        if noted := self.run.noted():
            self.made = self.replayed = True
            self._record(noted["run_id"])
            self.versions |= noted["versions"]
            self.provenance = noted["provenance"]
            return
        deployment.refuse_others(self.kube, self.run)
        present = deployment.resumed(self.kube, self.run)
        self.made = True
        files.place_scripts(self.kube, self.run.plain[1])
        if present is None:
            run_id = self.run.new_id()
            # Noted first: whatever happens to this process, a later start looks for it.
            self.run.note(run_id, "deploying")
            present = deployment.create(self.kube, self.run, run_id)
        self._record(present["metadata"]["annotations"][objects.RUN_ID])
        self.run.note(self.run_id, "deployed")
        self.expected = self.run.expected(present)
        if deployment.find_job(self.kube, self.run) is None:
            workers = self.expected.prefill + self.expected.others
            deployment.wait_ready(self.kube, self.expected, PROBES_PER_WORKER * workers)
        # else the replay of an earlier start is under way: asking would disturb it
        versions, self.provenance = diagnostics.provenance(self.kube, self.expected)
        self.versions |= versions

    def _record(self, run_id: str) -> None:
        """Take the name of a try, and what is applied under it."""
        self.run_id, manifests = run_id, self.run.manifests(run_id)
        self.folder = objects.artifact_folder(manifests[2], run_id)
        for manifest in manifests:
            name = f"applied/{manifest['kind'].lower()}.json"
            self.applied[name] = json.dumps(self.kube.form(manifest), indent=1).encode()

    def replay(self, on_progress: Progress | None = None) -> None:
        """Run the benchmark's Job, or find it running, and see it to its end.

        From then on nothing but its artifacts is needed, and a later start collects them.

        Raises
        ------
        DependencyError
            If it fails, a serving pod is restarted, or a KV router saw no caches.
        """
        if self.replayed:
            return
        sending = self.run.workload
        job = self.run.manifests(self.run_id)[2]
        present = deployment.find_job(self.kube, self.run)
        if present is None:
            if sending.content:
                with self._files() as pod:
                    files.upload(pod, sending.content, objects.staged_path(sending.sha256))
            state = benchmark.state(self.kube, self.expected)
            job["metadata"]["annotations"][objects.BEFORE] = json.dumps(state._asdict())
            present = self.kube.create(job)
        self.run.note(self.run_id, "replaying")
        before = benchmark.State(**json.loads(objects.annotation(present, objects.BEFORE) or "{}"))
        counter = benchmark.Counter(self.kube, self.folder, sending, on_progress)
        benchmark.wait_finished(
            self.kube, self.expected, self.run.job_name, before.restarts, counter
        )
        after = benchmark.state(self.kube, self.expected)
        if self.job.topology.router == "kv":
            benchmark.check_router(before.router, after.router)
        self.provenance |= {
            "restarts": {pod: n - before.restarts.get(pod, 0) for pod, n in after.restarts.items()},
            "router": {"before": before.router, "after": after.router},
        }
        kept = {"versions": self.versions, "provenance": self.provenance}
        self.run.note(self.run_id, "replayed", digest=self.run.digest, **kept)
        self.replayed = True

    def collect(self) -> Collected:
        """Return the requests table and AIPerf's artifacts.

        Raises
        ------
        DependencyError
            If the artifacts are not whole, or do not arrive as they are.
        InputError
            If they are not AIPerf's records of this workload.
        """
        local = self.job.path.with_name(f".{self.job.path.name}.collecting") / self.run_id
        try:
            with self._files() as pod:
                artifacts = files.bring(pod, self.folder, self.run_id, local)
            read = aiperf.read_artifacts(local)
            requests = from_aiperf(read, self.job.trace, self.job.order())
        except (files.Spoiled, InputError):
            self.replayed = False  # no later start could make anything of them
            raise
        if self.job.topology.mode == "disaggregated":
            requests = without_cached(requests)
        self.versions["aiperf"] = read.version or "unknown"
        self.provenance["router"] |= aiperf.router_counters(local)
        shutil.rmtree(local.parent)  # with what other tries left there
        return Collected(requests=requests, artifacts=artifacts, **self._provenance())

    def teardown(self, *, keep_answers: bool) -> str:
        """Delete the run's deployment, Job, helpers and lease; storage stays.

        What another client works on is left alone. With ``keep_answers`` it stays known that the
        artifacts of a finished replay wait on the volume.

        Raises
        ------
        DependencyError
            If something does not go away; it is named.
        """
        if keep_answers and self.replayed and not self.lease.is_lost():
            deployment.remove_run(self.kube, self.run)
            self.lease.leave()
            return "the replay itself is done: run the same command again to collect its artifacts"
        if not self.made and not self.run.state_file.exists():
            return ""
        try:
            self._hold()
        except Held:
            return ""
        deployment.remove_run(self.kube, self.run)
        self.run.state_file.unlink(missing_ok=True)
        self.lease.leave()
        print(self.run.stays(), file=sys.stderr)
        return ""

    def _files(self) -> AbstractContextManager[Pod]:
        """Return a running pod that mounts the volume, made for it if the benchmark's is gone."""
        pod = self.run.files_pod(self.run_id)
        return files.helper_pod(self.kube, pod, self.run.job_name)

    def diagnostics(self) -> Diagnostics:
        """Return statuses, events and logs; nothing if nothing was made."""
        ours = self.made and not self.lease.lost
        kept = diagnostics.files(self.kube, *self.run.witnesses()) if ours else {}
        return Diagnostics(files={**self.applied, **kept}, **self._provenance())

    def _provenance(self) -> Object:
        return {"manifests": self.applied, "versions": self.versions, "host": self.provenance}
