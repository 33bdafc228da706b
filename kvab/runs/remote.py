"""Simulated replays on a Kubernetes cluster: one Indexed Job, a cell for each index.

Input: jobs that are missing and a profile. Output: their run folders, brought home and verified.
Kubernetes does the scheduling and the retries. Cells write whole run folders to the shared volume,
so that whatever is started again finds what is complete.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kvab.clusters.base import Finding, Job, look
from kvab.clusters.kubernetes import diagnostics, files, health, jobs, objects, preflight
from kvab.clusters.kubernetes.api import Failed, Kube, Object, Pod
from kvab.clusters.kubernetes.deployment import remove
from kvab.clusters.kubernetes.files import Spoiled, helper_pod
from kvab.clusters.kubernetes.jobs import Look
from kvab.clusters.kubernetes.lease import Lease
from kvab.console import Display
from kvab.declarations import digest, read_yaml
from kvab.errors import DependencyError, InputError, KvabError, remedy
from kvab.runs import folder as runs
from kvab.runs.cell import cell_text, checkout_of
from kvab.runs.folder import RunLock, set_aside
from kvab.study import Kubernetes, Study, load_cluster, root
from kvab.study.manifests import at

# As in recipes/campaign.yaml.
CHECKOUT, RUNS, VOLUME = "/opt/campaign", "/perf-cache/runs", "perf-cache"
CELL = "cells_"
INDEX = "batch.kubernetes.io/job-completion-index"


def needs() -> list[preflight.Need]:
    """Return what a campaign needs: no GPUs, nothing of Dynamo's operator, no secret."""
    return [
        need
        for need in preflight.all_needs()
        if need.group in ("", "batch", "storage.k8s.io", "coordination.k8s.io")
        and need.resource not in ("services/proxy", "secrets", "nodes")
    ]


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
    profile = _profile(planned[0], on)
    kube, (config, job) = Kube(profile), manifests(profile, planned[0].study, planned)
    findings = preflight.basics(kube, profile, needs())
    if all(finding.ok for finding in findings):
        findings.append(_dry_run(kube, [config, job]))
    if missing := [finding.what for finding in findings if not finding.ok]:
        raise DependencyError(f"cluster {on}: {'; '.join(missing)}")
    lease = Lease(Kube(profile), _lease(job), takes_over=False)
    lease.take()
    kube.guard, kube.explain = lease.guard, lease.explain
    try:
        _replay(kube, profile, planned, config, job)
    finally:
        lease.leave()


def _lease(job: Object) -> Object:
    """Return the Lease of a campaign, which at most one client holds."""
    metadata = {**job["metadata"], "name": f"kvab.{job['metadata']['name']}"}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}


def _replay(
    kube: Kube, profile: Kubernetes, planned: list[Job], config: Object, job: Object
) -> None:
    name, study, trace = job["metadata"]["name"], planned[0].study, planned[0].trace
    helper = objects.files_pod(job, f"{name}-files")
    helper["metadata"] = {**job["metadata"], **helper["metadata"]}
    held = _under_way(kube, config, planned[0])
    with _cleared(kube, name, planned[0]):
        if held is None:
            claims = objects.storage(study, profile)
            files.claim_storage(kube, [one for one in claims if one["metadata"]["name"] == VOLUME])
            with helper_pod(kube, helper) as pod:
                files.upload(pod, trace.path.read_bytes(), objects.staged_path(trace.sha256))
            kube.create(config)
            kube.create(job)
            held = config["data"]
        keys = {text: key for key, text in held.items() if key.startswith(CELL)}
        cells = {int(keys[cell_text(cell)].removeprefix(CELL)): cell for cell in planned}
        failed = _watch(kube, name, {*cells}, len(keys))
        failed |= _collect(kube, helper, {n: cells[n] for n in cells if n not in failed})
        lines = [f"index {n}, {_inside(cells[n])}: {why}" for n, why in sorted(failed.items())]
        for line in lines:
            print(line, file=sys.stderr)
        if lines:
            raise DependencyError(
                f"{len(lines)} of {len(planned)} cells failed; first: {lines[0]}; the others are "
                "kept, run the same command again"
            )


def study_findings(study: Study, profile: Kubernetes) -> Iterator[Finding]:
    """Yield whether a cluster that is to take campaigns would take one of the study."""
    if profile.campaign_image:
        yield _dry_run(Kube(profile), manifests(profile, study, []))


def _dry_run(kube: Kube, made: list[Object]) -> Finding:
    return look("dry run, campaign", lambda: preflight.dry_run(kube, made))


def manifests(profile: Kubernetes, study: Study, planned: list[Job]) -> list[Object]:
    """Return what the pods read, as a ConfigMap, and their Job; marked as the campaign's own."""
    texts = checkout_of(planned[0]) if planned else {}
    texts |= {f"cells/{index}": cell_text(cell) for index, cell in enumerate(planned)}
    trace_sha256 = planned[0].trace.sha256 if planned else study.trace.sha256
    (job,) = read_yaml(root() / "recipes" / "campaign.yaml")
    name, spec = f"{study.base.replace('.', '-')}-campaign", job["spec"]
    pod, limit_s = spec["template"]["spec"], profile.limits.replay_s
    pod["containers"][0] |= {
        "image": profile.campaign_image,
        "args": [CHECKOUT, objects.staged_path(trace_sha256), RUNS],
    }
    items = [{"key": _key(path), "path": path} for path in texts]
    pod["volumes"][0]["configMap"] = {"name": name, "items": items}
    pod["activeDeadlineSeconds"] = round(limit_s)
    if profile.tolerations:
        pod["tolerations"] = list(profile.tolerations)
    if profile.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": profile.image_pull_secret}]
    tries = -(-len(planned) // profile.campaign_parallelism) * (1 + spec["backoffLimitPerIndex"])
    spec |= {
        "activeDeadlineSeconds": round(max(1, tries) * limit_s),
        "completions": len(planned),
        "parallelism": min(len(planned), profile.campaign_parallelism),
    }
    spec["template"]["metadata"] = {"labels": {objects.STUDY_LABEL: study.base}}
    data = {_key(path): text for path, text in texts.items()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": data}
    for manifest in (config, job):
        manifest["metadata"] = {"name": name}
    mark = objects.Mark(study.base, f"{study.name}/campaign", "", digest([config, job])[:32])
    return [mark.put(manifest, profile.namespace) for manifest in (config, job)]


def _key(path: str) -> str:
    """Return a path as a ConfigMap can have it for a key."""
    return path.replace("/", "_")


def _inside(job: Job) -> str:
    """Return where a run lies inside the folder of runs, here and on the volume."""
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


def _profile(job: Job, on: str) -> Kubernetes:
    profile, cluster = load_cluster(on), job.cluster
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
    job, held = kube.get("Job", name), at(kube.get("ConfigMap", name), "data") or {}
    if job and {*config["data"].values()} <= {*held.values()}:
        return dict(held)
    if job and not (health.holds(job, "Complete") or health.holds(job, "Failed")):
        raise DependencyError(
            f"Job {name}: another campaign of {asked.study.name} is under way since "
            f"{job['metadata'].get('creationTimestamp')}; wait for it, or end it with `kubectl -n "
            f"{kube.namespace} delete job {name}`"
        )
    _remove(kube, name, asked)
    return None


def _remove(kube: Kube, name: str, job: Job) -> None:
    for kind, part in (("Job", name), ("ConfigMap", name), ("Pod", f"{name}-files")):
        remove(kube, kind, part, lambda thing: objects.of_study(thing, job.study.base))


def _indexes(job: Object, key: str) -> set[int]:
    """Return the indexes that a Job's status lists, such as ``0,3-5``."""
    ends = [part.partition("-") for part in (at(job, f"status.{key}") or "").split(",") if part]
    return {n for first, _, last in ends for n in range(int(first), int(last or first) + 1)}


def _watch(kube: Kube, name: str, asked: set[int], total: int) -> dict[int, str]:
    """Return when the Job has ended: why indexes asked for are not complete.

    Raises
    ------
    DependencyError
        If no pod can start or be created, with the cause, or the Job was deleted.
    """

    def note(look: Look) -> str:
        done, failed = (len(_indexes(look.job, f"{key}Indexes")) for key in ("completed", "failed"))
        running = sum(health.phase(pod) == "Running" for pod in look.pods)
        left = total - done - failed
        return f"{done} of {total} cells done, {failed} failed, {left} left, {running} running"

    job, pods, _ = jobs.wait_ended(kube, name, note, title="campaign")
    missing = sorted(asked - _indexes(job, "completedIndexes"))
    return {index: _why(kube, pods, index) for index in missing}


def _why(kube: Kube, pods: list[Object], index: int) -> str:
    """Return how the last try of an index ended, with the end of its log."""
    own = [pod for pod in pods if objects.annotation(pod, INDEX) == str(index)]
    if (last := jobs.newest(own)) is None:
        return "never started, or its pods are gone"
    end = jobs.terminated([last])
    reason = end.get("reason") or at(last, "status.reason") or health.phase(last)
    code = f", exit code {end['exitCode']}" if "exitCode" in end else ""
    return f"{reason}{code}; its log ends with: {jobs.log_end(kube, [last]) or 'nothing'}"


def _collect(kube: Kube, helper: Object, cells: dict[int, Job]) -> dict[int, str]:
    """Bring complete cells home; return why some are rejected, by index."""
    rejected: dict[int, str] = {}
    if not cells:
        return rejected
    with helper_pod(kube, helper) as pod, Display("collect") as display:
        for count, (index, job) in enumerate(sorted(cells.items())):
            display.show(f"{count} of {len(cells)} cells")
            try:
                _bring_home(pod, job)
            except (Spoiled, Failed) as error:
                rejected[index] = str(error)
    return rejected


def _bring_home(pod: Pod, job: Job) -> None:
    """Copy a run folder beside its place, verify it, and rename it in."""
    source = f"{RUNS}/{_inside(job)}"
    beside = job.path.with_name(f".{job.path.name}.collecting")
    lock = RunLock(job.path)
    lock.take()
    try:
        files.download_run(pod, source, beside)
        state, why = runs.state(beside, job.depends_on())
        if state != "complete":
            raise Spoiled(f"{source}: expected a complete run, got {state}: {why}")
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
