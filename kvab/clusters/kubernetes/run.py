"""A Kubernetes cluster with Dynamo's operator: the five steps of a run, each can be resumed.

Input: a profile and a job. Output: AIPerf's records as the requests table. What a lost laptop must
find again is written on the cluster's own objects; a small file beside the run says that there is
something to find.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import shutil
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple

from kvab.cache import write_beside
from kvab.clusters.base import ClusterRun, Collected, Job, Progress
from kvab.clusters.kubernetes import files, health, objects, preflight, workloads
from kvab.clusters.kubernetes.api import DEPLOYMENT, Kube, Pod
from kvab.clusters.kubernetes.lease import Held, Lease
from kvab.clusters.kubernetes.objects import Assembly
from kvab.clusters.kubernetes.workloads import Look
from kvab.declarations import Part
from kvab.errors import DependencyError, InputError, KvabError
from kvab.requests import aiperf
from kvab.study import Kubernetes
from kvab.study.manifests import Object, at

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{.*\})?\s+([-+.\deE]+|NaN)")
# The frontend's own counters; which of the hits there are depends on Dynamo's version.
EVENTS = ("kv_cache_events_applied", "kv_cache_events_applied_total")
HITS = (
    "router_kv_hit_rate_sum",
    "router_kv_selected_cached_prefix_tokens_total",
    "frontend_cached_tokens_sum",
)
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,name,uuid", "--format=csv,noheader")


class Note(Part):
    """What is noted beside a run of which the cluster holds something: how far it is.

    The artifacts of a finished replay wait on the volume; what nobody can be asked for by then is
    noted with it.
    """

    step: str
    run_id: str
    digest: str
    versions: dict[str, str]
    host: Object


class Serving(NamedTuple):
    """Restarts of every serving pod, and what the router counted so far."""

    restarts: dict[str, int]
    router: dict[str, float]


class KubernetesRun(ClusterRun):
    """A run on the cluster; its objects there outlive this process."""

    def __init__(self, profile: Kubernetes, job: Job, *, take_over: bool = False) -> None:
        self.profile, self.job, self.take_over = profile, job, take_over
        self.state_file = job.path.with_name(f".{job.path.name}.state.json")
        self.host: Object = {}
        self.kept = Collected(requests=None, host=self.host)
        self.run_id, self.made, self.replayed = "", False, False

    @cached_property
    def run(self) -> Assembly:
        """What is applied and sent; made when it is first needed."""
        return Assembly.of(self.profile, self.job)

    @cached_property
    def kube(self) -> Kube:
        """The client; made when it is first needed."""
        return Kube(self.profile)

    @cached_property
    def lease(self) -> Lease:
        """The right to work on the run, through a client of its own."""
        return Lease(Kube(self.profile), self.run.files_pod())

    def _hold(self, take_over: bool = False) -> None:
        """Make this the run's one client.

        Raises
        ------
        Held
            If another one is alive, or somebody else's, which is gone, left the run with other
            inputs.
        """
        self.lease.take(take_over)
        left = None if take_over else self.kube.get(DEPLOYMENT, self.run.recipe.deployment)
        if left and objects.annotation(left, objects.RUN) == self.run.name:
            who = objects.owner_of(left)
            if who not in ("", "@".join(objects.owner().values())) and not self.run.owns(left):
                self.lease.leave()
                raise Held(
                    f"deployment {self.run.recipe.deployment} of {self.run.name}: made by {who} of "
                    "other rows or manifests, and no client of it is alive; replace it with "
                    "--take-over"
                )
        self.kube.guard, self.kube.explain = self.lease.guard, self.lease.explain

    def _note(self, step: str) -> None:
        """Note beside the run how far it is; whatever happens to us, a later start looks for it."""
        note = Note(
            step=step,
            run_id=self.run_id,
            digest=self.run.digest,
            versions=self.kept.versions,
            host=self.host,
        )
        write_beside(self.state_file, note.model_dump_json(indent=1).encode())

    def _noted(self) -> Note | None:
        """Return what an earlier start noted when it had replayed this very run, else None."""
        with suppress(OSError, ValueError):
            note = Note.model_validate_json(self.state_file.read_bytes())
            return note if (note.step, note.digest) == ("replayed", self.run.digest) else None
        return None

    def prepare(self) -> dict[str, str]:
        """Check the cluster, make sure of storage and model files; return versions.

        Raises
        ------
        InputError
            If the profile or a manifest is wrong.
        DependencyError
            If the cluster lacks something, all of it in one line; or another client has the run.
        """
        listed = preflight.findings(self.kube, [self.run])
        missing = [finding.what for finding in listed if not finding.ok]
        if missing:
            raise DependencyError(f"cluster {self.profile.name}: {'; '.join(missing)}")
        self._hold(self.take_over)
        if not self.state_file.exists():
            self._note("preparing")
        self.made = True
        self.kept.versions.update(preflight.versions(self.kube))
        self.kept.versions["model revision"] = self.job.study.model.revision
        *claims, download = self.run.shared
        workloads.claim_storage(self.kube, claims)
        workloads.fetch_model(self.kube, download)
        return self.kept.versions

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
        if note := self._noted():
            self.made = self.replayed = True
            self._record(note.run_id)
            self.kept.versions.update(note.versions)
            self.host.update(note.host)
            return
        workloads.refuse_others(self.kube, self.run)
        present = workloads.resumed(self.kube, self.run)
        self.made = True
        scripts = self.run.scripts
        workloads.ensure(self.kube, scripts, lambda there: there.get("data") == scripts["data"])
        if present is None:
            self._record(self.new_id())
            present = workloads.create(self.kube, self.run, self.run_id)
        else:
            self._record(present["metadata"]["annotations"][objects.RUN_ID])
        self.uid = present["metadata"]["uid"]
        if workloads.find_job(self.kube, self.run) is None:
            workloads.wait_ready(self.kube, self.run, self.job.topology, self.uid)
        # else the replay of an earlier start is under way: asking would disturb it
        operator = objects.annotation(present, preflight.ORIGIN)
        self.kept.versions["operator"] = operator or "unknown"
        pods = self.kube.list("Pod", health.selector(self.run.recipe.deployment))
        self.kept.versions.update(images(pods))
        self.host["pods"] = places(self.kube, pods, self.run.frontend)

    def new_id(self) -> str:
        """Return a name for this try of the run, of which no other has the artifacts' folder."""
        now = f"{datetime.now(UTC):%Y%m%dt%H%M%S}-{secrets.token_hex(3)}"
        return f"{self.job.configuration}-r{self.job.repeat}-{now}"

    def _record(self, run_id: str) -> None:
        """Take the name of a try, and what is applied under it."""
        self.run_id, manifests = run_id, self.run.manifests(run_id)
        self.folder = self.run.folder(run_id)
        for manifest in manifests:
            name = f"applied/{manifest['kind'].lower()}.json"
            self.kept.manifests[name] = json.dumps(self.kube.form(manifest), indent=1).encode()

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
        run, present = self.run, workloads.find_job(self.kube, self.run)
        if present is None:
            if run.content:
                with self._files() as pod:
                    files.upload(pod, run.content, objects.staged_path(run.sha256))
            before, job = self._serving(), run.mark(run.job(self.run_id), self.run_id)
            job["metadata"]["annotations"][objects.BEFORE] = json.dumps(before._asdict())
            present = self.kube.create(job)
        before = Serving(**json.loads(objects.annotation(present, objects.BEFORE) or "{}"))
        self._wait_finished(before.restarts, on_progress or (lambda done: None))
        after = self._serving()
        if self.job.topology.router == "kv":
            check_router(before.router, after.router)
        self.host["restarts"] = {
            pod: count - before.restarts.get(pod, 0) for pod, count in after.restarts.items()
        }
        self.host["router"] = {"before": before.router, "after": after.router}
        self._note("replayed")
        self.replayed = True

    def _serving(self) -> Serving:
        """Return how the serving side is at this moment, as its frontend counts so far."""
        name = self.run.recipe.deployment
        status, text = self.kube.proxy(self.run.service, "metrics")
        totals = {"events": 0.0, "hits": 0.0}
        for match in map(SAMPLE.match, text.splitlines() if status == 200 else ()):
            if not match or match[3] == "NaN":
                continue
            if match[1].endswith(EVENTS) and 'status="ok"' in (match[2] or ""):
                totals["events"] += float(match[3])
            elif match[1].endswith(HITS):
                totals["hits"] += float(match[3])
        return Serving(health.restarts(self.kube.list("Pod", health.selector(name))), totals)

    def _wait_finished(self, before: dict[str, int], on_progress: Progress) -> None:
        """Return when the benchmark has succeeded and no serving pod was restarted.

        Raises
        ------
        DependencyError
            With the cause as soon as it is known; the Job's own deadline ends it at the latest.
        """
        name, first_s = self.run.recipe.deployment, math.inf
        kube = self.kube.with_short_limits()

        def note(look: Look) -> str:
            nonlocal first_s
            now = health.restarts(self.kube.list("Pod", health.selector(name)))
            if what := health.changed_pods(before, now):
                raise DependencyError(
                    f"{name}: serving pods did not stay up during the replay "
                    f"({what}); its latencies are worth nothing; see diagnostics/"
                )
            done, errors = records(kube, look.pods, self.folder)
            if not done:
                return look.log.rpartition(" | ")[2] or "waits for the benchmark's pod"
            on_progress(done)
            first_s = min(first_s, time.monotonic())
            left_s = max(0.0, self.run.span_s - (time.monotonic() - first_s))
            return (
                f"{done:,} of {self.run.rows:,} requests done, {errors} errors, "
                f"about {left_s / 60:.0f} min of the trace left"
            )

        job, title = self.run.job_name, f"replay on {name}"
        workloads.check_complete(job, workloads.wait_ended(self.kube, job, note, title=title))
        on_progress(self.run.rows)

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
            requests = self.job.requests(read)
        except (files.Spoiled, InputError):
            self.replayed = False  # no later start could make anything of them
            raise
        self.kept.versions["aiperf"] = read.version or "unknown"
        self.host["router"] |= aiperf.router_counters(local)
        shutil.rmtree(local.parent)  # with what other tries left there
        return replace(self.kept, requests=requests, files=artifacts)

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
            self._remove()
            return "the replay itself is done: run the same command again to collect its artifacts"
        if not self.made and not self.state_file.exists():
            return ""
        try:
            self._hold()
        except Held:
            return ""
        self._remove()
        self.state_file.unlink(missing_ok=True)
        print(self._stays(), file=sys.stderr)
        return ""

    def _remove(self) -> None:
        name = self.run.name
        ours = lambda part: objects.annotation(part, objects.RUN) == name  # noqa: E731
        workloads.remove_parts(self.kube, self.run.parts, ours)
        self.lease.leave()

    def _stays(self) -> str:
        """Return what is left in the namespace for later runs, and how to remove it."""
        stay = [*self.run.shared, self.run.scripts]
        names = " ".join(f"{one['kind'].lower()}/{one['metadata']['name']}" for one in stay)
        return (
            "model files, caches, scripts and the artifacts of every run stay for later runs; "
            f"`kubectl -n {self.profile.namespace} delete {names}` removes them for good"
        )

    def _files(self) -> AbstractContextManager[Pod]:
        """Return a running pod that mounts the volume, made for it if the benchmark's is gone."""
        return workloads.helper_pod(self.kube, self.run.files_pod(self.run_id), self.run.job_name)

    def diagnostics(self) -> Collected:
        """Return statuses, events and logs; nothing if nothing was made."""
        kept = {}
        if self.made and not self.lease.lost:
            *claims, download = (one["metadata"]["name"] for one in self.run.shared)
            names = {
                DEPLOYMENT: [self.run.recipe.deployment],
                "Job": [self.run.job_name, download],
                "PersistentVolumeClaim": claims,
            }
            kept = health.diagnostics(self.kube, names)
        return replace(self.kept, files={**self.kept.manifests, **kept})


BLIND = {
    "events": "no KV events were applied during the replay, so it routed blindly; check "
    "--kv-events-config of the workers",
    "hits": "no prompt was found in any cache during the replay; check that block size and model "
    "agree between frontend and workers",
}


def check_router(before: dict[str, float], after: dict[str, float]) -> None:
    """Refuse a replay behind a KV router that did not see the workers' caches.

    Raises
    ------
    DependencyError
        If no KV events were applied, or no prompt was found in a cache.
    """
    for count, problem in BLIND.items():
        if after[count] <= before[count]:
            raise DependencyError(f"router: {problem}")


COUNT_RECORDS = (
    'f="$1/profile_export.jsonl"; [ -f "$f" ] || exit 0; wc -l <"$f"; grep -c \'"error": *{\' "$f"'
    "; true"
)


def records(kube: Kube, pods: list[Object], folder: str) -> tuple[int, int]:
    """Return how many records AIPerf has written in a running pod, and how many are of errors."""
    for pod in pods:
        if health.phase(pod) == "Running":
            with suppress(KvabError, ValueError):  # it has just ended, or wrote none so far
                out = Pod(kube, pod).run("sh", "-c", COUNT_RECORDS, "sh", folder, timeout_s=30)
                done, errors = map(int, out.split())
                return done, errors
    return 0, 0


def images(pods: list[Object]) -> dict[str, str]:
    """Return the image's digest of each component."""
    return {
        f"image {health.component_of(pod)}": status["imageID"]
        for pod in pods
        for status in at(pod, "status.containerStatuses") or []
        if status.get("imageID")
    }


def places(kube: Kube, pods: list[Object], frontend: str) -> Object:
    """Return component, node and GPUs of every pod."""
    labels = {node["metadata"]["name"]: at(node, "metadata.labels") for node in kube.list("Node")}
    found: Object = {}
    for pod in pods:
        component, node = health.component_of(pod), pod["spec"].get("nodeName", "")
        where = found[pod["metadata"]["name"]] = {"component": component, "node": node}
        if component != frontend:
            where["gpu_product"] = (labels.get(node) or {}).get("nvidia.com/gpu.product")
            where["gpus"] = []
            with suppress(KvabError):
                out = Pod(kube.with_short_limits(), pod).run(*GPU_QUERY, timeout_s=30)
                where["gpus"] = out.decode("utf-8", "replace").splitlines()
    return found
