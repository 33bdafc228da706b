"""A folder of AIPerf's artifacts, of versions 0.6 to 0.13, as one object.

Input: the folder that ``aiperf profile`` wrote. Output: its records, what its summary says of the
run, and why it is only part of a run, where it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from kvab.console import mask
from kvab.errors import InputError
from kvab.requests.metrics import OVERLOAD, SCHEMA, STATISTICS, Slo
from kvab.requests.records import TO_MS, Records, read_records

RECORDS = "profile_export.jsonl"
SUMMARY = "profile_export_aiperf.json"
SERVER_METRICS = "server_metrics_export.json"
READY = ".aiperf_results_ready.json"
NO_SUMMARY = "no summary of AIPerf beside the records: whether the run ended is not known"
PROCESSING = ".aiperf_results_processing.json"
LARGEST_SUMMARY = 16 << 20  # bytes
PACKED = ("", ".gz", ".zst", ".bz2")
# Beside the records AIPerf writes these, whose names end like theirs.
OTHERS = (
    "_raw",
    "_telemetry_export",
    "_metrics_export",
    "_latency",
    "_timeslices",
    "inputs",
    "outputs",
)
SCHEDULE = "fixed_schedule"
FIX = "name a folder that `aiperf profile` wrote"


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
    version, command : str or None
        AIPerf's version and its command line, where the summary names them.
    expected : int or None
        Requests that the run was to send, where the summary says so.
    partial : str or None
        Why the run is not whole; None if it is.
    notes : tuple of str
        What was left out, a sentence each.
    load : str or None
        What paced the requests, such as ``concurrency 4``; None for a schedule, or where unknown.
    prefix : str
        How the names of this run's files begin, where one of them was named.
    """

    folder: Path
    records: Records | None
    summary: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    command: str | None = None
    expected: int | None = None
    partial: str | None = None
    notes: tuple[str, ...] = ()
    load: str | None = None
    prefix: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing says that this is only part of a run."""
        return self.partial is None


def read_artifacts(place: Path) -> Artifacts:
    """Return the artifacts in a folder, or those that one file of them belongs to.

    Raises
    ------
    InputError
        If there are none or those of several runs, or a file is not AIPerf's.
    """
    folder, prefix = Path(place), ""
    if not folder.exists():
        raise InputError(f"{folder}: expected AIPerf artifacts, got nothing of that name; {FIX}")
    check_tool(folder)
    if folder.is_file():
        folder, prefix = folder.parent, _prefix(folder)
    summary_file = _only(folder, _of(prefix, _summaries(folder)), "summary")
    records_file = _only(folder, _of(prefix, _record_files(folder)), "records file")
    if summary_file is None and records_file is None:
        names = sorted(path.name for path in folder.iterdir())[:5]
        raise InputError(
            f"{place}: expected a run's run.json, or AIPerf's {RECORDS} or {SUMMARY}, got "
            f"{', '.join(names) or 'an empty folder'}; {FIX}"
        )
    summary = _read_json(summary_file) if summary_file else {}
    records = read_records(records_file) if records_file else None
    _check_same_run(folder, summary, records)
    config = _mapping(summary.get("input_config"))
    command = _mapping(summary.get("run_info")).get("cli_command") or config.get("cli_command")
    return Artifacts(
        folder,
        records,
        summary,
        version=summary.get("aiperf_version"),
        command=mask(command) if isinstance(command, str) else None,
        expected=_expected(config),
        partial=_why_partial(folder, summary, records),
        notes=_notes(records),
        load=_load(config),
        prefix=prefix,
    )


def _prefix(path: Path) -> str:
    return path.name.split(".json")[0].removesuffix("_aiperf")


def _of(prefix: str, found: list[Path]) -> list[Path]:
    """Return the files of one run, where its prefix is known."""
    return [path for path in found if not prefix or _prefix(path) == prefix]


def _summaries(folder: Path) -> list[Path]:
    """Return the files that are summaries by their content, whatever their prefix."""
    places = [path for path in folder.glob("*.json") if not path.name.startswith(".")]
    named = [path for path in places if path.name == SUMMARY]
    if named and len(places) == 1:
        return named
    odd = [
        path
        for path in places
        if path not in named and not _is_other(path) and path.stat().st_size <= LARGEST_SUMMARY
    ]
    return named + [path for path in odd if "request_latency" in _read_json(path)]


def _record_files(folder: Path) -> list[Path]:
    found = [path for end in PACKED for path in folder.glob(f"*.jsonl{end}")]
    return sorted(path for path in found if not _is_other(path))


def _is_other(path: Path) -> bool:
    stem = path.name.split(".json")[0]
    return path.name.startswith(".") or stem.endswith(OTHERS)


def _only(folder: Path, found: list[Path], what: str) -> Path | None:
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise InputError(
            f"{folder}: expected the {what} of one run, got {names}; put each run in its own folder"
        )
    return found[0] if found else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got {error}; copy it again") from None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _expected(config: dict[str, Any]) -> int | None:
    """Return how many requests the configuration in a summary asks for, since 0.9."""
    phases = config.get("phases")
    counts = [
        phase.get("requests")
        for phase in (phases if isinstance(phases, list) else [])
        if isinstance(phase, dict) and phase.get("name") != "warmup"
    ]
    return counts[0] if len(counts) == 1 and type(counts[0]) is int and counts[0] > 0 else None


def _load(config: dict[str, Any]) -> str | None:
    """Return what paced the requests, unless it was a schedule: since 0.9 under phases."""
    phases = config.get("phases")
    for phase in phases if isinstance(phases, list) else []:
        if isinstance(phase, dict) and phase.get("name") != "warmup":
            kind = str(phase.get("type"))
            pace = phase.get("rate") if "rate" in phase else phase.get("concurrency")
            return None if kind == SCHEDULE else f"{kind} {pace or ''}".strip().removesuffix(".0")
    older = config.get("input")
    return "no schedule" if isinstance(older, dict) and not older.get(SCHEDULE) else None


def _check_same_run(folder: Path, summary: dict[str, Any], records: Records | None) -> None:
    """Refuse a summary that counts other requests than the records beside it."""
    counted = _mapping(summary.get("request_count")).get("avg")
    if records is None or counted is None or records.cut_off or summary.get("was_cancelled"):
        return
    served = int(records.table["error"].isna().sum())
    if counted != served:
        told = repr(counted).removesuffix(".0")[:40]
        raise InputError(
            f"{folder}: the summary counts {told} served requests, the records {served}: "
            "they are of different runs; put each run in its own folder"
        )


def _why_partial(folder: Path, summary: dict[str, Any], records: Records | None) -> str | None:
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
    if marker.get("partial"):
        failed = ", ".join(map(str, marker.get("failed_exporters") or ())) or "some"
        return f"AIPerf failed to write some of its results ({failed})"
    return None


def _notes(records: Records | None) -> tuple[str, ...]:
    if records is None:
        return ()
    notes = []
    if records.cut_off:
        notes.append("the records file ends inside a record, which is left out")
    if records.warmup:
        notes.append(f"{records.warmup} requests of the warm-up are left out")
    return tuple(notes)


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
    path = folder / SERVER_METRICS
    metrics = _mapping(_read_json(path).get("metrics")) if path.is_file() else {}

    def total(name: str, **labels: str) -> int:
        found = metrics.get(f"dynamo_component_{name}", {}).get("series", [])
        fitting = (s for s in found if labels.items() <= s.get("labels", {}).items())
        return round(sum(each["stats"].get("total", 0) for each in fitting))

    try:
        if not total("kv_cache_events_applied"):
            return {}
        prefill = total("router_kv_selected_cached_prefix_tokens", phase="prefill")
        return {
            "cached_prefix_tokens": prefill or total("router_kv_selected_cached_prefix_tokens"),
            "kv_events": total("kv_cache_events_applied", event_type="stored", status="ok"),
        }
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise InputError(f"{path}: expected series of numbers, got others; copy it again") from None


# What a tool's files hold that no others do; vLLM and SGLang write their means at a file's end.
MARKS = {
    "SGLang's bench_serving": (b'"total_output_tokens_retokenized"', b'"sglang'),
    "vLLM's `vllm bench serve`": (b'"median_ttft_ms"',),
    "GuideLLM": (b'"guidellm_version"', b'"generative_benchmark"'),
    "inference-perf": (b'"load_summary"', b'"output_token_times"'),
    "genai-perf": (b'"service_kind"',),
}
OURS = (b'"benchmark_phase"', b'"aiperf_version"')
MOST_FILES, HEAD_BYTES, TAIL_BYTES = 200, 1 << 20, 1 << 16


def check_tool(place: Path) -> None:
    """Reject a file or folder of another tool than AIPerf.

    Raises
    ------
    InputError
        Naming the tool.
    """
    if not place.is_dir():
        files = [place]
    else:
        depths = ("*", "*/*", "*/*/*")
        files = [path for depth in depths for path in sorted(place.glob(f"{depth}.json*"))]
    found = None
    for path in (each for each in files[:MOST_FILES] if each.is_file()):
        content = _ends(path)
        if any(mark in content for mark in OURS):
            return
        tools = (tool for tool, marks in MARKS.items() if any(mark in content for mark in marks))
        found = found or next(tools, None)
    if found:
        raise InputError(
            f"{place}: expected AIPerf's artifacts, got results of {found}, whose requests are "
            "measured and counted otherwise; benchmark the same server with `aiperf profile`"
        )


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(file.tell(), path.stat().st_size - TAIL_BYTES))
            return head + file.read(TAIL_BYTES)
    except OSError:
        return b""


LARGEST = 1e300  # beyond it a product may overflow
NAMES = {
    "ttft_ms": "time_to_first_token",
    "itl_ms": "inter_token_latency",
    "latency_ms": "request_latency",
}


def summary_document(artifacts: Artifacts, slo: Slo) -> dict[str, Any]:
    """Return what a summary says, in the shape of `kvab.requests.metrics.summarize`."""
    served, failed = _count(artifacts, "request_count"), _count(artifacts, "error_request_count")
    failed = failed or 0
    expected = artifacts.expected or (None if served is None else served + failed)
    seconds, tokens = _value(artifacts, "benchmark_duration"), _value(artifacts, "total_osl")
    same = goodput(artifacts) == {
        "time_to_first_token": slo.ttft_ms,
        "inter_token_latency": slo.itl_ms,
    }
    good = _count(artifacts, "good_request_count") if same else None
    cached = _value(artifacts, "total_usage_prompt_cache_read_tokens")
    prompt = _value(artifacts, "total_usage_prompt_tokens")
    return {
        "schema": SCHEMA,
        "requests": {
            "expected": expected,
            "received": served,
            "errors": failed,
            "overload": _overload(artifacts) if failed else 0,
            "one_token": None,
        },
        **{key: _statistics(artifacts, name) for key, name in NAMES.items()},
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
    told = ["single requests: the folder holds AIPerf's summary only, so no pairs and no intervals"]
    told.append("one-token answers: a summary does not count them")
    told.append("inter-token latency: on AIPerf's own token counts")
    if summary_document(artifacts, slo)["good"]["count"] is None:
        found = goodput(artifacts)
        bounds = ", ".join(f"{name} {value:g}" for name, value in found.items()) or "none"
        told.append(
            f"good requests: the bounds are {slo.ttft_ms:g} and {slo.itl_ms:g} ms, the run's "
            f"--goodput was {bounds}"
        )
    return told


def _overload(artifacts: Artifacts) -> int | None:
    """Return how many requests were rejected for overload, None where no error is told."""
    told: Any = artifacts.summary.get("error_summary")
    try:
        return sum(each["count"] for each in told if each["error_details"]["code"] in OVERLOAD)
    except (KeyError, TypeError):
        return None


def _entry(artifacts: Artifacts, name: str) -> dict[str, Any]:
    found = artifacts.summary.get(name)
    return found if isinstance(found, dict) else {}


def _value(artifacts: Artifacts, name: str) -> float | None:
    value = _entry(artifacts, name).get("avg")
    return float(value) if _known(value) else None


def _known(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be reckoned with."""
    return isinstance(value, int | float) and -LARGEST < value < LARGEST


def _count(artifacts: Artifacts, name: str) -> int | None:
    value = _value(artifacts, name)
    return None if value is None else round(value)


def _statistics(artifacts: Artifacts, name: str) -> dict[str, float | None]:
    entry = _entry(artifacts, name)
    factor = TO_MS.get(str(entry.get("unit", "ms")))
    if factor is None:
        return dict.fromkeys(STATISTICS)
    values = {each: entry.get("avg" if each == "mean" else each) for each in STATISTICS}
    return {each: factor * value if _known(value) else None for each, value in values.items()}


def goodput(artifacts: Artifacts) -> dict[str, float]:
    """Return AIPerf's own bounds of a good request: since 0.9 under slos, before in input."""
    config = artifacts.summary.get("input_config")
    config = config if isinstance(config, dict) else {}
    older = config.get("input")
    found = config.get("slos") or (older.get("goodput") if isinstance(older, dict) else None)
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if _known(value) and value > 0}
