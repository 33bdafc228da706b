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
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from kvab.errors import InputError

LONGEST_LINE = 256 << 20  # bytes; the longest answers make lines of a few MB
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
CHUNKS = b'"inter_chunk_latency":{"value":['
BUFFER_BYTES = 1 << 18
ERROR_CHARACTERS = 300
TO_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "us": 1e-3, "ns": 1e-6}
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
        with path.open("rb") as file, pa.input_stream(file, CODECS.get(path.suffix)) as stream:
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
                         line=number, fix="remove the line") from None  # fmt: skip


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
