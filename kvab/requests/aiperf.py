"""A folder of AIPerf's artifacts, of versions 0.6 to 0.13, as one object.

Input: the folder that ``aiperf profile`` wrote. Output: its records, what its summary says of the
run, and why it is only part of a run, where it is. Records are read line by line, of bounded
memory, and only the wanted fields are decoded: the long list of chunk times is passed over.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from kvab.console import mask
from kvab.declarations import Json
from kvab.errors import InputError
from kvab.requests.metrics import OVERLOAD, SCHEMA, STATISTICS, Slo
from kvab.study.manifests import at

FIX = "name a folder that `aiperf profile` wrote"
LONGEST_LINE = 256 << 20  # bytes; the longest answers make lines of a few MB
CHUNKS = b'"inter_chunk_latency":{"value":['
BUFFER_BYTES = 1 << 18
ERROR_CHARACTERS = 300
TO_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "us": 1e-3, "ns": 1e-6}
REMOVE = f"remove the line, or {FIX}"
SESSION = "session_"  # AIPerf numbers the conversations of a seeded run by their row


Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Value(msgspec.Struct, gc=False):
    value: float | None = None


class _Time(msgspec.Struct, gc=False):
    """A time, in ms once it is read."""

    value: float | None = None
    unit: str = "ms"

    def __post_init__(self) -> None:
        if self.unit == "ms":
            return
        if self.unit not in TO_MS:
            raise ValueError(f"expected a unit of {', '.join(TO_MS)}, got {self.unit!r}")
        if self.value is not None:
            self.value *= TO_MS[self.unit]


class _Metadata(msgspec.Struct, gc=False):
    session_num: Int64 = -1
    conversation_id: str | None = None
    turn_index: Int64 | None = None
    credit_issued_ns: Int64 | None = None
    request_start_ns: Int64 = 0
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False


class _Metrics(msgspec.Struct, gc=False):
    """The columns of the table that are measured, by AIPerf's names."""

    ttft_ms: _Time | None = msgspec.field(default=None, name="time_to_first_token")
    latency_ms: _Time | None = msgspec.field(default=None, name="request_latency")
    client_itl_ms: _Time | None = msgspec.field(default=None, name="inter_token_latency")
    client_input_tokens: _Value | None = msgspec.field(default=None, name="input_sequence_length")
    client_output_tokens: _Value | None = msgspec.field(default=None, name="output_sequence_length")
    server_input_tokens: _Value | None = msgspec.field(default=None, name="usage_prompt_tokens")
    server_output_tokens: _Value | None = msgspec.field(
        default=None, name="usage_completion_tokens"
    )
    cached_tokens: _Value | None = msgspec.field(
        default=None, name="usage_prompt_cache_read_tokens"
    )


class _Error(msgspec.Struct, gc=False):
    code: int | None = None
    type: str | None = None
    message: str | None = None


class _Record(msgspec.Struct, gc=False):
    metadata: _Metadata
    metrics: _Metrics = msgspec.field(default_factory=_Metrics)
    error: _Error | str | None = None


NUMBERS = ("session", "conversation", "turn", "issued_ns", "start_ns")
MEASURED = _Metrics.__struct_fields__


@dataclass(frozen=True)
class Records:
    """What a records file holds.

    Attributes
    ----------
    table : DataFrame
        One row a request: ``session`` (order of sending), ``conversation`` (its number, -1 where
        it has none), ``turn``, ``issued_ns`` (0 where unknown) and ``start_ns`` int64; ``ttft_ms``,
        ``latency_ms``, ``client_itl_ms`` and the token counts ``client_input_tokens``,
        ``client_output_tokens``, ``server_input_tokens``, ``server_output_tokens``,
        ``cached_tokens`` float64, NaN where the record has none; ``error`` text, None if served.
    warmup : int
        Records of the warm-up, left out.
    cut_off : bool
        Whether the file ends inside a record, which is left out.
    """

    table: pd.DataFrame
    warmup: int
    cut_off: bool


def read_records(path: Path) -> Records:
    """Return the records of a file of JSON lines, plain, ``.gz``, ``.bz2`` or ``.zst``.

    Raises
    ------
    InputError
        If the file cannot be read or is empty, or a line is not a record of AIPerf; the line is
        named.
    """
    numbers, measured = array("q"), array("d")  # row after row
    errors: list[str | None] = []
    decode, warmup, cut_off = msgspec.json.Decoder(_Record).decode, 0, False
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = decode(_without_chunks(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not line.strip():
                continue
            if not line.endswith(b"\n") and not isinstance(error, msgspec.ValidationError):
                cut_off = True
                break
            record = _odd_record(path, number, line)
        of = record.metadata
        if of.benchmark_phase != "profiling":
            warmup += 1
            continue
        numbers.extend((
            of.session_num, _conversation(of.conversation_id), of.turn_index or 0,
            of.credit_issued_ns or 0, of.request_start_ns,
        ))  # fmt: skip
        metrics = msgspec.structs.astuple(record.metrics)
        measured.extend([np.nan if m is None or m.value is None else m.value for m in metrics])
        errors.append(_error_text(record))
    if not errors:
        raise InputError("expected a record a line, got none; the run sent no request", path=path)
    table = pd.DataFrame(np.asarray(numbers).reshape(-1, len(NUMBERS)), columns=NUMBERS)
    table[[*MEASURED]] = np.asarray(measured).reshape(-1, len(MEASURED))
    table["error"] = pd.Series(errors, dtype=object)
    return Records(table, warmup, cut_off)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed as its name says."""
    try:
        with pa.input_stream(path) as stream:
            lines = io.BufferedReader(stream, buffer_size=BUFFER_BYTES)
            while line := lines.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise InputError(f"a line is longer than {LONGEST_LINE >> 20} MiB", path=path)
                yield line
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"expected a file that can be read, got {reason}", path=path, fix="copy it again"
        ) from None


def _without_chunks(line: bytes) -> bytes:
    """Return a record as AIPerf writes it without its chunk times, most of its length."""
    start = line.find(CHUNKS)
    end = line.find(b"]", start)
    return line[: start + len(CHUNKS)] + line[end:] if 0 <= start < end else line


def _odd_record(path: Path, number: int, line: bytes) -> _Record:
    """Return the record of a line that is not strict JSON: NaN and Infinity become undefined."""
    try:
        content = json.loads(line, parse_constant=lambda name: None)
        return msgspec.convert(content, _Record)
    except (ValueError, RecursionError) as error:  # also what msgspec raises
        start = line.strip()[:40].decode(errors="replace")
        raise InputError(expected="a record of AIPerf", got=f"{start!r} ({error})", path=path,
                         line=number, fix=REMOVE) from None  # fmt: skip


def _conversation(name: str | None) -> int:
    """Return the number of a conversation named as AIPerf names those of a seeded run, else -1."""
    digits = name[len(SESSION) :] if name and name.startswith(SESSION) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 19 else -1


def _error_text(record: _Record) -> str | None:
    """Return why a request was not served, on one line; None if it was."""
    error = record.error
    if error is None:
        return "cancelled" if record.metadata.was_cancelled else None
    if isinstance(error, _Error):
        error = " ".join(str(part) for part in (error.code, error.type, error.message) if part)
    return " ".join(error.split())[:ERROR_CHARACTERS] or "an error without a text"


# --- the folder --------------------------------------------------------------------------------

RECORDS = "profile_export.jsonl"
PACKED = ("", ".gz", ".zst", ".bz2")
SUMMARY = "profile_export_aiperf.json"
SERVER_METRICS = "server_metrics_export.json"
READY = ".aiperf_results_ready.json"
PROCESSING = ".aiperf_results_processing.json"
# Beside the records AIPerf writes these, whose names end like theirs.
OTHERS = ("_raw", "_telemetry_export", "_metrics_export", "_latency", "_timeslices", "inputs",
          "outputs")  # fmt: skip
LARGEST_SUMMARY = 16 << 20  # bytes
LARGEST = 1e300  # beyond it a product may overflow
SCHEDULE = "fixed_schedule"
NAMES = {
    "ttft_ms": "time_to_first_token",
    "itl_ms": "inter_token_latency",
    "latency_ms": "request_latency",
}
NO_SUMMARY = "no summary of AIPerf beside the records: whether the run ended is not known"
ONE_RUN = "put each run in its own folder"
COPY = "copy it again"


@dataclass(frozen=True)
class Artifacts:
    """What AIPerf left of one run.

    Attributes
    ----------
    folder : Path
        Where it lies.
    records : Records or None
        The requests; None where only the summary was kept.
    summary : dict
        ``profile_export_aiperf.json`` as it is; empty where it is missing.
    partial : str or None
        Why the run is not whole; None if it is.
    prefix : str
        How the names of this run's files begin, where one of them was named.
    """

    folder: Path
    records: Records | None
    summary: Json
    partial: str | None = None
    prefix: str = ""

    @property
    def version(self) -> str | None:
        """AIPerf's version, where the summary names it."""
        version = self.summary.get("aiperf_version")
        return None if version is None else str(version)

    @property
    def command(self) -> str | None:
        """AIPerf's command line without its secrets, where the summary has it."""
        places = ("run_info.cli_command", "input_config.cli_command")
        command = next(filter(None, (at(self.summary, place) for place in places)), None)
        return mask(command) if isinstance(command, str) else None

    @property
    def expected(self) -> int | None:
        """Requests that the run was to send, where the summary says so: since 0.9."""
        counts = [phase.get("requests") for phase in self._phases()]
        count = counts[0] if len(counts) == 1 else None
        return count if type(count) is int and count > 0 else None

    @property
    def load(self) -> str | None:
        """What paced the requests, such as ``concurrency 4``; None for a schedule or if unknown."""
        for phase in self._phases():
            pace = phase.get("rate") if "rate" in phase else phase.get("concurrency")
            text = f"{phase.get('type')} {pace or ''}".strip().removesuffix(".0")
            return None if phase.get("type") == SCHEDULE else text
        older = at(self.summary, "input_config.input")  # to 0.8
        return "no schedule" if isinstance(older, dict) and not older.get(SCHEDULE) else None

    @property
    def goodput(self) -> dict[str, float]:
        """AIPerf's own bounds of a good request: since 0.9 under slos, before in input."""
        places = ("input_config.slos", "input_config.input.goodput")
        bounds = next(filter(None, (_mapping(at(self.summary, place)) for place in places)), {})
        known = {name: _number(value) for name, value in bounds.items()}
        return {name: value for name, value in known.items() if value is not None and value > 0}

    @property
    def notes(self) -> list[str]:
        """What was left out, a sentence each."""
        if self.records is None:
            return []
        warmup = f"{self.records.warmup} requests of the warm-up are left out"
        cut_off = "the records file ends inside a record, which is left out"
        return [cut_off] * self.records.cut_off + [warmup] * bool(self.records.warmup)

    def _phases(self) -> list[Json]:
        phases = at(self.summary, "input_config.phases")
        phases = phases if isinstance(phases, list) else []
        return [p for p in phases if isinstance(p, dict) and p.get("name") != "warmup"]


def read_artifacts(path: Path) -> Artifacts:
    """Return the artifacts in a folder, or those that one file of them belongs to.

    Raises
    ------
    InputError
        If there are none or those of several runs, or a file is not AIPerf's.
    """
    folder, prefix = Path(path), ""
    if not folder.exists():
        got = "nothing of that name"
        raise InputError(expected="AIPerf artifacts", got=got, path=folder, fix=FIX)
    if folder.is_file():
        folder, prefix = folder.parent, _prefix(folder)
    summary_file = _only(folder, prefix, _summaries(folder), "summary")
    records_file = _only(folder, prefix, _record_files(folder), "records file")
    if summary_file is None and records_file is None:
        names = sorted(file.name for file in folder.iterdir())[:5]
        raise InputError(expected=f"a run's run.json, or AIPerf's {RECORDS} or {SUMMARY}",
                         got=", ".join(names) or "an empty folder", path=path, fix=FIX)  # fmt: skip
    summary = _read_json(summary_file) if summary_file else {}
    records = read_records(records_file) if records_file else None
    _check_same_run(folder, summary, records)
    return Artifacts(folder, records, summary, _why_partial(folder, summary, records), prefix)


def _prefix(path: Path) -> str:
    return path.name.split(".json")[0].removesuffix("_aiperf")


def _summaries(folder: Path) -> list[Path]:
    """Return the files that are summaries by their name, or by their content."""
    return [
        path
        for path in folder.glob("*.json")
        if path.name == SUMMARY
        or (
            not _is_other(path)
            and path.stat().st_size <= LARGEST_SUMMARY
            and "aiperf_version" in _read_json(path)
        )
    ]


def _record_files(folder: Path) -> list[Path]:
    files = [path for end in PACKED for path in folder.glob(f"*.jsonl{end}")]
    return sorted(path for path in files if not _is_other(path))


def _is_other(path: Path) -> bool:
    return path.name.startswith(".") or path.name.split(".json")[0].endswith(OTHERS)


def _only(folder: Path, prefix: str, files: list[Path], what: str) -> Path | None:
    """Return the one file of a kind, of the run with this prefix where one is named."""
    files = [path for path in files if not prefix or _prefix(path) == prefix]
    if len(files) > 1:
        names = ", ".join(sorted(path.name for path in files))
        raise InputError(path=folder, expected=f"the {what} of one run", got=names, fix=ONE_RUN)
    return files[0] if files else None


def _read_json(path: Path) -> Json:
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path=path, expected="JSON", got=str(error), fix=COPY) from None


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    """Return a number that can be reckoned with; None if it is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None


def _check_same_run(folder: Path, summary: Json, records: Records | None) -> None:
    """Reject a summary that counts other requests than the records beside it."""
    counted = at(summary, "request_count.avg")
    if records is None or counted is None or records.cut_off or summary.get("was_cancelled"):
        return
    served = int(records.table["error"].isna().sum())
    if counted != served:
        counts = f"{repr(counted).removesuffix('.0'):.40} served requests, the records {served}"
        problem = f"the summary counts {counts}: they are of different runs"
        raise InputError(problem, path=folder, fix=ONE_RUN)


def _why_partial(folder: Path, summary: Json, records: Records | None) -> str | None:
    marker = _read_json(folder / READY) if (folder / READY).is_file() else {}
    if summary.get("was_cancelled") or marker.get("was_cancelled"):
        return "the run was cancelled"
    if (folder / PROCESSING).exists():
        return "AIPerf had not finished writing its results"
    if records is not None and records.cut_off:
        return "the records file is cut off"
    if not summary:
        return NO_SUMMARY
    if summary.get("is_complete") is False:
        return "AIPerf calls the run incomplete"
    return "AIPerf failed to write some of its results" if marker.get("partial") else None


# --- what a summary without records says -------------------------------------------------------


def summary_document(artifacts: Artifacts, slo: Slo) -> Json:
    """Return what a summary says, in the shape of `kvab.requests.metrics.summarize`.

    What aggregates do not tell is None.
    """
    summary = artifacts.summary

    def value(name: str) -> float | None:
        return _number(at(summary, f"{name}.avg"))

    def count(name: str) -> int | None:
        number = value(name)
        return None if number is None else round(number)

    served, failed = count("request_count"), count("error_request_count") or 0
    expected = artifacts.expected or (None if served is None else served + failed)
    seconds, tokens = value("benchmark_duration"), value("total_osl")
    same = artifacts.goodput == {NAMES["ttft_ms"]: slo.ttft_ms, NAMES["itl_ms"]: slo.itl_ms}
    good = count("good_request_count") if same else None
    cached = value("total_usage_prompt_cache_read_tokens")
    prompt = value("total_usage_prompt_tokens")
    return {
        "schema": SCHEMA,
        "requests": {
            "expected": expected,
            "received": served,
            "errors": failed,
            "overload": _overload(summary) if failed else 0,
            "one_token": None,
        },
        **{key: _statistics(_mapping(summary.get(name))) for key, name in NAMES.items()},
        "good": {
            "count": good,
            "share": good / expected if good is not None and expected else None,
            "rps": good / seconds if good is not None and seconds else None,
            "ttft_ms": float(slo.ttft_ms),
            "itl_ms": float(slo.itl_ms),
        },
        "output_tokens_per_s": tokens / seconds if tokens is not None and seconds else None,
        "duration_s": seconds,
        "cached_share": cached / prompt if cached is not None and prompt else None,
    }


def not_in_summary(artifacts: Artifacts, slo: Slo) -> list[str]:
    """Return what a summary without records does not tell, a sentence each."""
    lines = [
        "single requests: the folder holds AIPerf's summary only, so no pairs and no intervals",
        "one-token answers: a summary does not count them",
        "inter-token latency: on AIPerf's own token counts",
    ]
    if summary_document(artifacts, slo)["good"]["count"] is None:
        bounds = ", ".join(f"{name} {value:g}" for name, value in artifacts.goodput.items())
        lines.append(
            f"good requests: the bounds are {slo.ttft_ms:g} and {slo.itl_ms:g} ms, the run's "
            f"--goodput was {bounds or 'none'}"
        )
    return lines


def _overload(summary: Json) -> int | None:
    """Return how many requests were rejected for overload, None where the errors do not say."""
    try:
        kinds = summary["error_summary"]
        return sum(kind["count"] for kind in kinds if kind["error_details"]["code"] in OVERLOAD)
    except (KeyError, TypeError):
        return None


def _statistics(entry: Json) -> dict[str, float | None]:
    factor = TO_MS.get(str(entry.get("unit", "ms")))
    if factor is None:
        return dict.fromkeys(STATISTICS)
    values = {name: _number(entry.get("avg" if name == "mean" else name)) for name in STATISTICS}
    return {name: None if value is None else factor * value for name, value in values.items()}


# --- what else is in the folder ----------------------------------------------------------------


def server_series(folder: Path, metric: str, **labels: str) -> list[dict[str, float]]:
    """Return the statistics of each of a server metric's series that has these labels."""
    path = folder / SERVER_METRICS
    metrics = at(_read_json(path), "metrics") if path.is_file() else None
    series = _mapping(metrics).get(metric, {}).get("series", [])
    return [one["stats"] for one in series if labels.items() <= one.get("labels", {}).items()]


def router_counters(folder: Path) -> dict[str, int]:
    """Return what Dynamo's KV router counted during the replay; empty behind another router.

    ``cached_prefix_tokens``: prompt tokens that the chosen workers held already, summed over
    requests. ``kv_events``: blocks that workers reported as stored. Both are read from the
    frontend's metrics as AIPerf exports them (``server_metrics_export.json``).

    Raises
    ------
    InputError
        If the file is not as AIPerf exports it.
    """

    def total(name: str, **labels: str) -> int:
        series = server_series(folder, f"dynamo_component_{name}", **labels)
        return round(sum(stats.get("total", 0) for stats in series))

    try:
        if not total("kv_cache_events_applied"):
            return {}
        prefill = total("router_kv_selected_cached_prefix_tokens", phase="prefill")
        return {
            "cached_prefix_tokens": prefill or total("router_kv_selected_cached_prefix_tokens"),
            "kv_events": total("kv_cache_events_applied", event_type="stored", status="ok"),
        }
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise InputError("expected series of numbers, got others",
                         path=folder / SERVER_METRICS, fix=COPY) from None  # fmt: skip
