"""Simulated replays on a Kubernetes cluster: one Indexed Job, a cell for each index.

Input: jobs that are missing and a profile. Output: their run folders, brought home and verified.
Kubernetes does the scheduling and the retries. Cells write whole run folders to the shared volume,
so that whatever is started again finds what is complete.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kvab.cache import write
from kvab.clusters.base import Finding, Job
from kvab.clusters.kubernetes import files, health, objects, preflight, workloads
from kvab.clusters.kubernetes.api import Failed, Kube, Pod
from kvab.clusters.kubernetes.lease import Lease
from kvab.clusters.kubernetes.workloads import Look
from kvab.console import Display
from kvab.declarations import digest, read_yaml
from kvab.errors import DependencyError, InputError, KvabError
from kvab.runs import folder as runs
from kvab.runs.cell import cell_text, checkout_of
from kvab.study import Kubernetes, Study, load_cluster, root
from kvab.study.manifests import Object, at

# As in recipes/campaign.yaml.
CHECKOUT, RUNS, VOLUME = "/opt/campaign", "/perf-cache/runs", "perf-cache"
CELL = "cells_"
INDEX = "batch.kubernetes.io/job-completion-index"
NOT_NEEDED = (
    "dynamographdeployments dynamocomponentdeployments customresourcedefinitions services/proxy "
    "secrets nodes"
).split()


def needs() -> list[preflight.Need]:
    """Return what a campaign needs: no GPUs, nothing of Dynamo's operator, no secret."""
    return [need for need in preflight.all_needs() if need.resource not in NOT_NEEDED]


def replay_on(planned: list[Job], on: str) -> None:
    """Replay simulated jobs as one Indexed Job of a cluster and bring their run folders home.

    A Job that an earlier start left running is resumed; in the end, and when it is stopped,
    nothing stays but the volume.

    Raises
    ------
    InputError
        If ``on`` is no Kubernetes profile with an image for campaigns, or the jobs are not
        simulated.
    DependencyError
        If the cluster lacks something, another client's campaign is under way, or a cell
        failed: how many, and why the first did. The other cells are kept.
    """
    campaign = IndexedJob(_profile(planned[0], on), planned)
    kube, job = campaign.kube, campaign.job
    findings = preflight.basics(kube, campaign.profile, needs())
    if all(finding.ok for finding in findings):
        findings += preflight.dry_runs(kube, {"campaign": [campaign.config, job]})
    if missing := [finding.what for finding in findings if not finding.ok]:
        raise DependencyError(f"cluster {on}: {'; '.join(missing)}")
    lease = Lease(Kube(campaign.profile), job, takes_over=False)
    lease.take()
    kube.guard, kube.explain = lease.guard, lease.explain
    try:
        campaign.run()
    finally:
        lease.leave()


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield whether a cluster that is to take campaigns would take one of the study."""
    if profile.campaign_image:
        yield from preflight.dry_runs(Kube(profile), {"campaign": manifests(profile, study, [])})


def _profile(job: Job, on: str) -> Kubernetes:
    profile, path = load_cluster(on), root() / "recipes" / "clusters" / f"{on}.yaml"
    if profile.kind != "kubernetes":
        raise InputError(expected="kind kubernetes to replay on", got=profile.kind, path=path)
    if job.cluster.kind != "simulated":
        problem = f"cluster {job.cluster.name}: only simulated replays are sent to another cluster"
        raise InputError(problem, fix="leave --on out")
    if profile.campaign_image is None:
        expected, fix = "an image with kvab and its extra simulate", "add it"
        raise InputError(expected=expected, got="none", path=path, key="campaign_image", fix=fix)
    return profile


def manifests(profile: Kubernetes, study: Study, planned: list[Job]) -> list[Object]:
    """Return what the pods read, as a ConfigMap, and their Job; marked as the campaign's own."""
    texts = checkout_of(planned[0]) if planned else {}
    texts |= {f"cells/{index}": cell_text(cell) for index, cell in enumerate(planned)}
    keys = {path: path.replace("/", "_") for path in texts}  # as a ConfigMap can have them
    sha256 = planned[0].trace.sha256 if planned else study.trace.sha256
    (job,) = read_yaml(root() / "recipes" / "campaign.yaml")
    name, spec = f"{study.base.replace('.', '-')}-campaign", job["spec"]
    pod, limit_s = spec["template"]["spec"], profile.limits.replay_s
    args = [CHECKOUT, objects.staged_path(sha256), RUNS]
    pod["containers"][0] |= {"image": profile.campaign_image, "args": args}
    items = [{"key": key, "path": path} for path, key in keys.items()]
    pod["volumes"][0]["configMap"] = {"name": name, "items": items}
    pod["activeDeadlineSeconds"] = round(limit_s)
    objects.tolerate(pod, profile)
    if profile.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
    tries = -(-len(planned) // profile.campaign_parallelism) * (1 + spec["backoffLimitPerIndex"])
    spec["activeDeadlineSeconds"] = round(max(1, tries) * limit_s)
    spec["completions"] = len(planned)
    spec["parallelism"] = min(len(planned), profile.campaign_parallelism)
    spec["template"]["metadata"] = {"labels": {objects.STUDY_LABEL: study.base}}
    data = {keys[path]: text for path, text in texts.items()}
    made = [{"apiVersion": "v1", "kind": "ConfigMap", "data": data}, job]
    of_run = {"study": study.base, "run": f"{study.name}/campaign", "digest": digest(made)[:32]}
    return [
        objects.marked({**one, "metadata": {"name": name}}, profile.namespace, **of_run)
        for one in made
    ]


class IndexedJob:
    """Simulated jobs, and the Indexed Job of a cluster that replays them."""

    def __init__(self, profile: Kubernetes, planned: list[Job]) -> None:
        self.kube, self.profile, self.planned = Kube(profile), profile, planned
        self.study, self.trace = planned[0].study, planned[0].trace
        self.config, self.job = manifests(profile, self.study, planned)
        self.name = self.job["metadata"]["name"]
        self.helper = objects.files_pod(self.job, f"{self.name}-files")
        self.helper["metadata"] = {**self.job["metadata"], **self.helper["metadata"]}

    def run(self) -> None:
        """Start the Job or find it running, see it to its end, and bring home what is complete."""
        read = self._under_way()
        with self._cleared():
            keys = {text: key for key, text in (read or self._start()).items()}
            cells = {int(keys[cell_text(c)].removeprefix(CELL)): c for c in self.planned}
            look = workloads.wait_ended(self.kube, self.name, _progress, title="campaign")
            failed = self._collect(cells, look)
            for line in failed:
                print(line, file=sys.stderr)
            if failed:
                raise DependencyError(
                    f"{len(failed)} of {len(cells)} cells failed; first: {failed[0]}; the others "
                    "are kept, run the same command again"
                )

    def _under_way(self) -> dict[str, str]:
        """Return what the pods of a campaign that replays these cells read; clear an ended one.

        Cells that an earlier start brought home are no longer asked for, so more may be held.
        """
        name, job = self.name, self.kube.get("Job", self.name)
        held: dict[str, str] = at(self.kube.get("ConfigMap", name), "data") or {}
        if job and {*self.config["data"].values()} <= {*held.values()}:
            return held
        if job and not (health.holds(job, "Complete") or health.holds(job, "Failed")):
            raise DependencyError(
                f"Job {name}: another campaign of {self.study.name} is under way; wait for it, or "
                f"end it with `kubectl -n {self.kube.namespace} delete job {name}`"
            )
        self._remove()
        return {}

    def _start(self) -> dict[str, str]:
        claims = objects.storage(self.study, self.profile)
        claims = [claim for claim in claims if claim["metadata"]["name"] == VOLUME]
        workloads.claim_storage(self.kube, claims)
        with workloads.helper_pod(self.kube, self.helper) as pod:
            content, path = self.trace.path.read_bytes(), objects.staged_path(self.trace.sha256)
            files.upload(pod, content, path)
        self.kube.create(self.config)
        self.kube.create(self.job)
        return dict(self.config["data"])

    def _collect(self, cells: dict[int, Job], look: Look) -> list[str]:
        """Bring complete cells home; return which are not, and why."""
        failed = []
        with workloads.helper_pod(self.kube, self.helper) as pod, Display("collect") as display:
            for index, job in sorted(cells.items()):
                display.show(f"cell {index} of {len(cells)}")
                try:
                    _bring_home(pod, job)
                except (files.Spoiled, Failed) as error:
                    why = str(error)
                    tries = [p for p in look.pods if objects.annotation(p, INDEX) == str(index)]
                    last = workloads.newest(tries)
                    if last and health.phase(last) == "Failed":
                        log = workloads.log_end(self.kube, tries)
                        why = workloads.how_ended(Look(look.job, tries, log), last["status"])
                    failed.append(f"index {index}, {_inside(job)}: {why}")
        return failed

    @contextmanager
    def _cleared(self) -> Iterator[None]:
        """Remove the campaign in the end; of one that fails keep first what tells why."""
        troubles: list[str] = []
        try:
            yield
        except Exception as error:
            troubles.append(str(error))
            self._keep_diagnostics()
            raise
        finally:
            try:
                self._remove()
            except KvabError as error:
                text = "; then, clearing up: ".join([*troubles, str(error)])
                raise DependencyError(text) from None

    def _remove(self) -> None:
        parts = {"Job": self.name, "ConfigMap": self.name, "Pod": f"{self.name}-files"}
        workloads.remove_parts(self.kube, parts, lambda one: objects.of_study(one, self.study.base))

    def _keep_diagnostics(self) -> None:
        """Write statuses, events and logs beside the runs, in place of an earlier failure's."""
        job = self.planned[0]
        folder = job.runs / job.study.name / job.cluster.name / "campaign-diagnostics"
        with suppress(OSError):  # what failed is said in any case
            shutil.rmtree(folder, ignore_errors=True)
            for file, content in health.diagnostics(self.kube, {"Job": [self.name]}).items():
                write(folder / file, content)


def _progress(look: Look) -> str:
    phases, total = Counter(map(health.phase, look.pods)), look.job["spec"]["completions"]
    done, failed, running = (phases[phase] for phase in ("Succeeded", "Failed", "Running"))
    return f"{done} of {total} cells done, {failed} failed tries, {running} running"


def _inside(job: Job) -> str:
    """Return where a run lies inside the folder of runs, here and on the volume."""
    return job.path.relative_to(job.runs).as_posix()


def _bring_home(pod: Pod, job: Job) -> None:
    """Copy a run folder beside its place, verify it, and rename it in."""
    source, lock = f"{RUNS}/{_inside(job)}", runs.RunLock(job.path)
    lock.take()
    try:
        with runs.placed(job.path) as beside:
            files.bring_run(pod, source, beside)
            state, why = runs.state(beside, job.depends_on())
            if state != "complete":
                problem = f"{source}: expected a complete run, got {state}: {why}"
                raise files.Spoiled(problem)
    finally:
        lock.leave()
