"""The whole study in one call: plan, replay what is missing, judge, build the book.

Input: a study and a cluster. Output: the headline and the path of the built HTML.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kvab.book import pages, publication
from kvab.book.bundle import unpacked
from kvab.cache import source_digest
from kvab.console import counted
from kvab.declarations import digest
from kvab.errors import GateError, InputError
from kvab.pages.clusters import load_clusters
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import Gate, gate
from kvab.pages.model_check import load_check, make_twins
from kvab.pages.outcome import headline
from kvab.runs import replay_missing as missing_runs
from kvab.runs.importing import is_imported
from kvab.runs.replay import plan_job
from kvab.runs.sweep import load_sweep
from kvab.runs.workload import save_workload
from kvab.study import Study, load_study, root
from kvab.trace import find_trace

MEASURED = ("book/published", "benchmarks/results")  # what pages show beside the runs


def report(
    study: Path,
    cluster: str,
    rows: int | None = None,
    repeats: int | None = None,
    trace: Path | None = None,
    out: Path = Path("book/_build"),
    runs: Path = Path("runs"),
    published: Path | None = None,
    on: str | None = None,
    take_over: bool = False,
) -> tuple[str, Path]:
    """Make the book of one cluster and return its headline and index.html.

    Parameters
    ----------
    study : Path
        The study file.
    cluster : str
        Name of the cluster profile.
    rows : int, optional
        Only the first rows of the trace.
    repeats : int, optional
        Only the first repeats of each configuration.
    trace : Path, optional
        Another trace, on purpose.
    out : Path
        Where the book is built; relative paths count from the checkout.
    runs : Path
        The folder of runs.
    published : Path, optional
        Build from these runs instead, without cluster, simulator or trace.
    on : str, optional
        A Kubernetes profile that replays what is missing, instead of this machine.
    take_over : bool
        Take runs from clients of somebody else that are alive.

    Raises
    ------
    GateError
        If the runs do not support a verdict; the book is built all the same and says why.
    """
    checkout = root()
    path, folder = checkout / study, checkout / (published or runs)
    declared = load_study(path)
    replays = published is None and not is_imported(declared, cluster, folder)
    if replays:
        trace = replay_missing(declared, cluster, rows, repeats, trace, folder, on, take_over)
    evidence = load_evidence(declared, cluster, folder)
    for name in (declared.baseline, declared.comparison):
        evidence.tables(name)  # no page can do without these two
    if published is None and evidence.manifest.kind == "live":
        make_twins(evidence, find_trace(declared.trace, trace), folder)
    judged = gate(evidence)
    index = pages.build(checkout / out, _book(path, evidence, judged, trace, replays))
    if not judged.green:
        raise GateError(
            f"the validity gate is red, {counted(len(judged.reasons), 'check')} failed; first: "
            f"{judged.reasons[0]}; the book says the rest: {index}"
        )
    return headline(evidence, judged), index


def _book(
    path: Path, evidence: Evidence, judged: Gate, trace: Path | None, replays: bool
) -> pages.Book:
    """Return what the book of these runs is built from, with the other clusters beside them."""
    study, folder = evidence.study, evidence.folder
    parameters = {
        "study": str(path),
        "cluster": evidence.cluster,
        "runs": str(folder),
        "rows": evidence.manifest.trace.rows,
        "trace": str(trace.resolve()) if trace else "",
    }
    check = load_check(study, evidence.cluster, folder)
    sweep = load_sweep(study, evidence.cluster, folder)
    clusters = load_clusters(study, folder)
    places = clusters.places
    for line in clusters.left_out.values():
        print(line, file=sys.stderr)
    shown = [each and each.key for each in (evidence, sweep, check, *places.values())]
    measured = [path.read_text(encoding="utf-8") for place in MEASURED
                for path in sorted((root() / place).glob("*.json"))]  # fmt: skip
    key = digest([shown, measured])
    others = {
        name: parameters | {"cluster": each.cluster, "runs": str(each.folder)}
        for name, each in places.items()
        if (each.cluster, each.folder) != (evidence.cluster, folder)
    }
    return pages.Book(
        parameters=parameters,
        others=others,
        title=evidence.study.title,
        key=key,
        replays=replays,
        files=lambda: publication.files(evidence, judged, digest([key, source_digest()])),
        configuration=lambda: publication.configuration(evidence, judged),
    )


def report_bundle(path: Path, cluster: str | None, out: Path) -> tuple[str, Path]:
    """Make the book of a bundle, of the named cluster or of the only one in it.

    Raises
    ------
    InputError
        If it is no whole bundle, or holds several clusters and not the named one.
    GateError
        As `report`.
    """
    with unpacked(path) as (folder, contents):
        held = contents.clusters
        chosen = cluster or (held[0] if len(held) == 1 else "simulated-h200")
        if chosen not in held:
            raise InputError(
                f"{path}: holds {', '.join(held)}, not {chosen}; name one of them with --cluster"
            )
        return report(folder / contents.study, chosen, out=out, published=folder / "runs")


def replay_missing(
    study: Study, cluster: str, rows: int | None, repeats: int | None, trace: Path | None,
    folder: Path, on: str | None = None, take_over: bool = False,
) -> Path:  # fmt: skip
    """Replay every run of the study that does not serve as it is; return where the trace is."""
    workload = missing_runs.workload(study, cluster, rows, repeats, trace, on)
    save_workload(workload, folder / study.name)
    jobs = [
        plan_job(study, cluster, name, repeat, rows, workload, folder)
        for name in study.configurations
        for repeat in range(1, (repeats or study.repeats) + 1)
    ]
    planned = missing_runs.plan(jobs)
    for run in planned:
        print(f"{run.configuration} r{run.repeat}: {run.state} ({run.why})", file=sys.stderr)
    missing = [job for job, run in zip(jobs, planned, strict=True) if run.state != "complete"]
    missing_runs.replay_all(missing, on=on, take_over=take_over)
    return workload.path
