"""What a user names on the command line: a run folder, or AIPerf's artifacts from anywhere.

Input: a path. Output: its requests, what is known of the run, what had to be inferred, and by what
it is judged: bounds of a good request and margins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kvab.console import number, percent
from kvab.declarations import Json
from kvab.errors import InputError
from kvab.requests import aiperf, metrics
from kvab.requests.aiperf import Artifacts
from kvab.requests.archives import folder_of, within
from kvab.requests.matching import LOST, from_aiperf
from kvab.runs import folder as runs
from kvab.study import WITH, Slo, Study, default_study, load_study, root
from kvab.trace.finding import find_trace, read_declared, trace_path
from kvab.trace.reading import Trace

PATTERNS = (aiperf.SUMMARY, *(aiperf.RECORDS + end for end in aiperf.PACKED))
REPEATS = "profile_runs/run_*"  # of --num-profile-runs
SAME_COUNTS = 0.01  # share by which the server's and AIPerf's token counts may differ in silence
NOT_STREAMED = (
    "not streamed: TTFT and ITL were not measured, so no request can be judged good or not; run "
    "AIPerf with --streaming"
)
SUMMARY_ONLY = (
    "only AIPerf's summary was kept: pairs, intervals, verdicts and runs need profile_export.jsonl"
)
SUMMARIZE = "`kvab summarize` shows what there is"
SAME_SCHEDULE_MS = 1000.0  # two runs of one schedule issue a request within this of each other
PACKAGED = Path(__file__).parents[1] / "study" / "default.yaml"  # where there is no checkout


@dataclass(frozen=True)
class Hints:
    """What a user says of artifacts, which do not say all themselves.

    Attributes
    ----------
    study : Study
        Whose trace they are taken to have replayed, where every prompt fits it.
    trace : Path or None
        The trace that they replayed instead.
    rows : int or None
        Requests that AIPerf was to send, where its summary does not say.
    token_counts : {'server', 'client', None}
        Whose token counts to use, by default the server's where it reports them.
    """

    study: Study
    trace: Path | None = None
    rows: int | None = None
    token_counts: str | None = None


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
    status: str
    reason: str | None
    run: runs.Run | None = None
    artifacts: Artifacts | None = None
    trace: Trace | None = None
    inferred: tuple[str, ...] = ()
    token_counts: str | None = None

    @property
    def replayed(self) -> str | None:
        """Digest of the trace whose schedule was replayed, where that is known."""
        trace = self.run.manifest.trace if self.run else self.trace
        return trace.sha256 if trace else None

    @property
    def load(self) -> str | None:
        """What paced the requests instead of a schedule or a trace, where that is known."""
        return self.artifacts.load if self.artifacts and not self.trace else None

    def summary(self, slo: Slo) -> Json:
        """Return the document of ``kvab summarize``; one of a partial run says so in ``status``."""
        if self.requests is None:
            assert self.artifacts is not None  # a run folder has its requests
            document = aiperf.summary_document(self.artifacts, slo)
        else:
            document = metrics.summarize(self.requests, slo)
        if self.status == "partial":
            document |= {"status": self.status, "reason": self.reason}
        return document | {"token_counts": self.token_counts}

    def remarks(self, slo: Slo) -> list[str]:
        """Return what a reader must know beside the numbers, a line each."""
        lines, artifacts = [f"inferred: {line}" for line in self.inferred], self.artifacts
        if artifacts is not None:
            lines = artifacts.notes + lines
            if self.requests is None:
                lines += [f"missing: {line}" for line in aiperf.not_in_summary(artifacts, slo)]
        lines += self._other_counts(slo)
        if self.requests is not None and not metrics.streamed(self.requests):
            lines.append(NOT_STREAMED)
        judged = {aiperf.NAMES[key] for key in ("ttft_ms", "itl_ms")}
        if artifacts is not None and (other := sorted(artifacts.goodput.keys() - judged)):
            lines.append(f"AIPerf's --goodput also bounds {', '.join(other)}: not judged")
        if self.status != "complete":
            lines.append(f"{self.status}: {self.reason}; no verdict rests on it")
        return [f"{self.path}: {line}" for line in lines]

    def _other_counts(self, slo: Slo) -> list[str]:
        """Return what AIPerf's own token counts give, where the server's differ from them."""
        if self.artifacts is None or self.artifacts.records is None or self.requests is None:
            return []
        records, differ = self.artifacts.records.table, []
        for kind, noun in (("input", "prompts"), ("output", "answers")):
            counted = records[[f"{whose}_{kind}_tokens" for whose in ("server", "client")]].dropna()
            server, client = counted.to_numpy().T
            if np.abs(client - server).sum() > SAME_COUNTS * client.sum():
                differ.append(f"{noun} have {server.sum():,.0f} tokens by the server, "
                              f"{client.sum():,.0f} by AIPerf")  # fmt: skip
        if not differ:
            return []
        if self.token_counts == "client":
            used = "AIPerf's are used, as named (--token-counts server takes the others)"
        elif not differ[-1].startswith("answers"):
            used = "the server's are used: a chat template adds to the prompts"
        else:
            by_client = self.requests.assign(itl_ms=self.requests["client_itl_ms"])
            used = (
                "the server's are used, as it made them one by one: "
                f"{_itl_and_good(self.requests, slo)}. By AIPerf's own: "
                f"{_itl_and_good(by_client, slo)} (--token-counts client takes those)"
            )
        return [f"token counts: {' and '.join(differ)}; {used}"]


def _itl_and_good(requests: pd.DataFrame, slo: Slo) -> str:
    share = float(metrics.good(requests, slo).mean())
    return f"ITL mean {number(float(requests['itl_ms'].mean()))} ms, good {percent(share)}"


def of_run(run: runs.Run, counts: str | None = None) -> Source:
    """Return a run folder as a source.

    Raises
    ------
    InputError
        If other token counts are asked for than those it was written with.
    """
    manifest = run.manifest
    if counts and counts != manifest.token_counts:
        problem = f"the run was written with those of {manifest.token_counts or 'unknown origin'}"
        raise InputError(problem, path=run.path, key=f"--token-counts {counts}",
                         fix="import its artifacts/ anew")  # fmt: skip
    about = [
        ("run", f"{manifest.configuration} r{manifest.repeat} on {manifest.cluster['name']}"),
        ("kind", f"{manifest.kind}, {manifest.status}"),
        ("workload", f"{manifest.trace.name}, {manifest.trace.rows:,} rows"),
    ]
    return Source(run.path, about, run.requests, manifest.status, manifest.reason, run,
                  token_counts=manifest.token_counts)  # fmt: skip


def read_source(path: Path, hints: Hints) -> Source:
    """Return a run folder, a folder of AIPerf artifacts, or an archive of one.

    Raises
    ------
    InputError
        If it is none of these, or more than one run.
    """
    sources = read_sources(path, hints)
    if len(sources) > 1:
        problem = f"expected one run, got {len(sources)} of --num-profile-runs"
        raise InputError(problem, path=path, fix="name one, such as profile_runs/run_0001")
    return sources[0]


def read_sources(path: Path, hints: Hints) -> list[Source]:
    """Return the run that a path names, or the repeats where AIPerf made several; as above."""
    if (path / "run.json").exists():
        if hints.trace is not None or hints.rows is not None:
            problem = "a run folder says itself what was replayed"
            raise InputError(problem, path=path, fix="leave --trace and --rows out")
        return [of_run(runs.read_run(path), hints.token_counts)]
    with opened(path, hints) as sources:
        return sources


@contextmanager
def opened(path: Path, hints: Hints) -> Iterator[list[Source]]:
    """Yield the runs in a folder of artifacts or an archive, whose files are there meanwhile."""
    with folder_of(path) as folder:
        yield [_of_artifacts(name, run, hints) for name, run in _runs_in(folder, path)]


def _runs_in(folder: Path, path: Path) -> list[tuple[Path, Path]]:
    """Return the name and the folder of each run in an opened path, repeats in order."""
    if folder.is_file():
        return [(path, folder)]
    folders = within(folder, path)
    repeats = sorted(run for below in folders for run in below.glob(REPEATS))
    if len({run.parent for run in repeats}) == 1:
        return [(path / run.relative_to(folder), run) for run in repeats]
    holding = sorted(
        below for below in folders if any(any(below.glob(pattern)) for pattern in PATTERNS)
    )
    if len(holding) > 1 and holding[0] != folder:
        names = ", ".join(str(below.relative_to(folder)) for below in holding[:4])
        problem = f"expected the artifacts of one run, got those of {len(holding)} ({names})"
        raise InputError(problem, path=path, fix="name the folder of one, an archive unpacked")
    return [(path, holding[0] if holding else folder)]


def _of_artifacts(path: Path, folder: Path, hints: Hints) -> Source:
    """Return the artifacts in an opened folder as a source, called by ``path``."""
    artifacts = aiperf.read_artifacts(folder)
    if artifacts.records is None and hints.token_counts == "server":
        problem = "only AIPerf's summary was kept, on its own counts"
        raise InputError(problem, path=path, key="--token-counts server")
    trace, requests, inferred = _matched(artifacts, hints)
    if trace and artifacts.load:
        inferred.append(f"arrivals: the trace's, though {artifacts.load} paced the requests")
    sent, token_counts = artifacts.expected, None
    if requests is not None:
        inferred += requests.attrs.pop("inferred")
        sent, token_counts = len(requests), requests.attrs["token_counts"]
        lost = (requests["error"] == LOST).any()
        if artifacts.partial == aiperf.NO_SUMMARY and hints.rows and not lost:
            artifacts = replace(artifacts, partial=None)  # as many as were to be sent
    status, load = "partial" if artifacts.partial else "complete", artifacts.load
    workload = trace.name if trace else f"no trace, {load}" if load else "unknown trace"
    about = [
        ("artifacts", f"{path}, AIPerf {artifacts.version or 'of unknown version'}"),
        ("status", ": ".join(filter(None, (status, artifacts.partial)))),
        ("workload", f"{workload}, {sent or '?'} rows"),
    ]
    return Source(path, about, requests, status, artifacts.partial, None, artifacts, trace,
                  tuple(inferred), token_counts)  # fmt: skip


def _matched(
    artifacts: Artifacts, hints: Hints
) -> tuple[Trace | None, pd.DataFrame | None, list[str]]:
    """Return the trace that was replayed, the named one or else the study's if it fits; requests.

    The third is what was inferred.
    """
    inferred, declared, trace = [], hints.study.trace, None
    if hints.trace is not None:
        trace = find_trace(declared, hints.trace)
        if trace.sha256 != declared.sha256:
            inferred.append(f"trace: {trace.name}, which is not the study's")
    if artifacts.records is None:
        return trace, None, inferred
    if trace is None and trace_path(declared).is_file():
        trace = read_declared(declared)
        try:
            requests = from_aiperf(artifacts, trace, hints.rows, hints.token_counts)
        except InputError:
            trace, inferred = None, ["trace: none; the prompts are not those of the study's"]
        else:
            return trace, requests, [f"trace: {trace.name}, as the prompts have its lengths"]
    return trace, from_aiperf(artifacts, trace, hints.rows, hints.token_counts), inferred


def comparable(arms: list[list[Source]]) -> list[list[pd.DataFrame]]:
    """Return the requests tables of arms that may be compared, on one clock.

    Raises
    ------
    InputError
        If one is partial or has no single requests, or they are not of one workload.
    """
    sources = [source for arm in arms for source in arm]
    for source in sources:
        if source.requests is None:
            raise InputError(SUMMARY_ONLY, path=source.path, fix=SUMMARIZE)
        if source.status != "complete":
            problem = f"{source.status} ({source.reason}): no verdict can rest on it"
            raise InputError(problem, path=source.path, fix=SUMMARIZE)
    traces = {source.replayed: source.path for source in sources if source.replayed}
    if len(traces) > 1:
        replayed = ", ".join(f"{path} replayed {sha256[:8]}" for sha256, path in traces.items())
        raise InputError(f"{replayed}: expected one trace (sha256); compare runs of one workload")
    if not paired(arms):
        return [[source.requests for source in arm if source.requests is not None] for arm in arms]
    reference = next((source for source in sources if source.replayed), sources[0])
    return [[_on_clock(source, reference) for source in arm] for arm in arms]


def mixed_counts(sources: list[Source]) -> list[str]:
    """Return a line where the runs to compare are on different token counts, else none."""
    if len({source.token_counts for source in sources} - {None}) < 2:
        return []
    return ["token counts: the server's of some runs, AIPerf's of others, which can differ; "
            "--token-counts client takes AIPerf's of all"]  # fmt: skip


def paired(arms: list[list[Source]]) -> bool:
    """Return whether requests of one arm have partners in the other: both replayed a schedule."""
    return not any(source.load for arm in arms for source in arm)


def _on_clock(source: Source, reference: Source) -> pd.DataFrame:
    """Return requests with the arrivals of another run, where their own are not known."""
    table, other = source.requests, reference.requests
    assert table is not None and other is not None  # `comparable` rejects the others
    same = np.array_equal(table["row"], other["row"])
    if source.replayed or source is reference or not same:
        return table
    shift_ms = np.abs(table["arrival_ms"] - other["arrival_ms"])
    if np.percentile(shift_ms, 95) > SAME_SCHEDULE_MS:
        got = f"requests issued up to {np.percentile(shift_ms, 95):,.0f} ms (95 %) apart"
        raise InputError(expected=f"one schedule with {reference.path}", got=got, path=source.path,
                         fix="replay both with --fixed-schedule")  # fmt: skip
    return table.assign(arrival_ms=other["arrival_ms"].to_numpy())


@dataclass(frozen=True)
class Terms:
    """By what runs are judged; ``basis`` says where the bounds come from."""

    slo: Slo
    margins: Mapping[str, float]
    basis: str


def study_of(paths: Iterable[Path], named: Path | None) -> Study:
    """Return the study that paths are read by: the named one, their own, else the default.

    The default is that of the checkout, or the one packed with kvab where there is none or no
    single one.
    """
    if named:
        return load_study(named)
    for path in paths:
        if (path / "run.json").is_file():
            try:
                name, _, workload = runs.read_manifest(path).study.partition(WITH)
                own = root() / "recipes" / name / "study.yaml"
            except InputError:  # no checkout; its reader says why a manifest cannot be read
                break
            if own.is_file():
                return load_study(own).on(workload)
    try:
        return load_study(default_study())
    except InputError:
        return load_study(PACKAGED)


def terms(
    sources: list[Source], study: Study, named: bool, ttft_ms: float | None, itl_ms: float | None
) -> Terms:
    """Return by what sources are judged.

    A bound is taken from the command line, else from a study named there, else from the runs' own
    study as run.json has it, else from AIPerf's own ``--goodput``, else from ``study``.

    Raises
    ------
    InputError
        If runs were made for different bounds, or a bound is not positive.
    """
    wanted = {"ttft_ms": ttft_ms, "itl_ms": itl_ms}
    bounds = {key: _bound(sources, study, named, key, value) for key, value in wanted.items()}
    bases = {key: origin for key, (_, origin) in bounds.items()}
    basis = bases["ttft_ms"]
    if len(set(bases.values())) > 1:
        basis = f"TTFT {bases['ttft_ms']}, ITL {bases['itl_ms']}"
    own = next((s.run.manifest.margins for s in sources if s.run and s.run.manifest.margins), None)
    margins = {**study.margins, **(own if own and not named else {})}
    return Terms(Slo(**{key: value for key, (value, _) in bounds.items()}), margins, basis)


def _bound(
    sources: list[Source], study: Study, named: bool, key: str, wanted: float | None
) -> tuple[float, str]:
    if wanted is not None and not wanted > 0:
        option = key.replace("_", "-")
        raise InputError(f"--{option}: expected milliseconds above 0, got {wanted:g}")
    declared = getattr(study.slo, key)
    own = [s.run.manifest.slo for s in sources if s.run]
    theirs = [s.artifacts.goodput for s in sources if s.artifacts]
    for basis, values in (
        ("as named", [wanted]),
        (f"of the study {study.name}, as named", [declared] if named else []),
        ("of the run's own study", [getattr(slo, key, None) for slo in own]),
        ("of AIPerf's --goodput", [slos.get(aiperf.NAMES[key]) for slos in theirs]),
    ):
        known = sorted({value for value in values if value is not None})
        if len(known) > 1:
            paths = ", ".join(str(source.path) for source in sources)
            bounds = " and ".join(f"{value:g} ms" for value in known)
            raise InputError(f"made for different bounds of a good request ({bounds})", path=paths,
                             fix="name the bounds with --ttft-ms and --itl-ms")  # fmt: skip
        if known:
            return known[0], basis
    return declared, f"of the study {study.name}, by default"
