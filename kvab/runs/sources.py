"""What a user names on the command line: a run folder, or AIPerf's artifacts from anywhere.

Input: a path. Output: its requests, what is known of the run, and what had to be inferred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvab import runs
from kvab.console import number, percent
from kvab.errors import InputError
from kvab.requests import aiperf, metrics
from kvab.requests.aiperf import (
    NO_SUMMARY,
    PACKED,
    RECORDS,
    SUMMARY,
    Artifacts,
    read_artifacts,
)
from kvab.requests.archives import folder_of, holding, within
from kvab.requests.matching import LOST, by_row, from_aiperf
from kvab.study import Slo, Study
from kvab.trace import Trace, find_trace, read_trace, trace_place

PATTERNS = (SUMMARY, *(RECORDS + end for end in PACKED))
REPEATS = "profile_runs/run_*"  # of --num-profile-runs
COUNTERS = ("server", "client")
SAME_COUNTS = 0.01  # share by which the server's and AIPerf's token counts may differ in silence
NOT_STREAMED = (
    "not streamed: TTFT and ITL were not measured, so no request can be judged good or not; run "
    "AIPerf with --streaming"
)
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
    token_counts : str or None
        Whose token counts are used, the ``server``'s or the ``client``'s; None where not known.
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
    token_counts: str | None = None

    @property
    def load(self) -> str | None:
        """What paced the requests instead of a schedule or a trace, where that is known."""
        return self.artifacts.load if self.artifacts and not self.trace else None

    def summary(self, slo: Slo) -> dict[str, Any]:
        """Return the document of ``kvab summarize``; one of a partial run says so in ``status``."""
        if self.requests is None:
            assert self.artifacts is not None  # a run folder has its requests
            document = aiperf.summary_document(self.artifacts, slo)
        else:
            document = metrics.summarize(self.requests, slo, self.expected)
        if self.status == "partial":
            document |= {"status": self.status, "reason": self.reason}
        return document | {"token_counts": self.token_counts}

    def told(self, slo: Slo) -> list[str]:
        """Return what a reader must know beside the numbers, a line each."""
        notes = self.artifacts.notes if self.artifacts else ()
        lines = [*notes, *(f"inferred: {line}" for line in self.inferred)]
        if self.requests is None and self.artifacts is not None:
            lines += [f"missing: {line}" for line in aiperf.not_in_summary(self.artifacts, slo)]
        lines += [*self._other_counts(slo), *self._not_streamed(), *self._other_goodput()]
        if self.status != "complete":
            lines.append(f"{self.status}: {self.reason}; no verdict rests on it")
        return [f"{self.path}: {line}" for line in lines]

    def _other_counts(self, slo: Slo) -> list[str]:
        """Say what AIPerf's own token counts give, where the server's differ from them."""
        if self.artifacts is None or self.artifacts.records is None or self.requests is None:
            return []
        table, own, differ = self.requests, self.artifacts.records.table, []
        for kind, noun in (("input", "prompts"), ("output", "answers")):
            counts = own[[f"{who}_{kind}_tokens" for who in COUNTERS]].dropna()
            server, client = (int(counts[name].sum()) for name in counts)
            if counts.diff(axis=1).iloc[:, 1].abs().sum() > SAME_COUNTS * client:
                differ.append(f"{noun} have {server:,} tokens by the server, {client:,} by AIPerf")
        if not differ:
            return []
        said = f"token counts: {' and '.join(differ)}"
        if self.token_counts == "client":
            return [f"{said}; AIPerf's are used, as named (--token-counts server takes the others)"]
        if not differ[-1].startswith("answers"):
            return [f"{said}, as with a chat template; the server's are used"]
        theirs, here = (
            f"ITL mean {number(float(each['itl_ms'].mean()))} ms, good "
            f"{percent(float(metrics.good(each, slo).mean()))}"
            for each in (table.assign(itl_ms=table["client_itl_ms"]), table)
        )
        return [
            f"{said}; the server's are used, as it made them one by one: {here}. By AIPerf's own: "
            f"{theirs} (--token-counts client takes those)"
        ]

    def _other_goodput(self) -> list[str]:
        """Say which bounds of AIPerf's own goodput are not judged here."""
        named = aiperf.goodput(self.artifacts) if self.artifacts else {}
        other = sorted(named.keys() - {aiperf.NAMES[key] for key in ("ttft_ms", "itl_ms")})
        return [f"AIPerf's --goodput also bounds {', '.join(other)}: not judged"] if other else []

    def _not_streamed(self) -> list[str]:
        if self.requests is None or metrics.streamed(self.requests):
            return []
        return [NOT_STREAMED]


def of_run(run: runs.Run, counts: str | None = None) -> Source:
    """Return a run folder as a source.

    Raises
    ------
    InputError
        If other token counts are asked for than those it was written with.
    """
    manifest = run.manifest
    if counts and counts != manifest.token_counts:
        raise InputError(
            f"{run.path}: --token-counts {counts}: the run was written with those of "
            f"{manifest.token_counts or 'an unknown origin'}; import its artifacts/ anew"
        )
    about = [
        ("run", f"{manifest.configuration} r{manifest.repeat} on {manifest.cluster['name']}"),
        ("kind", f"{manifest.kind}, {manifest.status}"),
        ("workload", f"{manifest.trace.name}, {manifest.trace.rows:,} rows"),
    ]
    expected, status = manifest.counts.expected, manifest.status
    return Source(
        run.path, about, run.requests, expected, status, manifest.reason, run,
        token_counts=manifest.token_counts,
    )  # fmt: skip


def read_source(
    path: Path,
    study: Study,
    trace: Path | None = None,
    expected: int | None = None,
    counts: str | None = None,
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
    counts : {'server', 'client'}, optional
        Whose token counts to use, by default the server's where it reports them.

    Raises
    ------
    InputError
        If it is none of these, or more than one run.
    """
    found = read_sources(path, study, trace, expected, counts)
    if len(found) > 1:
        raise InputError(
            f"{path}: expected one run, got {len(found)} of --num-profile-runs; name the folder of "
            "one, such as profile_runs/run_0001 (`kvab compare` and `kvab import` take them all)"
        )
    return found[0]


def read_sources(
    path: Path,
    study: Study,
    trace: Path | None = None,
    expected: int | None = None,
    counts: str | None = None,
) -> list[Source]:
    """Return the run that a path names, or the repeats where AIPerf made several; as above."""
    if (path / "run.json").exists():
        if trace is not None or expected is not None:
            raise InputError(
                f"{path}: a run folder says itself what was replayed; leave --trace and --rows out"
            )
        return [of_run(runs.read_run(path), counts)]
    with folder_of(path) as folder:
        return [
            of_artifacts(name, each, study, trace, expected, counts)
            for name, each in opened_runs(path, folder)
        ]


def opened_runs(path: Path, folder: Path) -> list[tuple[Path, Path]]:
    """Return the name and the place of each run of AIPerf in an opened path, repeats in order."""
    if folder.is_file():
        return [(path, folder)]
    repeats = sorted(each for place in within(folder, path) for each in place.glob(REPEATS))
    if len({each.parent for each in repeats}) == 1:
        return [(path / each.relative_to(folder), each) for each in repeats]
    return [(path, holding(folder, PATTERNS, path))]


def of_artifacts(
    path: Path,
    place: Path,
    study: Study,
    trace: Path | None = None,
    expected: int | None = None,
    counts: str | None = None,
) -> Source:
    """Return the artifacts in an opened place as a source, called by ``path``."""
    found = read_artifacts(place)
    replayed, inferred = _trace(found, study, trace, expected)
    if replayed and found.load:
        inferred.append(f"arrivals: the trace's, though {found.load} paced the requests")
    requests = whose = None
    if found.records is not None:
        requests = from_aiperf(found, replayed, expected, counts)
        inferred += requests.attrs.pop("inferred")
        whose = requests.attrs["token_counts"]
        if found.partial == NO_SUMMARY and expected and not (requests["error"] == LOST).any():
            found = replace(found, partial=None)  # as many as were to be sent
    elif counts == "server":
        raise InputError(
            f"{path}: --token-counts server: only AIPerf's summary was kept, on its own counts"
        )
    status = "complete" if found.whole else "partial"
    sent = (len(requests) if requests is not None else found.expected) or 0
    about = [
        ("artifacts", f"{path}, AIPerf {found.version or 'of unknown version'}"),
        ("status", status if found.whole else f"{status}: {found.partial}"),
        ("workload", f"{_workload(found, replayed)}, {sent or '?'} rows"),
    ]
    total = None if requests is None else len(requests)
    return Source(
        path, about, requests, total, status, found.partial, None, found, replayed,
        tuple(inferred), whose,
    )  # fmt: skip


def _workload(found: Artifacts, trace: Trace | None) -> str:
    if trace:
        return trace.name
    return f"no trace, {found.load}" if found.load else "unknown trace"


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
        by_row(found, trace, expected)
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
    if not paired(arms):
        return [[source.requests for source in arm if source.requests is not None] for arm in arms]
    reference = next((s for s in found if _has_schedule(s)), found[0])
    return [[_on_clock(source, reference) for source in arm] for arm in arms]


def told_counts(arms: list[list[Source]]) -> list[str]:
    """Say where the runs to compare are on different token counts."""
    whose = sorted({each.token_counts for arm in arms for each in arm if each.token_counts})
    if len(whose) < 2:
        return []
    return ["token counts: the server's of some runs, AIPerf's of others, which can differ; "
            "--token-counts client takes AIPerf's of all"]  # fmt: skip


def paired(arms: list[list[Source]]) -> bool:
    """Return whether requests of one arm have partners in the other: both replayed a schedule."""
    return not any(source.load for arm in arms for source in arm)


def _aggregates_only(source: Source) -> str:
    assert source.artifacts is not None  # a run folder has its requests
    means = aiperf.summary_document(source.artifacts, Slo(ttft_ms=1, itl_ms=1))
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
