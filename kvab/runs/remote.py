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
from typing import Any

from pydantic import ValidationError

from kvab import runs
from kvab.cluster import applied, deploying, diagnostics, preflight, preparing
from kvab.cluster.causes import condition
from kvab.cluster.kube import Kube
from kvab.cluster.podexec import Broken, Pod
from kvab.cluster.podfiles import download_run, helper_pod, upload
from kvab.errors import DependencyError, InputError, KvabError, remedy
from kvab.job import Job
from kvab.runs import indexed
from kvab.runs.cell import Campaign, campaign_of, empty_campaign
from kvab.runs.claims import Claim
from kvab.runs.folder import set_aside
from kvab.study import Kubernetes, Study, load_cluster
from kvab.watching import Display

Object = dict[str, Any]
# It asks for neither GPUs nor Dynamo's operator, and reads no secret.
NEEDS = tuple(
    need
    for need in preflight.NEEDS
    if need.group in ("", "batch", "storage.k8s.io")
    and need.resource not in ("services/proxy", "secrets", "nodes")
)


def replay_on(jobs: list[Job], on: str) -> None:
    """Replay simulated jobs as one Indexed Job of a cluster and bring their run folders home.

    A Job that an earlier start left running is found again; in the end, and when it is stopped,
    nothing stays but the volume.

    Raises
    ------
    InputError
        If ``on`` is no Kubernetes profile with an image for campaigns, or the jobs are not
        simulated.
    DependencyError
        If the cluster lacks something, another campaign of the study is under way, or a cell
        failed: how many, and why the first did. The other cells are kept.
    """
    profile = _profile(jobs, on)
    study, campaign = jobs[0].study, campaign_of(jobs)
    kube, (cells, manifest) = Kube(profile), indexed.manifests(profile, campaign)
    missing = [f.what for f in _findings(kube, profile, campaign) if not f.ok]
    if missing:
        raise DependencyError(f"cluster {on}: {'; '.join(missing)}")
    name, helper = manifest["metadata"]["name"], indexed.helper(manifest)
    held = _under_way(kube, campaign, name)
    with _cleared(kube, name, jobs[0]):
        if held is None:
            claims = applied.storage(study, profile)
            volume = [each for each in claims if each["metadata"]["name"] == indexed.CLAIM]
            preparing.claim_storage(kube, volume)
            with helper_pod(kube, helper) as pod:
                content = jobs[0].trace.path.read_bytes()
                upload(pod, content, applied.staged_path(campaign.trace_sha256))
            kube.create(cells)
            kube.create(manifest)
            held = campaign
        numbered = {held.cells.index(cell): job
                    for cell, job in zip(campaign.cells, jobs, strict=True)}  # fmt: skip
        failed = indexed.watch(kube, name, set(numbered), len(held.cells))
        failed |= _collect(kube, helper, {n: numbered[n] for n in numbered if n not in failed})
        told = [f"index {n}, {held.cells[n].place}: {why}" for n, why in sorted(failed.items())]
        for line in told:
            print(line, file=sys.stderr)
        if told:
            raise DependencyError(
                f"{len(told)} of {len(jobs)} cells failed; first: {told[0]}; the others are kept, "
                "run the same command again"
            )


@contextmanager
def _cleared(kube: Kube, name: str, job: Job) -> Iterator[None]:
    """Remove the campaign in the end; of one that fails keep first what tells why."""
    try:
        yield
    except Exception as error:
        told = [str(error)]
        try:
            _keep_diagnostics(kube, name, job)
        except (KvabError, OSError) as another:
            told.append(f"keeping diagnostics: {another}")
        try:
            _remove(kube, name, job.study.name)
        except KvabError as another:
            told.append(f"clearing up: {another}")
        if len(told) > 1:
            raise DependencyError("; then, ".join(told)) from error
        raise
    except BaseException:  # stopped on purpose: nothing to explain
        _remove(kube, name, job.study.name)
        raise
    _remove(kube, name, job.study.name)


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
    applied.check_profile(profile)
    return profile


def _findings(kube: Kube, profile: Kubernetes, campaign: Campaign) -> list[preflight.Finding]:
    found = preflight.basics(kube, profile, NEEDS)
    if all(each.ok for each in found):
        found.append(dry_run(kube, profile, campaign))
    return found


def study_findings(study: Study, profile: Kubernetes) -> Iterator[preflight.Finding]:
    """Yield whether a cluster that is to take campaigns would take one of the study."""
    if profile.campaign_image:
        yield dry_run(Kube(profile), profile, empty_campaign(study))


def dry_run(kube: Kube, profile: Kubernetes, campaign: Campaign) -> preflight.Finding:
    """Return whether the cluster would take a campaign."""
    made = indexed.manifests(profile, campaign)
    return preflight.look("dry run, campaign", lambda: preflight.dry_run(kube, made))


def _under_way(kube: Kube, campaign: Campaign, name: str) -> Campaign | None:
    """Return the campaign that is there already and replays these cells; clear an ended one.

    Cells that an earlier start brought home are no longer asked for, so more may be held.
    """
    job, cells = kube.get("Job", name), kube.get("ConfigMap", name)
    if job and cells:
        try:
            held = Campaign.model_validate_json(cells["data"][indexed.FILE])
        except (KeyError, ValidationError):
            held = None
        if held and campaign.files.items() <= held.files.items():
            if all(cell in held.cells for cell in campaign.cells):
                return held
    if job and not (condition(job, "Complete") or condition(job, "Failed")):
        raise DependencyError(
            f"Job {name}: another campaign of {campaign.study} is under way since "
            f"{job['metadata'].get('creationTimestamp')}; wait for it, or end it with `kubectl -n "
            f"{kube.namespace} delete job {name}`"
        )
    _remove(kube, name, campaign.study)
    return None


def _remove(kube: Kube, name: str, study: str) -> None:
    for kind, each in (("Job", name), ("ConfigMap", name), ("Pod", f"{name}-files")):
        deploying.remove(kube, kind, each, study)


def _collect(kube: Kube, helper: Object, numbered: dict[int, Job]) -> dict[int, str]:
    """Bring complete cells home; return why some are refused, by index."""
    refused: dict[int, str] = {}
    if not numbered:
        return refused
    with helper_pod(kube, helper) as pod, Display("collect") as display:
        for count, (index, job) in enumerate(sorted(numbered.items())):
            display.show(f"{count} of {len(numbered)} cells")
            try:
                _bring_home(pod, job)
            except Broken:
                raise
            except DependencyError as error:
                refused[index] = str(error)
    return refused


def _bring_home(pod: Pod, job: Job) -> None:
    """Copy a run folder beside its place, verify it, and rename it in."""
    source = f"{indexed.RUNS}/{job.path.relative_to(job.runs).as_posix()}"
    beside = job.path.with_name(f".{job.path.name}.collecting")
    claim = Claim(job.path)
    claim.take()
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
        claim.leave()


def _keep_diagnostics(kube: Kube, name: str, job: Job) -> None:
    """Write statuses, events and logs beside the runs, in place of those of an earlier failure."""
    folder = job.runs / job.study.name / job.cluster.name / "campaign-diagnostics"
    shutil.rmtree(folder, ignore_errors=True)
    for file, content in diagnostics.files(kube, [f"job-name={name}"], [("Job", name)]).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
