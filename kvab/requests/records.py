"""AIPerf's records file -> a table, line by line and of bounded memory.

Input: ``profile_export.jsonl``, plain or compressed, of AIPerf 0.6 to 0.13. Output: one row a
request, in the order of the file. Only the wanted fields are decoded: the long list of chunk
times that each record carries is passed over.
"""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from kvab.errors import InputError

LONGEST_LINE = 256 << 20  # bytes; the longest answers make lines of a few MB
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
CHUNKS = b'"inter_chunk_latency":{"value":['
LARGE_BYTES = 64 << 20  # from this size on, reading takes long enough to be watched
BUFFER_BYTES = 1 << 18
ERROR_CHARACTERS = 300
TO_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "us": 1e-3, "ns": 1e-6}
SESSION = "session_"  # AIPerf numbers the conversations of a seeded run by their row


class _Value(msgspec.Struct, gc=False):
    value: float | None = None
    unit: str = "ms"


class _Metadata(msgspec.Struct, gc=False):
    session_num: int = -1
    conversation_id: str | None = None
    turn_index: int | None = None
    credit_issued_ns: int | None = None
    request_start_ns: int = 0
    benchmark_phase: str = "profiling"
    was_cancelled: bool = False


class _Metrics(msgspec.Struct, gc=False):
    time_to_first_token: _Value | None = None
    request_latency: _Value | None = None
    inter_token_latency: _Value | None = None
    input_sequence_length: _Value | None = None
    output_sequence_length: _Value | None = None
    usage_prompt_tokens: _Value | None = None
    usage_completion_tokens: _Value | None = None
    usage_prompt_cache_read_tokens: _Value | None = None


class _Error(msgspec.Struct, gc=False):
    code: int | None = None
    type: str | None = None
    message: str | None = None


class _Record(msgspec.Struct, gc=False):
    metadata: _Metadata
    metrics: _Metrics = msgspec.field(default_factory=_Metrics)
    error: _Error | str | None = None


TIMES = {
    "ttft_ms": "time_to_first_token",
    "latency_ms": "request_latency",
    "client_itl_ms": "inter_token_latency",
}
COUNTS = {
    "client_input_tokens": "input_sequence_length",
    "client_output_tokens": "output_sequence_length",
    "server_input_tokens": "usage_prompt_tokens",
    "server_output_tokens": "usage_completion_tokens",
    "cached_tokens": "usage_prompt_cache_read_tokens",
}
NUMBERS = ("session", "conversation", "turn", "issued_ns", "start_ns")


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

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.table)


def read_records(path: Path) -> Records:
    """Return the records of a file of JSON lines, plain, ``.gz``, ``.bz2`` or ``.zst``.

    Raises
    ------
    InputError
        If the file cannot be read or is empty, or a line is not a record of AIPerf; the line is
        named.
    """
    numbers = {name: array("q") for name in NUMBERS}
    measured = {name: array("d") for name in (*TIMES, *COUNTS)}
    errors: dict[int, str] = {}
    decode, warmup, cut_off, kept = msgspec.json.Decoder(_Record).decode, 0, False, 0
    for number, line in enumerate(_lines(path), start=1):
        try:
            record = decode(_without_chunks(line))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if not line.strip():
                continue
            if not line.endswith(b"\n") and not isinstance(error, msgspec.ValidationError):
                cut_off = True
                break
            record = _odd_record(f"{path}:{number}", line)
        if record.metadata.benchmark_phase != "profiling":
            warmup += 1
            continue
        _append(record, numbers, measured, f"{path}:{number}")
        if (text := _error_text(record)) is not None:
            errors[kept] = text
        kept += 1
    if not kept:
        raise InputError(f"{path}: expected a record a line, got none; the run sent no request")
    table = pd.DataFrame({name: np.frombuffer(column, "int64") for name, column in numbers.items()})
    for name, column in measured.items():
        table[name] = np.frombuffer(column, "float64")
    table["error"] = pd.Series(errors, index=table.index, dtype=object)
    table["error"] = table["error"].where(table["error"].notna(), None)
    return Records(table, warmup, cut_off)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed as its name says; of a large one, show how far."""
    try:
        with _open(path) as file, pa.input_stream(file, CODECS.get(path.suffix)) as stream:
            lines = io.BufferedReader(stream, buffer_size=BUFFER_BYTES)
            while line := lines.readline(LONGEST_LINE):
                if len(line) == LONGEST_LINE:
                    raise InputError(f"{path}: a line is longer than {LONGEST_LINE >> 20} MiB")
                yield line
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: expected a file that can be read, got {reason}; copy it again"
        ) from None


def _open(path: Path) -> AbstractContextManager[BinaryIO]:
    if path.stat().st_size < LARGE_BYTES:
        return path.open("rb")
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    return rich.progress.open(
        path, "rb", description=f"reading {path.name}", console=console, transient=True
    )


def _without_chunks(line: bytes) -> bytes:
    """Return a record as AIPerf writes it without its chunk times, most of its length."""
    start = line.find(CHUNKS)
    end = line.find(b"]", start)
    return line[: start + len(CHUNKS)] + line[end:] if 0 <= start < end else line


def _odd_record(where: str, line: bytes) -> _Record:
    """Return the record of a line that is not strict JSON: NaN and Infinity become undefined."""
    try:
        content = json.loads(line, parse_constant=lambda name: None)
        return msgspec.convert(content, _Record)
    except (ValueError, RecursionError) as error:  # also what msgspec raises
        start = line.strip()[:40].decode(errors="replace")
        raise InputError(
            f"{where}: expected a record of AIPerf, got {start!r} ({error}); remove the line"
        ) from None


def _append(record: _Record, numbers: dict, measured: dict, where: str) -> None:
    metadata, metrics = record.metadata, record.metrics
    try:
        numbers["session"].append(metadata.session_num)
        numbers["conversation"].append(_conversation(metadata.conversation_id))
        numbers["turn"].append(metadata.turn_index or 0)
        numbers["issued_ns"].append(metadata.credit_issued_ns or 0)
        numbers["start_ns"].append(metadata.request_start_ns)
    except OverflowError:
        raise InputError(f"{where}: expected whole numbers of 64 bits in metadata") from None
    for name, field in TIMES.items():
        found = getattr(metrics, field)
        if found is None or found.value is None:
            measured[name].append(np.nan)
        elif found.unit in TO_MS:
            measured[name].append(found.value * TO_MS[found.unit])
        else:
            known = ", ".join(TO_MS)
            raise InputError(f"{where}: {field}: expected a unit of {known}, got {found.unit!r}")
    for name, field in COUNTS.items():
        found = getattr(metrics, field)
        measured[name].append(np.nan if found is None or found.value is None else found.value)


def _conversation(name: str | None) -> int:
    """Return the number of a conversation named as AIPerf names those of a seeded run, else -1."""
    digits = name[len(SESSION) :] if name and name.startswith(SESSION) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 19 else -1


def _error_text(record: _Record) -> str | None:
    """Return why a request was not served, on one line; None if it was."""
    error: Any = record.error
    if error is None:
        return "cancelled" if record.metadata.was_cancelled else None
    if isinstance(error, _Error):
        error = " ".join(str(part) for part in (error.code, error.type, error.message) if part)
    return " ".join(error.split())[:ERROR_CHARACTERS] or "an error without a text"
