"""Simulated replays on a Kubernetes cluster: one Indexed Job, a cell for each index.

Input: jobs that are missing and a profile. Output: their run folders, brought home and verified.
Kubernetes does the scheduling and the retries. Cells write whole run folders to the shared volume,
so that whatever is started again finds what is complete.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvab.clusters.base import Finding, Job, look
from kvab.clusters.kubernetes import deployment, diagnostics, files, health, objects, preflight
from kvab.clusters.kubernetes.api import Broken, Kube, Pod
from kvab.clusters.kubernetes.files import download_run, helper_pod, upload
from kvab.clusters.kubernetes.health import condition, last_lines
from kvab.clusters.kubernetes.lease import Lease
from kvab.console import Display
from kvab.declarations import digest, read_yaml
from kvab.errors import DependencyError, InputError, KvabError, remedy
from kvab.runs import folder as runs
from kvab.runs.cell import cell_text, checkout_of
from kvab.runs.folder import RunLock, set_aside
from kvab.study import Kubernetes, Study, load_cluster, root

Object = dict[str, Any]
# As in recipes/campaign.yaml.
CHECKOUT, RUNS, VOLUME = "/opt/campaign", "/perf-cache/runs", "perf-cache"
CELL = "cells_"
INDEX = "batch.kubernetes.io/job-completion-index"
# It asks for neither GPUs nor Dynamo's operator, and reads no secret.
NEEDS = tuple(
    need
    for need in preflight.NEEDS
    if need.group in ("", "batch", "storage.k8s.io", "coordination.k8s.io")
    and need.resource not in ("services/proxy", "secrets", "nodes")
)


def replay_on(jobs: list[Job], on: str) -> None:
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
    profile, study = _profile(jobs, on), jobs[0].study
    kube, (config, job) = Kube(profile), manifests(profile, study, jobs)
    found = preflight.basics(kube, profile, NEEDS)
    if all(each.ok for each in found):
        found.append(_dry_run(kube, [config, job]))
    if missing := [each.what for each in found if not each.ok]:
        raise DependencyError(f"cluster {on}: {'; '.join(missing)}")
    helper = objects.files_pod(job, f"{job['metadata']['name']}-files")
    helper["metadata"] = {**job["metadata"], **helper["metadata"]}
    lease = Lease(Kube(profile), _lease(job), takes_over=False)
    lease.take()
    kube.guard = lease.guard
    claims = [c for c in objects.storage(study, profile) if c["metadata"]["name"] == VOLUME]
    try:
        _replay(kube, jobs, [config, job], helper, claims)
    finally:
        lease.leave()


def _lease(job: Object) -> Object:
    """Return the Lease of a campaign, which at most one client holds."""
    metadata = {**job["metadata"], "name": f"kvab.{job['metadata']['name']}"}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}


def _replay(
    kube: Kube, jobs: list[Job], made: list[Object], helper: Object, claims: list[Object]
) -> None:
    config, job = made
    held = _under_way(kube, config, jobs[0])
    with _cleared(kube, job["metadata"]["name"], jobs[0]):
        if held is None:
            files.claim_storage(kube, claims)
            with helper_pod(kube, helper) as pod:
                content = jobs[0].trace.path.read_bytes()
                upload(pod, content, objects.staged_path(jobs[0].trace.sha256))
            kube.create(config)
            kube.create(job)
            held = config["data"]
        keys = {text: key for key, text in held.items() if key.startswith(CELL)}
        numbered = {int(keys[cell_text(each)].removeprefix(CELL)): each for each in jobs}
        failed = _watch(kube, job["metadata"]["name"], set(numbered), len(keys))
        failed |= _collect(kube, helper, {n: numbered[n] for n in numbered if n not in failed})
        lines = [f"index {n}, {_place(numbered[n])}: {why}" for n, why in sorted(failed.items())]
        for line in lines:
            print(line, file=sys.stderr)
        if lines:
            raise DependencyError(
                f"{len(lines)} of {len(jobs)} cells failed; first: {lines[0]}; the others are "
                "kept, run the same command again"
            )


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield whether a cluster that is to take campaigns would take one of the study."""
    if profile.campaign_image:
        yield _dry_run(Kube(profile), manifests(profile, study, []))


def _dry_run(kube: Kube, made: list[Object]) -> Finding:
    return look("dry run, campaign", lambda: preflight.dry_run(kube, made))


def manifests(profile: Kubernetes, study: Study, jobs: list[Job]) -> list[Object]:
    """Return what the pods read, as a ConfigMap, and their Job; marked as the campaign's own."""
    files = checkout_of(jobs[0]) if jobs else {}
    files |= {f"cells/{index}": cell_text(job) for index, job in enumerate(jobs)}
    sha256 = jobs[0].trace.sha256 if jobs else study.trace.sha256
    (job,) = read_yaml(root() / "recipes" / "campaign.yaml")
    name, spec = f"{study.name.replace('.', '-')}-campaign", job["spec"]
    pod, limit_s = spec["template"]["spec"], profile.limits.replay_s
    pod["containers"][0] |= {
        "image": profile.campaign_image,
        "args": [CHECKOUT, objects.staged_path(sha256), RUNS],
    }
    items = [{"key": _key(path), "path": path} for path in files]
    pod["volumes"][0]["configMap"] = {"name": name, "items": items}
    pod["activeDeadlineSeconds"] = round(limit_s)
    if profile.tolerations:
        pod["tolerations"] = list(profile.tolerations)
    if profile.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
    tries = -(-len(jobs) // profile.campaign_parallelism) * (1 + spec["backoffLimitPerIndex"])
    spec |= {
        "activeDeadlineSeconds": round(max(1, tries) * limit_s),
        "completions": len(jobs),
        "parallelism": min(len(jobs), profile.campaign_parallelism),
    }
    spec["template"]["metadata"] = {"labels": {objects.STUDY_LABEL: study.name}}
    data = {_key(path): text for path, text in files.items()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": data}
    for manifest in (config, job):
        manifest["metadata"] = {"name": name}
    mark = objects.Mark(study.name, f"{study.name}/campaign", "", digest([config, job])[:32])
    return [mark.put(manifest, profile.namespace) for manifest in (config, job)]


def _key(path: str) -> str:
    """Return a path as a ConfigMap can have it for a key."""
    return path.replace("/", "_")


def _place(job: Job) -> str:
    return job.path.relative_to(job.runs).as_posix()


@contextmanager
def _cleared(kube: Kube, name: str, job: Job) -> Iterator[None]:
    """Remove the campaign in the end; of one that fails keep first what tells why."""
    try:
        yield
    except Exception as error:
        texts = [str(error)]
        for what, act in {"keeping diagnostics": _keep_diagnostics, "clearing up": _remove}.items():
            try:
                act(kube, name, job)
            except (KvabError, OSError) as another:
                texts.append(f"{what}: {another}")
        if len(texts) > 1:
            raise DependencyError("; then, ".join(texts)) from error
        raise
    except BaseException:  # stopped on purpose: nothing to explain
        _remove(kube, name, job)
        raise
    _remove(kube, name, job)


def _profile(jobs: list[Job], on: str) -> Kubernetes:
    profile, cluster = load_cluster(on), jobs[0].cluster
    where = f"recipes/clusters/{on}.yaml"
    if profile.kind != "kubernetes":
        raise InputError(f"{where}: expected kind kubernetes to replay on, got {profile.kind}")
    if cluster.kind != "simulated":
        raise InputError(
            f"cluster {cluster.name}: only simulated replays are sent to another cluster, got kind "
            f"{cluster.kind}; leave --on out"
        )
    if profile.campaign_image is None:
        raise InputError(
            f"{where}: campaign_image: expected an image with kvab and its extra simulate, got "
            "none; add it"
        )
    objects.check_profile(profile)
    return profile


def _under_way(kube: Kube, config: Object, asked: Job) -> dict[str, str] | None:
    """Return what the pods of a campaign that replays these cells read; clear an ended one.

    Cells that an earlier start brought home are no longer asked for, so more may be held.
    """
    name = config["metadata"]["name"]
    job, held = kube.get("Job", name), (kube.get("ConfigMap", name) or {}).get("data") or {}
    if job and {*config["data"].values()} <= {*held.values()}:
        return held
    if job and not (condition(job, "Complete") or condition(job, "Failed")):
        raise DependencyError(
            f"Job {name}: another campaign of {asked.study.name} is under way since "
            f"{job['metadata'].get('creationTimestamp')}; wait for it, or end it with `kubectl -n "
            f"{kube.namespace} delete job {name}`"
        )
    _remove(kube, name, asked)
    return None


def _remove(kube: Kube, name: str, job: Job) -> None:
    for kind, each in (("Job", name), ("ConfigMap", name), ("Pod", f"{name}-files")):
        deployment.remove(kube, kind, each, job.study.name)


def _indexes(job: Object, key: str) -> set[int]:
    """Return the indexes that a Job's status lists, such as ``0,3-5``."""
    text = (job.get("status") or {}).get(key) or ""
    ends = [part.partition("-") for part in text.split(",") if part]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


def _watch(kube: Kube, name: str, asked: set[int], total: int) -> dict[int, str]:
    """Return when the Job has ended: why indexes asked for are not complete.

    Raises
    ------
    DependencyError
        If no pod can start or be created, with the cause, or the Job was deleted.
    """
    grace = health.Grace(kube.limits.grace_s)
    with Display("campaign") as display:
        while True:
            job, pods = kube.get("Job", name), kube.list("Pod", f"job-name={name}")
            if job is None:
                raise DependencyError(f"Job {name} was deleted while it ran; run again")
            done, failed = _indexes(job, "completedIndexes"), _indexes(job, "failedIndexes")
            if condition(job, "Complete") or condition(job, "Failed"):
                return {index: _why(kube, pods, index) for index in sorted(asked - done)}
            phases = [(pod.get("status") or {}).get("phase") for pod in pods]
            # Those that wait for a place while others run are no failure.
            idle = [] if "Running" in phases else [
                pod for pod, phase in zip(pods, phases, strict=True) if phase == "Pending"
            ]  # fmt: skip
            seen = [cause for pod in idle for cause in health.of_pod(pod)]
            alive = {"Running", "Pending"} & {*phases}
            events = kube.list("Event")
            seen += health.of_events(events, idle) if alive else health.of_creation(events, job)
            if cause := grace.lasting(seen, time.monotonic()):
                raise DependencyError(f"Job {name}: {cause}")
            left = total - len(done) - len(failed)
            display.show(
                f"{len(done)} of {total} cells done, {len(failed)} failed, {left} left, "
                f"{phases.count('Running')} running"
            )
            kube.changed(f"job-name={name}", kube.limits.poll_s)


def _why(kube: Kube, pods: list[Object], index: int) -> str:
    """Return how the last try of an index ended, with the end of its log."""
    own = [p for p in pods if (p["metadata"].get("annotations") or {}).get(INDEX) == str(index)]
    if not own:
        return "never started, or its pods are gone"
    last = max(own, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    status = last.get("status") or {}
    states = [each.get("state") or {} for each in status.get("containerStatuses", [])]
    ended: Object = next((state["terminated"] for state in states if "terminated" in state), {})
    reason = ended.get("reason") or status.get("reason") or status.get("phase", "Unknown")
    code = f", exit code {ended['exitCode']}" if "exitCode" in ended else ""
    log = kube.log(last["metadata"]["name"], health.main_container(last), lines=50)
    return f"{reason}{code}; its log ends with: {last_lines(log, 4) or 'nothing'}"


def _collect(kube: Kube, helper: Object, numbered: dict[int, Job]) -> dict[int, str]:
    """Bring complete cells home; return why some are rejected, by index."""
    rejected: dict[int, str] = {}
    if not numbered:
        return rejected
    with helper_pod(kube, helper) as pod, Display("collect") as display:
        for count, (index, job) in enumerate(sorted(numbered.items())):
            display.show(f"{count} of {len(numbered)} cells")
            try:
                _bring_home(pod, job)
            except Broken:
                raise
            except DependencyError as error:
                rejected[index] = str(error)
    return rejected


def _bring_home(pod: Pod, job: Job) -> None:
    """Copy a run folder beside its place, verify it, and rename it in."""
    source = f"{RUNS}/{_place(job)}"
    beside = job.path.with_name(f".{job.path.name}.collecting")
    lock = RunLock(job.path)
    lock.take()
    try:
        download_run(pod, source, beside)
        state, why = runs.state(beside, job.depends_on())
        if state != "complete":
            raise DependencyError(f"{source}: expected a complete run, got {state}: {why}")
        if job.path.exists():
            set_aside(job.path)
        beside.rename(job.path)
    except OSError as error:
        raise InputError(f"{job.path}: cannot write the run ({error}); {remedy(error)}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        lock.leave()


def _keep_diagnostics(kube: Kube, name: str, job: Job) -> None:
    """Write statuses, events and logs beside the runs, in place of those of an earlier failure."""
    folder = job.runs / job.study.name / job.cluster.name / "campaign-diagnostics"
    shutil.rmtree(folder, ignore_errors=True)
    for file, content in diagnostics.files(kube, [f"job-name={name}"], [("Job", name)]).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
