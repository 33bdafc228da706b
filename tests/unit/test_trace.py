"""Reading, finding, describing, cutting and reordering the trace."""

import hashlib
import http.server
import json
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from kvab.errors import DependencyError, InputError
from kvab.trace.finding import fetch_trace, find_trace
from kvab.trace.reading import (
    burst_order,
    describe,
    describe_rows,
    read_trace,
    reusable_tokens,
    slice_trace,
    write_rows,
)

REAL = os.environ.get("KVAB_TRACE")
needs_real = pytest.mark.skipif(
    not REAL, reason="the real trace: run `kvab trace fetch --to FILE` and name it in KVAB_TRACE"
)

ROWS = [
    {"timestamp": 27000, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
    {"timestamp": 27000, "input_length": 1536, "output_length": 1, "hash_ids": [0, 1, 2]},
    {"timestamp": 30000, "input_length": 600, "output_length": 9, "hash_ids": [3, 1]},
    {"timestamp": 33000, "input_length": 513, "output_length": 7, "hash_ids": [0, 1]},
]


@dataclass
class Declared:
    url: str
    sha256: str
    name: str = "declared trace"
    rows: int = 40
    block_tokens: int = 512
    first: bool = True


REMEDIES = "with --trace, or its folder in KVAB_TRACES"


def text_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.jsonl"
    path.write_text(text_of(ROWS))
    return path


@pytest.fixture
def trace(path):
    return read_trace(path)


@pytest.fixture(autouse=True)
def away_from_home(monkeypatch, tmp_path):
    for name in ("KVAB_TRACE", "KVAB_TRACES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KVAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def changed(**fields):
    """The rows with the third one (line 3) changed."""
    return [*ROWS[:2], ROWS[2] | fields, ROWS[3]]


# --- reading


def test_columns_are_read_in_file_order(trace):
    assert len(trace) == 4
    assert trace.timestamp_ms.tolist() == [27000, 27000, 30000, 33000]
    assert trace.input_tokens.tolist() == [1000, 1536, 600, 513]
    assert trace.output_tokens.tolist() == [5, 1, 9, 7]
    assert [list(ids) for ids in trace.hash_ids] == [[0, 1], [0, 1, 2], [3, 1], [0, 1]]
    assert (trace.timestamp_ms.dtype, trace.input_tokens.dtype) == ("float64", "int32")


def test_arrivals_count_from_the_first(trace):
    assert trace.arrival_ms.tolist() == [0, 0, 3000, 6000]


def test_name_is_the_stem_unless_given(path):
    assert read_trace(path).name == "some"
    assert read_trace(path, name="other").name == "other"


def test_sha256_is_that_of_the_file(path, trace):
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_trace(path, sha256=trace.sha256).sha256 == trace.sha256


def test_unknown_fields_are_allowed(path):
    path.write_text(text_of(changed(session_id="a", delay=3)))
    assert len(read_trace(path)) == 4


def test_fractional_timestamps_are_kept(path):
    path.write_text(text_of(changed(timestamp=30000.25)))
    assert read_trace(path).timestamp_ms[2] == 30000.25


def test_whole_floats_count_as_counts(path):
    path.write_text(text_of(changed(input_length=600.0)))
    assert read_trace(path).input_tokens[2] == 600


def test_a_missing_last_newline_is_allowed(path):
    path.write_text(text_of(ROWS).rstrip("\n"))
    assert len(read_trace(path)) == 4


def test_windows_line_ends_are_allowed(path):
    path.write_bytes(text_of(ROWS).replace("\n", "\r\n").encode())
    assert len(read_trace(path)) == 4


@pytest.mark.parametrize("marked", [[0], [3], [0, 1, 2, 3]])
def test_a_marked_row_makes_the_trace_synthetic(path, marked):
    rows = [row | ({"synthetic": True} if n in marked else {}) for n, row in enumerate(ROWS)]
    path.write_text(text_of(rows))
    assert read_trace(path).synthetic


def test_an_unmarked_trace_is_not_synthetic(trace):
    assert not trace.synthetic


# --- bad rows

WRONG_ROWS = {
    "negative timestamp": ({"timestamp": -1}, "timestamp: expected `float` >= 0"),
    "nan timestamp": ({"timestamp": float("nan")}, "json is malformed"),
    "infinite timestamp": ({"timestamp": float("inf")}, "json is malformed"),
    "huge timestamp": ({"timestamp": 10**400}, "timestamp: number out of range"),
    "late timestamp": ({"timestamp": 2**53}, "timestamp: expected `float` < "),
    "text timestamp": ({"timestamp": "soon"}, "timestamp: expected `float`, got `str`"),
    "true timestamp": ({"timestamp": True}, "timestamp: expected `float`, got `bool`"),
    "unsorted": ({"timestamp": 26999}, "expected 27000 or more, as in the row before, got 26999"),
    "no input": ({"input_length": 0}, "input_length: expected `int` >= 1"),
    "true input": ({"input_length": True}, "input_length: expected `int`, got `bool`"),
    "half a token": ({"input_length": 600.5}, "input_length: expected `int`, got `float`"),
    "null input": ({"input_length": None}, "input_length: expected `int`, got `null`"),
    "too much input": ({"input_length": 2**31}, "input_length: expected `int` <= 2147483647"),
    "no output": ({"output_length": 0}, "output_length: expected `int` >= 1"),
    "negative output": ({"output_length": -3}, "output_length: expected `int` >= 1"),
    "too few ids": ({"hash_ids": [3]}, "expected 2 hash_ids (600 tokens in blocks of 512), got 1"),
    "too many ids": ({"hash_ids": [3, 1, 4]}, "expected 2 hash_ids"),
    "negative id": ({"hash_ids": [3, -1]}, "hash_ids[1]: expected `int` >= 0"),
    "fractional id": ({"hash_ids": [3, 1.5]}, "hash_ids[1]: expected `int`, got `float`"),
    "true id": ({"hash_ids": [3, True]}, "hash_ids[1]: expected `int`, got `bool`"),
    "id beyond 64 bits": ({"hash_ids": [3, 2**63]}, "hash_ids[1]: expected `int` <= "),
    "ids as text": ({"hash_ids": "31"}, "hash_ids: expected `array`, got `str`"),
}


@pytest.mark.parametrize("fault", WRONG_ROWS)
def test_a_wrong_value_is_named_with_its_line(path, fault):
    fields, message = WRONG_ROWS[fault]
    path.write_text(text_of(changed(**fields)))
    with pytest.raises(InputError) as error:
        read_trace(path)
    said = str(error.value)
    assert (error.value.path, error.value.line) == (path, 3)
    assert message in said and error.value.fix
    assert said.startswith(f"{path}:3: ")
    assert "\n" not in said and len(said) < 400


@pytest.mark.parametrize("field", ["timestamp", "input_length", "output_length", "hash_ids"])
def test_a_missing_field_is_named(path, field):
    rows = [dict(row) for row in ROWS]
    del rows[1][field]
    path.write_text(text_of(rows))
    with pytest.raises(InputError, match=f":2: object missing required field `{field}`"):
        read_trace(path)


@pytest.mark.parametrize("line", ["hello", "", "{'timestamp': 1}", "[" * 100_000])
def test_a_line_that_is_not_json_is_named(path, line):
    path.write_text(text_of(ROWS[:1]) + line + "\n" + text_of(ROWS[1:]))
    with pytest.raises(InputError, match=r":2: .*; fix it"):
        read_trace(path)


@pytest.mark.parametrize("line", ["3", "[1, 2]", "null", '"text"'])
def test_json_that_is_no_object_is_named(path, line):
    path.write_text(text_of(ROWS[:1]) + line + "\n")
    with pytest.raises(InputError, match=":2: expected `object`, got"):
        read_trace(path)


def test_a_file_cut_off_mid_line_is_named(path):
    path.write_text(text_of(ROWS)[:-30])
    with pytest.raises(
        InputError, match=r":4: input data was truncated.*cut off here: fetch it again"
    ):
        read_trace(path)


def test_a_line_that_is_not_utf8_is_named(path):
    path.write_bytes(text_of(ROWS[:2]).encode() + b'{"\xff\xfe": 1}\n')
    with pytest.raises(InputError, match=":3: "):
        read_trace(path)


def test_a_utf16_file_is_refused(path):
    path.write_bytes(text_of(ROWS).encode("utf-16"))
    with pytest.raises(InputError, match=":1: json is malformed"):
        read_trace(path)


def test_an_empty_file_is_refused(path):
    path.write_text("")
    with pytest.raises(InputError, match=r"some\.jsonl: expected a request a line.*empty file"):
        read_trace(path)


def test_a_wrong_sha256_is_refused_with_both_hashes(path, trace):
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}, got {trace.sha256}"):
        read_trace(path, sha256="0" * 64)


def test_a_wrong_sha256_is_said_before_a_wrong_row(path):
    path.write_text(text_of(ROWS)[:-30])
    with pytest.raises(InputError, match="sha256"):
        read_trace(path, sha256="0" * 64)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="got No such file"):
        read_trace(tmp_path / "absent.jsonl")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="got Is a directory"):
        read_trace(tmp_path)


# --- describing


def test_blocks_are_counted_by_reference_and_by_request(trace):
    d = describe(trace)
    assert (d["block_references"], d["unique_blocks"], d["repeat_references"]) == (9, 4, 5)
    assert d["reused_blocks"] == 2
    assert d["cache_efficiency"] == 5 / 9


def test_a_block_twice_in_one_request_is_repeated_but_not_reused(path):
    path.write_text(text_of([ROWS[0] | {"hash_ids": [7, 7]}]))
    d = describe(read_trace(path))
    assert (d["repeat_references"], d["reused_blocks"]) == (1, 0)


def test_clock_and_bursts_are_described(trace):
    d = describe(trace)
    assert (d["distinct_timestamps"], d["largest_burst"]) == (3, 2)
    assert (d["duration_s"], d["timestamp_step_s"], d["mean_burst"]) == (6, 3, 4 / 3)
    assert d["input_tokens_per_s"] == (1000 + 1536 + 600 + 513) / 6


def test_one_row_has_no_step_and_no_rate(path):
    path.write_text(text_of(ROWS[:1]))
    d = describe(read_trace(path))
    assert (d["duration_s"], d["timestamp_step_s"], d["input_tokens_per_s"]) == (0, None, None)
    assert all(isinstance(text, str) for _, text in describe_rows(d))


def test_the_longest_request_does_not_overflow(path):
    row = ROWS[0] | {"input_length": 2**31 - 1, "output_length": 2**31 - 1, "hash_ids": [1]}
    path.write_text(text_of([row]))
    d = describe(read_trace(path, block_tokens=2**31))
    assert d["longest_prompt_plus_answer_tokens"] == 2**32 - 2


def test_a_description_is_plain_json(trace):
    assert json.loads(json.dumps(describe(trace), allow_nan=False)) == describe(trace)


@needs_real
def test_the_real_trace_has_the_figures_of_the_page():
    """Origin: the setup table of "Qwen3-32B KV Routing A/B"."""
    d = describe(read_trace(REAL))
    assert round(d["input_tokens"]["mean"]) == 12035
    assert round(d["output_tokens"]["mean"]) == 343
    assert (d["input_tokens"]["min"], d["input_tokens"]["max"]) == (891, 126195)
    assert round(d["input_tokens_per_s"]) == 40937
    assert round(d["cache_efficiency"], 4) == 0.3664
    counts = {
        "rows": 12031,
        "unique_blocks": 182790,
        "reused_blocks": 44144,
        "block_references": 288500,
        "repeat_references": 105710,
        "distinct_timestamps": 1180,
        "largest_burst": 28,
        "one_token_rows": 72,
        "longest_prompt_plus_answer_tokens": 126527,
        "timestamp_step_s": 3.0,
    }
    assert {key: d[key] for key in counts} == counts


@needs_real
def test_the_table_shows_the_page_s_figures():
    shown = dict(describe_rows(describe(read_trace(REAL))))
    assert shown["requests"] == "12,031"
    assert shown["cache efficiency"] == "36.64 %"
    assert shown["mean prompt [tokens]"] == "12,035"


# --- cutting and ordering


def test_a_slice_is_the_first_rows_within_the_seconds(trace):
    assert slice_trace(trace).tolist() == [0, 1, 2, 3]
    assert slice_trace(trace, rows=2).tolist() == [0, 1]
    assert slice_trace(trace, start_s=3).tolist() == [2, 3]
    assert slice_trace(trace, start_s=0, end_s=6).tolist() == [0, 1, 2]
    assert slice_trace(trace, rows=1, start_s=3).tolist() == [2]


@pytest.mark.parametrize(
    "cut", [{"rows": 0}, {"rows": -2}, {"start_s": 7}, {"start_s": 3, "end_s": 3}]
)
def test_a_slice_without_rows_is_refused(trace, cut):
    with pytest.raises(InputError, match="a part of 4 rows from 0 to 6 s"):
        slice_trace(trace, **cut)


def test_written_rows_read_back_equal(trace, tmp_path):
    out = write_rows(trace, np.array([1, 3]), tmp_path / "new" / "part.jsonl")
    assert [json.loads(line) for line in out.read_text().splitlines()] == [ROWS[1], ROWS[3]]
    assert [file.name for file in out.parent.iterdir()] == ["part.jsonl"]


def test_whole_timestamps_are_written_as_integers(path, tmp_path):
    path.write_text(text_of(changed(timestamp=30000.5)))
    out = write_rows(read_trace(path), np.array([0, 2]), tmp_path / "part.jsonl")
    first, second = out.read_text().splitlines()
    assert '"timestamp": 27000,' in first and '"timestamp": 30000.5,' in second


def test_a_part_of_a_synthetic_trace_is_synthetic(path, tmp_path):
    path.write_text(text_of([ROWS[0] | {"synthetic": True}, *ROWS[1:]]))
    out = write_rows(read_trace(path), np.array([2, 3]), tmp_path / "part.jsonl")
    assert read_trace(out).synthetic


def test_an_existing_file_is_not_overwritten_unasked(trace, path):
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_rows(trace, np.array([0]), path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused(trace, path):
    with pytest.raises(InputError, match="cannot write here"):
        write_rows(trace, np.array([0]), path / "below" / "a-file.jsonl")


def test_seed_zero_is_the_order_of_the_file():
    assert burst_order(np.array([0.0, 0, 0, 3, 3]), 0).tolist() == [0, 1, 2, 3, 4]


def test_a_seed_shuffles_within_bursts_only():
    at_ms = np.repeat(np.arange(50.0), 10)
    order = burst_order(at_ms, 7)
    assert sorted(order.tolist()) == list(range(500))
    assert (at_ms[order] == at_ms).all()
    assert (order != np.arange(500)).mean() > 0.8


def test_a_seed_gives_one_order_and_another_seed_another():
    at_ms = np.repeat(np.arange(50.0), 10)
    assert (burst_order(at_ms, 7) == burst_order(at_ms, 7)).all()
    assert (burst_order(at_ms, 7) != burst_order(at_ms, 8)).any()


def test_every_order_of_a_burst_is_equally_likely():
    first = [burst_order(np.zeros(4), seed)[0] for seed in range(1, 2001)]
    assert np.abs(np.bincount(first, minlength=4) / 2000 - 0.25).max() < 0.04


def test_reusable_tokens_stop_at_the_first_new_block(trace):
    assert reusable_tokens(trace).tolist() == [0, 1024, 0, 513]


def test_a_row_cannot_reuse_itself(path):
    path.write_text(text_of([ROWS[0] | {"hash_ids": [5, 5]}]))
    assert reusable_tokens(read_trace(path)).tolist() == [0]


@needs_real
def test_an_infinite_cache_would_serve_37_percent_of_the_real_trace():
    """Golden number: computed once, by this function, on the trace of 12,031 rows."""
    trace = read_trace(REAL)
    assert round(reusable_tokens(trace).sum() / trace.input_tokens.sum(), 4) == 0.3736


# --- fetching


@pytest.fixture
def server():
    """Give out a list of answers (status, body, announced length), the last one for ever."""
    answers, asked = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, body, length = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/trace.jsonl"
        httpd.answers, httpd.asked = answers, asked
        yield httpd
        httpd.shutdown()


BODY = text_of(ROWS).encode()
SHA256 = hashlib.sha256(BODY).hexdigest()
WHOLE = (200, BODY, len(BODY))


def cached(sha256=SHA256):
    return Path(os.environ["KVAB_CACHE"]) / f"{sha256[:16]}.jsonl"


def left_behind(folder):
    return [file.name for file in folder.rglob("*") if file.is_file()]


def test_a_download_lands_in_the_cache(server):
    server.answers.append(WHOLE)
    assert fetch_trace(Declared(server.url, SHA256)) == cached()
    assert cached().read_bytes() == BODY
    assert left_behind(cached().parent) == [cached().name]


def test_a_trace_that_is_there_is_not_fetched_again(server):
    server.answers.append(WHOLE)
    for _ in range(2):
        fetch_trace(Declared(server.url, SHA256))
    assert len(server.asked) == 1


def test_a_wrong_file_in_the_cache_is_replaced(server):
    server.answers.append(WHOLE)
    cached().parent.mkdir(parents=True)
    cached().write_bytes(b"half of it")
    fetch_trace(Declared(server.url, SHA256))
    assert cached().read_bytes() == BODY


def test_a_download_goes_where_it_is_told(server, tmp_path):
    server.answers.append(WHOLE)
    out = tmp_path / "here" / "t.jsonl"
    assert fetch_trace(Declared(server.url, SHA256), out).read_bytes() == BODY


def test_another_file_at_the_destination_is_kept(server, path):
    server.answers.append(WHOLE)
    before = path.read_bytes()
    with pytest.raises(InputError, match="expected the declared trace or nothing"):
        fetch_trace(Declared(server.url, "0" * 64), path)
    assert path.read_bytes() == before
    assert not server.asked


def test_a_download_recovers_from_a_503(server):
    server.answers += [(503, b"", 0), WHOLE]
    assert fetch_trace(Declared(server.url, SHA256)).read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_download_recovers_from_a_truncated_body(server):
    server.answers += [(200, BODY[:50], len(BODY)), WHOLE]
    assert fetch_trace(Declared(server.url, SHA256)).read_bytes() == BODY


@pytest.mark.parametrize("answer", [(404, b"gone", 4), (503, b"", 0), (200, BODY[:50], len(BODY))])
def test_a_download_that_keeps_failing_says_both_remedies(server, answer):
    server.answers.append(answer)
    with pytest.raises(DependencyError, match=REMEDIES) as error:
        fetch_trace(Declared(server.url, SHA256))
    assert "\n" not in str(error.value)
    assert len(server.asked) <= 3
    assert not left_behind(cached().parent)


def test_a_server_that_is_not_there_says_both_remedies(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(DependencyError, match=REMEDIES):
        fetch_trace(Declared(server.url, SHA256))


def test_a_download_with_another_hash_is_not_kept(server):
    server.answers.append(WHOLE)
    with pytest.raises(DependencyError) as error:
        fetch_trace(Declared(server.url, "0" * 64))
    assert SHA256[:16] in str(error.value) and "0" * 16 in str(error.value)
    assert not left_behind(cached().parent)


# --- finding


NOWHERE = "http://127.0.0.1:1/trace.jsonl"


def test_a_named_trace_keeps_its_own_name(path):
    trace = find_trace(Declared(NOWHERE, "0" * 64), path)
    assert (trace.name, trace.synthetic) == ("some", False)


def test_a_named_trace_with_the_declared_sha256_has_the_declared_name(path):
    assert find_trace(Declared(NOWHERE, SHA256), path).name == "declared trace"


def test_a_named_trace_goes_before_the_environment(path, monkeypatch):
    monkeypatch.setenv("KVAB_TRACE", "/absent")
    assert find_trace(Declared(NOWHERE, SHA256), path).path == path


def test_the_environment_goes_before_the_cache(path, monkeypatch):
    cached().parent.mkdir(parents=True)
    cached().write_bytes(BODY)
    monkeypatch.setenv("KVAB_TRACE", str(path))
    trace = find_trace(Declared(NOWHERE, SHA256))
    assert (trace.path, trace.name) == (path, "declared trace")


def test_the_environment_must_name_the_declared_trace(path, monkeypatch):
    monkeypatch.setenv("KVAB_TRACE", str(path))
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}"):
        find_trace(Declared(NOWHERE, "0" * 64))


def test_the_environment_may_name_the_folder_of_the_traces(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KVAB_TRACES", str(tmp_path))
    (tmp_path / "trace.jsonl").write_bytes(path.read_bytes())
    trace = find_trace(Declared(NOWHERE, SHA256))
    assert (trace.path, trace.name) == (tmp_path / "trace.jsonl", "declared trace")
    with pytest.raises(InputError, match=f"expected sha256 {'0' * 64}"):
        find_trace(Declared(NOWHERE, "0" * 64))


def test_a_folder_without_the_trace_does_not_keep_it_from_being_found(path, tmp_path, monkeypatch):
    monkeypatch.setenv("KVAB_TRACES", str(tmp_path))
    monkeypatch.setenv("KVAB_TRACE", str(path))
    assert find_trace(Declared(NOWHERE, SHA256)).path == path


def test_another_workload_than_the_first_is_no_file_of_the_environment(path, monkeypatch):
    monkeypatch.setenv("KVAB_TRACE", str(path))
    with pytest.raises(DependencyError, match="cannot be fetched"):
        find_trace(Declared(NOWHERE, SHA256, first=False))


def test_the_environment_must_name_a_file(monkeypatch):
    monkeypatch.setenv("KVAB_TRACE", "/absent.jsonl")
    with pytest.raises(InputError, match=r"/absent\.jsonl: expected a file"):
        find_trace(Declared(NOWHERE, SHA256))


def test_the_cache_goes_before_a_download():
    cached().parent.mkdir(parents=True)
    cached().write_bytes(BODY)
    assert find_trace(Declared(NOWHERE, SHA256)).path == cached()


def test_a_trace_found_nowhere_is_downloaded(server):
    server.answers.append(WHOLE)
    trace = find_trace(Declared(server.url, SHA256))
    assert (trace.name, trace.sha256, trace.synthetic) == ("declared trace", SHA256, False)


def test_a_trace_found_nowhere_is_made_up_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, "kvab"):
        trace = find_trace(Declared(NOWHERE, SHA256))
    assert (trace.synthetic, trace.name) == (True, "GENERATED WORKLOAD (seed 1)")
    assert len(trace) == 40
    assert cached().parent in trace.path.parents
    [record] = caplog.records
    assert "GENERATED WORKLOAD" in record.getMessage() and "\n" not in record.getMessage()


def test_a_made_up_trace_is_known_again_from_its_path():
    made = find_trace(Declared(NOWHERE, SHA256))
    again = find_trace(Declared(NOWHERE, SHA256), made.path)
    assert (again.synthetic, again.name) == (True, made.name)


def test_a_made_up_trace_left_damaged_is_made_again():
    made = find_trace(Declared(NOWHERE, SHA256))
    made.path.write_bytes(b"half of it")
    assert find_trace(Declared(NOWHERE, SHA256)).sha256 == made.sha256


def test_a_made_up_trace_goes_to_a_temporary_folder_if_the_cache_is_not_writable(
    monkeypatch, path, tmp_path
):
    monkeypatch.setenv("KVAB_CACHE", str(path / "below-a-file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trace = find_trace(Declared(NOWHERE, SHA256))
    assert trace.synthetic
    assert tmp_path in trace.path.parents
