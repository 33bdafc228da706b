"""AIPerf's artifacts, read as they came: records, summary and completion marker.

Input: a folder of AIPerf artifacts. Output: one table of its records and what the summary says of
the run. Records are decoded line by line, the wanted fields only: the list of gaps between tokens,
most of each record, is skipped, so memory does not grow with it.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from kvab.errors import InputError

RECORDS = "profile_export.jsonl"
SUMMARY = "profile_export_aiperf.json"
READY = ".aiperf_results_ready.json"
SERVER_METRICS = "server_metrics_export.json"
NUMBERS = {
    "ttft_ms": "time_to_first_token",
    "client_itl_ms": "inter_token_latency",
    "latency_ms": "request_latency",
    "client_input_tokens": "input_sequence_length",
    "client_output_tokens": "output_sequence_length",
    "server_input_tokens": "usage_prompt_tokens",
    "server_output_tokens": "usage_completion_tokens",
    "cached_tokens": "usage_prompt_cache_read_tokens",
}


class _Value(msgspec.Struct):
    value: float | None = None


_Metrics = msgspec.defstruct("_Metrics", [(name, _Value | None, None) for name in NUMBERS.values()])


class _Metadata(msgspec.Struct, kw_only=True):
    session_num: int
    conversation_id: str = ""
    request_start_ns: int
    was_cancelled: bool = False
    benchmark_phase: str = "profiling"


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: int | None = None


class _Record(msgspec.Struct):
    metadata: _Metadata
    metrics: _Metrics | None = None  # type: ignore[valid-type]
    error: _Error | None = None


@dataclass(frozen=True)
class Artifacts:
    """What one AIPerf run left.

    Attributes
    ----------
    folder : Path
        Where it lies.
    records : DataFrame
        A row a record: ``line`` of the input file, from 0, ``request_start_ns``, ``error`` (text,
        null if answered) and the keys of `NUMBERS` (float64, NaN where AIPerf gives none).
    truncated : int
        Lines at the end that were cut off and are left out: 0 or 1.
    summary : dict
        AIPerf's own summary; empty if it wrote none.
    whole : bool
        Whether AIPerf says that its export is complete and the run was not cancelled.
    """

    folder: Path
    records: pd.DataFrame
    truncated: int
    summary: dict[str, Any]
    whole: bool

    @property
    def version(self) -> str | None:
        """AIPerf's version."""
        return self.summary.get("aiperf_version")


def read_artifacts(folder: Path) -> Artifacts:
    """Return the artifacts of one AIPerf run.

    Raises
    ------
    InputError
        If the folder holds no records, or a line is not a record of AIPerf.
    """
    path = next((p for p in (folder / RECORDS, folder / f"{RECORDS}.gz") if p.is_file()), None)
    if path is None:
        raise InputError(
            f"{folder}: expected AIPerf's {RECORDS} (or .gz), found none; "
            "give the folder that --artifact-dir named"
        )
    records, truncated = _records(path)
    summary, ready = _json(folder / SUMMARY), _json(folder / READY)
    cancelled = bool(summary.get("was_cancelled") or ready.get("was_cancelled"))
    whole = bool(summary) and not cancelled and not ready.get("partial") and not truncated
    return Artifacts(folder, records, truncated, summary, whole)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, got {error}; copy the artifacts again") from None
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw:
        yield from gzip.open(raw) if path.suffix == ".gz" else io.BufferedReader(raw, 1 << 20)


def _records(path: Path) -> tuple[pd.DataFrame, int]:
    decode = msgspec.json.Decoder(_Record).decode
    columns: dict[str, list] = {
        name: [] for name in ("line", "request_start_ns", "error", *NUMBERS)
    }
    broken: tuple[int, str] | None = None
    for number, line in enumerate(_lines(path), 1):
        if broken:
            raise InputError(f"{path}, line {broken[0]}: expected a record of AIPerf, {broken[1]}")
        if not line.strip():
            continue
        try:
            record = decode(line)
        except (msgspec.DecodeError, ValueError) as error:
            broken = number, f"got {error}"
            continue
        if record.metadata.benchmark_phase != "profiling":
            continue
        columns["line"].append(_line(record.metadata))
        columns["request_start_ns"].append(record.metadata.request_start_ns)
        columns["error"].append(_error(record))
        for name, key in NUMBERS.items():
            metric = getattr(record.metrics, key, None)
            value = metric.value if metric is not None else None
            columns[name].append(np.nan if value is None else value)
    if broken and (not columns["line"] or line.endswith(b"\n")):
        raise InputError(f"{path}, line {broken[0]}: expected a record of AIPerf, {broken[1]}")
    if not columns["line"]:
        raise InputError(f"{path}: expected one record a request, got none; was the run cancelled?")
    table = pd.DataFrame(columns).astype({name: "float64" for name in NUMBERS})
    return table.astype({"error": "string"}), int(broken is not None)


def _line(metadata: _Metadata) -> int:
    """Return the line that a record is of.

    The loader of Mooncake traces names conversations after it (AIPerf 0.13.0, session_000057).
    ``session_num`` counts requests as they are sent, which is another order inside some bursts.
    """
    name = re.fullmatch(r"session_(\d+)", metadata.conversation_id)
    return int(name[1]) if name else metadata.session_num


def _error(record: _Record) -> str | None:
    if record.error is not None:
        kind = record.error.type or record.error.code or "error"
        return f"{kind}: {record.error.message}"
    if record.metadata.was_cancelled:
        return "cancelled"
    return None


def router_counters(folder: Path) -> dict[str, int]:
    """Return what Dynamo's KV router counted during the replay; empty behind another router.

    ``cached_prefix_tokens``: prompt tokens that the chosen workers held already, summed over
    requests. ``kv_events``: blocks that workers reported as stored. Both are read from the
    frontend's metrics as AIPerf exports them (``server_metrics_export.json``).
    """
    metrics = _json(folder / SERVER_METRICS).get("metrics", {})

    def total(name: str, **labels: str) -> int:
        found = metrics.get(f"dynamo_component_{name}", {}).get("series", [])
        fitting = (s for s in found if labels.items() <= s.get("labels", {}).items())
        return round(sum(each["stats"].get("total", 0) for each in fitting))

    if not total("kv_cache_events_applied"):
        return {}
    prefill = total("router_kv_selected_cached_prefix_tokens", phase="prefill")
    return {
        "cached_prefix_tokens": prefill or total("router_kv_selected_cached_prefix_tokens"),
        "kv_events": total("kv_cache_events_applied", event_type="stored", status="ok"),
    }
