"""What a user names on the command line: a run folder, or AIPerf's artifacts from anywhere.

Input: a path. Output: its requests, what is known of the run, and what had to be inferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab import metrics, runs, tidy
from kvab.aiperf import PACKED, RECORDS, SUMMARY, Artifacts, aggregates, read_artifacts, rows
from kvab.aiperf.archives import folder_of, holding
from kvab.errors import InputError
from kvab.study import Slo, Study
from kvab.trace import Trace, find_trace, read_trace, trace_place

PATTERNS = (SUMMARY, *(RECORDS + end for end in PACKED))
SAME_SCHEDULE_MS = 1000.0  # two runs of one schedule issue a request within this of each other


@dataclass(frozen=True)
class Source:
    """A run as the command line shows and compares it.

    Attributes
    ----------
    path : Path
        As the user named it.
    about : list of (str, str)
        What it is: label and value.
    requests : DataFrame or None
        The requests table; None where AIPerf's summary is all there is.
    expected : int or None
        Requests that were to be served.
    status, reason : str, str or None
        ``complete``, ``partial`` or ``failed``, and why it is not complete.
    run : Run or None
        The run folder, if it is one.
    artifacts : Artifacts or None
        AIPerf's artifacts, if it is not.
    trace : Trace or None
        The trace that the artifacts replayed, if it is known.
    inferred : list of str
        What was taken from elsewhere than the files.
    """

    path: Path
    about: list[tuple[str, str]]
    requests: pd.DataFrame | None
    expected: int | None
    status: str
    reason: str | None
    run: runs.Run | None = None
    artifacts: Artifacts | None = None
    trace: Trace | None = None
    inferred: tuple[str, ...] = ()

    def summary(self, slo: Slo) -> dict[str, Any]:
        """Return the document of ``kvab summarize``; one of a partial run says so in ``status``."""
        if self.requests is None:
            assert self.artifacts is not None  # a run folder has its requests
            document = aggregates.document(self.artifacts, slo)
        else:
            document = metrics.summarize(self.requests, slo, self.expected)
        if self.status == "partial":
            document |= {"status": self.status, "reason": self.reason}
        return document

    def told(self, slo: Slo) -> list[str]:
        """Return what a reader must know beside the numbers, a line each."""
        notes = self.artifacts.notes if self.artifacts else ()
        lines = [*notes, *(f"inferred: {line}" for line in self.inferred)]
        if self.requests is None and self.artifacts is not None:
            lines += [f"missing: {line}" for line in aggregates.missing(self.artifacts, slo)]
        if self.status != "complete":
            lines.append(f"{self.status}: {self.reason}; no verdict rests on it")
        return [f"{self.path}: {line}" for line in lines]


def of_run(run: runs.Run) -> Source:
    """Return a run folder as a source."""
    manifest = run.manifest
    about = [
        ("run", f"{manifest.configuration} r{manifest.repeat} on {manifest.cluster['name']}"),
        ("kind", f"{manifest.kind}, {manifest.status}"),
        ("workload", f"{manifest.trace.name}, {manifest.trace.rows:,} rows"),
    ]
    counts, status = manifest.counts.expected, manifest.status
    return Source(run.path, about, run.requests, counts, status, manifest.reason, run)


def read_source(
    path: Path, study: Study, trace: Path | None = None, expected: int | None = None
) -> Source:
    """Return a run folder, a folder of AIPerf artifacts, or an archive of one.

    Parameters
    ----------
    path : Path
        What the user named.
    study : Study
        Whose trace the artifacts are taken to have replayed, where every prompt fits it.
    trace : Path, optional
        The trace that the artifacts replayed instead.
    expected : int, optional
        Requests that AIPerf was to send, where its summary does not say.

    Raises
    ------
    InputError
        If it is none of these, or more than one run.
    """
    if (path / "run.json").exists():
        if trace is not None or expected is not None:
            raise InputError(
                f"{path}: a run folder says itself what was replayed; leave --trace and --rows out"
            )
        return of_run(runs.read_run(path))
    with folder_of(path) as folder:
        return of_artifacts(path, folder, study, trace, expected)


def of_artifacts(
    path: Path, folder: Path, study: Study, trace: Path | None = None, expected: int | None = None
) -> Source:
    """Return the artifacts in an opened folder as a source, called by ``path``."""
    found = read_artifacts(holding(folder, PATTERNS, path))
    replayed, inferred = _trace(found, study, trace, expected)
    requests = None
    if found.records is not None:
        requests = tidy.from_aiperf(found, replayed, expected)
        inferred += requests.attrs.pop("inferred")
    status = "complete" if found.whole else "partial"
    sent = (len(requests) if requests is not None else found.expected) or 0
    about = [
        ("artifacts", f"{path}, AIPerf {found.version or 'of unknown version'}"),
        ("status", status if found.whole else f"{status}: {found.partial}"),
        ("workload", f"{replayed.name if replayed else 'unknown trace'}, {sent or '?'} rows"),
    ]
    total = None if requests is None else len(requests)
    return Source(
        path, about, requests, total, status, found.partial, None, found, replayed, tuple(inferred)
    )


def _trace(
    found: Artifacts, study: Study, path: Path | None, expected: int | None
) -> tuple[Trace | None, list[str]]:
    """Return the trace that artifacts replayed: the named one, else the study's if it fits."""
    if path is not None:
        trace = find_trace(study.trace, path)
        own = trace.sha256 == study.trace.sha256
        return trace, [] if own else [f"trace: {trace.name}, which is not the study's"]
    declared = study.trace
    place = trace_place(declared)
    if found.records is None or not place.is_file():
        return None, []
    trace = read_trace(
        place, name=declared.name, block_tokens=declared.block_tokens, sha256=declared.sha256
    )
    try:
        rows.by_row(found, trace, expected)
    except InputError:
        return None, ["trace: none; the prompts are not those of the study's"]
    return trace, [f"trace: {trace.name}, as the prompts have its lengths"]


def comparable(arms: list[list[Source]]) -> list[list[pd.DataFrame]]:
    """Return the requests tables of arms that may be compared, on one clock.

    Raises
    ------
    InputError
        If one is partial or has no single requests, or they are not of one workload.
    """
    found = [source for arm in arms for source in arm]
    for source in found:
        if source.requests is None:
            raise InputError(f"{source.path}: {_aggregates_only(source)}")
        if source.status != "complete":
            raise InputError(
                f"{source.path}: {source.status} ({source.reason}): no verdict can rest on it; "
                "`kvab summarize` shows what came"
            )
    if folders := [source.run for source in found if source.run]:
        runs.check_comparable(folders)
    _check_traces(found)
    reference = next((s for s in found if _has_schedule(s)), found[0])
    return [[_on_clock(source, reference) for source in arm] for arm in arms]


def _aggregates_only(source: Source) -> str:
    assert source.artifacts is not None  # a run folder has its requests
    means = aggregates.document(source.artifacts, Slo(ttft_ms=1, itl_ms=1))
    known = [
        f"mean {metrics.METRICS[key].short} {means[key]['mean']:,.1f} ms"
        for key in metrics.LATENCIES
        if means[key]["mean"] is not None
    ]
    return (
        f"only AIPerf's summary was kept: it says {', '.join(known) or 'no latency'}; pairs, "
        "intervals and a verdict need profile_export.jsonl"
    )


def _check_traces(found: list[Source]) -> None:
    known = {}
    for source in found:
        if source.run:
            known[source.run.manifest.trace.sha256] = source.path
        elif source.trace:
            known[source.trace.sha256] = source.path
    if len(known) > 1:
        said = ", ".join(f"{path} replayed {sha256[:8]}" for sha256, path in known.items())
        raise InputError(f"{said}: expected one trace (sha256); compare runs of one workload")


def _has_schedule(source: Source) -> bool:
    return source.run is not None or source.trace is not None


def _on_clock(source: Source, reference: Source) -> pd.DataFrame:
    """Return requests with the arrivals of another run, where their own are not known."""
    table, other = source.requests, reference.requests
    assert table is not None and other is not None  # `comparable` refuses the others
    same = np.array_equal(table["row"], other["row"])
    if _has_schedule(source) or source is reference or not same:
        return table
    shift_ms = np.abs(table["arrival_ms"] - other["arrival_ms"])
    if np.percentile(shift_ms, 95) > SAME_SCHEDULE_MS:
        raise InputError(
            f"{source.path}: its requests were not issued when those of {reference.path} were "
            f"(95 % within {np.percentile(shift_ms, 95):,.0f} ms): expected one schedule; replay "
            "both with --fixed-schedule"
        )
    return table.assign(arrival_ms=other["arrival_ms"].to_numpy())
