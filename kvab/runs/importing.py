"""AIPerf's artifacts from anywhere -> a run folder, whole or not at all.

Input: a folder or archive of artifacts and what the user says of them. Output: a run folder that
the rest of the path reads as any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from kvab.clusters.base import run_path
from kvab.declarations import Json, digest
from kvab.errors import InputError
from kvab.requests import metrics
from kvab.requests.aiperf import SERVER_METRICS, Artifacts, router_counters
from kvab.requests.table import without_cached
from kvab.runs import folder as runs
from kvab.runs.replay import plan_job
from kvab.runs.sources import NOT_STREAMED, SUMMARIZE, SUMMARY_ONLY, Hints, Source, opened
from kvab.study import Study, load_cluster, root
from kvab.study.manifests import Configuration, read_configuration
from kvab.study.topology import read_topology

NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
KIND = "imported"
KEPT = ("profile_export*", "*.jsonl*", "server_metrics_export.json", ".aiperf_results_*.json")
LEFT = ("_raw", "_console")


def import_runs(
    path: Path,
    hints: Hints,
    cluster: str,
    configuration: str,
    repeat: int = 1,
    folder: Path = Path("runs"),
) -> list[tuple[Path, list[str]]]:
    """Write artifacts as run folders; return each with what a reader must know of it.

    The runs of ``--num-profile-runs`` become repeats, from ``repeat`` on.

    Parameters
    ----------
    path : Path
        A folder of AIPerf artifacts, or an archive of one.
    hints : Hints
        The study, and what else the user says of the run.
    cluster : str
        What the runs are filed under: a profile, or a new name for runs made elsewhere.
    configuration, repeat : str, int
        What was replayed.
    folder : Path
        The folder of runs; a relative one counts from the checkout.

    Raises
    ------
    InputError
        If the artifacts are not one run with single requests of a known trace, or the names are
        not right; nothing is written then.
    """
    study, folder = hints.study, root() / folder
    if not NAME.fullmatch(cluster) or cluster == "workloads":
        raise InputError(f"--cluster: expected a name such as my-h200, got {cluster!r}")
    recipe = read_configuration(study.configuration_folder(configuration), configuration)
    profile = _profile(cluster)
    if (path / "run.json").exists():
        raise InputError(f"{path}: a run folder already; put it under {folder} as it is")
    with opened(path, hints) as sources:
        ready = [
            _prepared(source, study, profile, recipe, number, folder)
            for number, source in enumerate(sources, repeat)
        ]
        return [(record(), source.remarks(study.slo)) for source, record in ready]


def _prepared(
    source: Source, study: Study, profile: Json, recipe: Configuration, repeat: int, folder: Path
) -> tuple[Source, Callable[[], Path]]:
    """Return a source with all that was inferred, and what writes its run folder.

    Raises
    ------
    InputError
        If it lacks something that a run folder needs.
    """
    study.seed(repeat)
    path, requests, trace, artifacts = source.path, source.requests, source.trace, source.artifacts
    if requests is None or artifacts is None:
        raise InputError(SUMMARY_ONLY, path=path, fix=SUMMARIZE)
    if trace is None:
        problem = "the trace that was replayed is not the study's, or that is not on this machine"
        fix = f"name it with --trace, or run `kvab trace fetch` for {study.trace.name}"
        raise InputError(problem, path=path, fix=fix)
    if not metrics.streamed(requests):
        raise InputError(NOT_STREAMED, path=path)
    inferred = (*source.inferred, *_assumed(artifacts, recipe.name))
    cluster, (start, end) = profile["name"], _times(artifacts)
    depends_on: Json = {"imported": digest(artifacts.summary), "trace": trace.sha256}
    if profile["kind"] != KIND:
        job = plan_job(study, cluster, recipe.name, repeat, len(requests), trace, folder)
        depends_on = job.depends_on()
    split = read_topology(recipe).mode == "disaggregated"
    table = without_cached(requests) if split else requests

    def record() -> Path:
        runs.save_workload(trace, folder / study.name)
        return runs.record_run(
            run_path(folder, study, cluster, recipe.name, repeat),
            study,
            profile,
            recipe,
            repeat,
            trace,
            table,
            _kept(artifacts),
            seed=0,
            start=start,
            end=end,
            versions={"aiperf": artifacts.version or "unknown"},
            host={"command": artifacts.command, "router": router_counters(artifacts.folder)},
            status=source.status,
            reason=source.reason,
            depends_on=depends_on,
            inferred=[*inferred],
        )

    return replace(source, inferred=inferred), record


def is_imported(study: Study, cluster: str, folder: Path) -> bool:
    """Return whether a cluster's runs were all made elsewhere, so that none can be replayed."""
    paths = runs.find_runs(folder, study, cluster)
    return bool(paths) and all(runs.read_manifest(path).kind == KIND for path in paths)


def _profile(cluster: str) -> Json:
    """Return the cluster as run.json names it: a profile, or a place we know nothing of."""
    if not (root() / "recipes" / "clusters" / f"{cluster}.yaml").exists():
        description = f"{cluster}, runs made elsewhere and imported"
        return {"kind": KIND, "name": cluster, "description": description}
    profile = load_cluster(cluster)
    if profile.kind == "simulated":
        raise InputError(
            f"cluster {cluster}: simulated, so AIPerf cannot have run on it; choose a new name"
        )
    return profile.model_dump(mode="json")


def _assumed(artifacts: Artifacts, configuration: str) -> list[str]:
    assumed = [
        f"configuration: {configuration}, as named; its manifests are the study's of now, not "
        "what was applied",
        "order inside bursts: that of the trace's file",
    ]
    return assumed if artifacts.version else [*assumed, "AIPerf's version: unknown"]


def _times(artifacts: Artifacts) -> tuple[datetime, datetime]:
    """Return when the first request was sent and the last answer ended, in UTC."""
    assert artifacts.records is not None  # so there are single requests
    table = artifacts.records.table
    start_ns = table["start_ns"].where(table["start_ns"] > 0)
    if not start_ns.notna().any():
        expected = "records that say when a request was sent"
        raise InputError(expected=expected, got="none that does", path=artifacts.folder.name)
    end_ns = start_ns + 1e6 * table["latency_ms"].fillna(0)
    first, last = float(start_ns.min()) / 1e9, float(end_ns.max()) / 1e9
    return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC)


def _kept(artifacts: Artifacts) -> dict[str, Path]:
    """Return the run's own files among AIPerf's."""
    own = (artifacts.prefix, SERVER_METRICS, ".aiperf")
    return {
        f"artifacts/{file.name}": file
        for pattern in KEPT
        for file in artifacts.folder.glob(pattern)
        if file.is_file() and file.name.startswith(own)
        and not file.name.split(".json")[0].endswith(LEFT)
    }  # fmt: skip
