"""AIPerf's artifacts -> the requests table, on runs recorded with AIPerf 0.6, 0.9 and 0.13."""

import dataclasses
import gzip
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvab.errors import InputError
from kvab.requests.aiperf import read_artifacts, read_records
from kvab.requests.matching import from_aiperf
from kvab.requests.metrics import good, summarize
from kvab.requests.table import SCHEMA
from kvab.study import Slo
from kvab.trace.reading import read_trace

DATA = Path(__file__).parents[1] / "data" / "aiperf"
VERSIONS = ["0.6.0", "0.9.0", "0.13.0"]
SLO = Slo(ttft_ms=2000, itl_ms=25)


@pytest.fixture(scope="module")
def trace(recorded_trace):
    return read_trace(recorded_trace)


@pytest.fixture
def copy(tmp_path):
    """A copy of the 0.13 artifacts with plain records, and a way to change those."""
    folder = tmp_path / "artifacts"
    shutil.copytree(DATA / "0.13.0", folder)
    packed = folder / "profile_export.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().splitlines()
    packed.unlink()

    def write(change=lambda records: records, end="\n", summary=True):
        changed = [json.dumps(r) for r in change([json.loads(line) for line in lines])]
        (folder / "profile_export.jsonl").write_text("\n".join(changed) + end)
        if not summary:
            (folder / "profile_export_aiperf.json").unlink(missing_ok=True)
        return folder

    write.lines = lines
    return write


def of_row(records, row):
    return next(r for r in records if r["metadata"]["conversation_id"] == f"session_{row:06d}")


@pytest.mark.parametrize("version", VERSIONS)
def test_figures_equal_those_of_aiperf(version, trace):
    artifacts = read_artifacts(DATA / version)
    ours, theirs = summarize(from_aiperf(artifacts, trace), SLO), artifacts.summary
    for key, name in {
        "ttft_ms": "time_to_first_token",
        "latency_ms": "request_latency",
        "itl_ms": "inter_token_latency",
    }.items():
        for statistic, value in ours[key].items():
            expected = theirs[name]["avg" if statistic == "mean" else statistic]
            assert value == pytest.approx(expected, rel=1e-9), (key, statistic)
    assert ours["good"]["count"] == theirs["good_request_count"]["avg"]
    assert ours["requests"] == {
        "expected": 60,
        "received": 60,
        "errors": 0,
        "overload": 0,
        "one_token": 1,
    }
    assert ours["duration_s"] == pytest.approx(theirs["benchmark_duration"]["avg"], rel=1e-7)
    assert artifacts.version == version
    assert artifacts.command.startswith("aiperf profile -m")
    assert artifacts.partial is None


@pytest.mark.parametrize("version", VERSIONS)
def test_every_request_stands_on_its_trace_row(version, trace):
    """In the 0.13 run 16 of 60 requests were sent out of file order within their burst."""
    table = from_aiperf(read_artifacts(DATA / version), trace)
    assert table["row"].tolist() == list(range(60))
    assert (table["input_tokens"] == trace.input_tokens).all()
    assert (table["output_tokens"] == trace.output_tokens).all()
    assert (table["arrival_ms"] == trace.arrival_ms).all()
    assert pa.Table.from_pandas(table, schema=SCHEMA).num_rows == 60


def test_send_lag_is_aiperfs_own(trace):
    artifacts = read_artifacts(DATA / "0.13.0")
    lag_ms = from_aiperf(artifacts, trace)["send_lag_ms"]
    for q in (50, 90, 99):
        expected = artifacts.summary[f"replay_sched_lag_p{q}"]["avg"]
        assert np.percentile(lag_ms, q) == pytest.approx(expected, abs=1e-3)


def test_without_a_seed_prompt_lengths_tell_a_burst_apart(copy, trace):
    def unnamed(records):
        for record in records:
            record["metadata"]["conversation_id"] = "a1b2c3d4"
        return records

    expected = from_aiperf(read_artifacts(DATA / "0.13.0"), trace)
    got = from_aiperf(read_artifacts(copy(unnamed)), trace)
    assert got["ttft_ms"].equals(expected["ttft_ms"])
    assert got.attrs["inferred"] == [
        "rows: the order of sending, as the run had no --random-seed",
        "rows: 16 moved within their burst by prompt length",
    ]


def test_rows_of_a_shuffled_input_file_find_their_way_back(trace):
    """AIPerf read lines 0, 1, ...; they were rows 9, 8, ... of each burst of ten."""
    order = np.lexsort((-np.arange(60), trace.timestamp_ms))
    back = np.argsort(order)
    shuffled = dataclasses.replace(
        trace,
        input_tokens=trace.input_tokens[back],
        output_tokens=trace.output_tokens[back],
    )
    artifacts = read_artifacts(DATA / "0.13.0")
    got, plain = from_aiperf(artifacts, shuffled, order), from_aiperf(artifacts, trace)
    assert got["ttft_ms"].tolist() == plain["ttft_ms"].to_numpy()[back].tolist()
    assert got["error"].isna().all()


def test_server_counts_come_before_those_of_the_client(copy, trace):
    def fewer(records):
        for record in records:
            metrics = record["metrics"]
            metrics["output_sequence_length"]["value"] = (
                1 + metrics["output_sequence_length"]["value"] // 2
            )
            metrics.get("inter_token_latency", {})["value"] = 99.0
        return records  # fmt: skip

    table = from_aiperf(read_artifacts(copy(fewer)), trace)
    assert (table["output_tokens"] == trace.output_tokens).all()
    assert table["itl_ms"].max() < 25
    assert (table["client_itl_ms"].dropna() == 99.0).all()


def test_failed_lost_and_unusable_requests_stay_as_rows(copy, trace):
    def spoil(records):
        records.remove(of_row(records, 7))
        of_row(records, 8)["error"] = {"code": 503, "type": "Busy", "message": "no\nworker"}
        of_row(records, 9)["metrics"]["time_to_first_token"]["value"] = None
        del of_row(records, 10)["metrics"]["request_latency"]
        of_row(records, 11)["metadata"]["was_cancelled"] = True
        of_row(records, 12)["metrics"]["request_latency"]["value"] = -1.0
        return records

    artifacts = read_artifacts(copy(spoil, summary=False))
    table = from_aiperf(artifacts, trace, 60)
    unusable = "unusable record: no sound TTFT and latency"
    assert table["error"].dropna().to_dict() == {
        7: "no record", 8: "503 Busy no worker", 9: unusable, 10: unusable, 11: "cancelled",
        12: unusable,
    }  # fmt: skip
    assert table.loc[7:12, ["ttft_ms", "itl_ms", "latency_ms"]].isna().all(axis=None)
    assert not good(table, SLO)[7:13].any()
    assert (
        artifacts.partial
        == "no summary of AIPerf beside the records: whether the run ended is not known"
    )


def test_nan_written_by_another_tool_is_undefined(copy, trace):
    def undefined(records):
        of_row(records, 3)["metrics"]["time_to_first_token"]["value"] = float("nan")
        return records

    table = from_aiperf(read_artifacts(copy(undefined)), trace)
    assert table["error"].dropna().index.tolist() == [3]


def test_a_cut_off_last_line_is_left_out_and_said(copy, trace):
    folder = copy()
    file = folder / "profile_export.jsonl"
    file.write_bytes(file.read_bytes()[:-200])
    artifacts = read_artifacts(folder)
    assert len(artifacts.records.table) == 59
    assert artifacts.partial == "the records file is cut off"
    assert "ends inside a record" in artifacts.notes[0]
    assert (from_aiperf(artifacts, trace)["error"] == "no record").sum() == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r + r[:1], "row 4 first"),
        (lambda r: [*r, {"metadata": {"session_num": 5}, "metrics": []}], ":61: expected a record"),
        (lambda r: [*r, "text"], ":61: expected a record"),
        (lambda r: [], "got none"),
    ],
)
def test_what_is_not_one_run_is_refused_in_one_line(copy, trace, change, words):
    with pytest.raises(InputError, match=words):
        from_aiperf(read_artifacts(copy(change, summary=False)), trace)


def test_another_trace_is_refused(trace):
    other = dataclasses.replace(trace, input_tokens=trace.input_tokens[::-1])
    with pytest.raises(InputError, match="another trace or other prompts"):
        from_aiperf(read_artifacts(DATA / "0.13.0"), other)


def test_records_and_summary_of_different_runs_are_refused(copy):
    with pytest.raises(InputError, match="60 served requests, the records 50"):
        read_artifacts(copy(lambda records: records[:50]))


def test_two_runs_in_one_folder_are_refused(copy):
    folder = copy()
    shutil.copy(folder / "profile_export.jsonl", folder / "second.jsonl")
    with pytest.raises(InputError, match="put each run in its own folder"):
        read_artifacts(folder)


def test_secrets_of_the_command_line_are_not_kept(copy):
    folder = copy()
    file = folder / "profile_export_aiperf.json"
    summary = json.loads(file.read_text())
    secrets = " --api-key sk-1234 --header 'Authorization: Bearer abcd' --url x"
    summary["run_info"]["cli_command"] += secrets
    file.write_text(json.dumps(summary))
    command = read_artifacts(folder).command
    assert command.endswith("--api-key *** --header '***' --url x")


@pytest.mark.parametrize("ending", ["zst", "bz2"])
def test_compressed_records_read_as_plain_ones(copy, ending):
    folder = copy()
    plain = folder / "profile_export.jsonl"
    expected = read_artifacts(folder).records.table
    with pa.output_stream(f"{plain}.{ending}", compression="detect") as out:
        out.write(plain.read_bytes())
    plain.unlink()
    assert read_artifacts(folder).records.table.equals(expected)


def test_memory_does_not_grow_with_the_chunk_times(copy, tmp_path):
    line = json.loads(copy.lines[0])
    line["metrics"]["inter_chunk_latency"]["value"] = [16.123456] * 20_000
    path = tmp_path / "profile_export.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for _ in range(50)))
    tracemalloc.start()
    assert len(read_records(path).table) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 5


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 2000), byte=st.binary(min_size=1, max_size=3))
def test_a_damaged_line_is_read_or_refused_never_a_crash(at, byte, tmp_path_factory):
    line = gzip.decompress((DATA / "0.13.0" / "profile_export.jsonl.gz").read_bytes())
    path = tmp_path_factory.mktemp("damaged") / "profile_export.jsonl"
    line = line[: line.index(b"\n") + 1]
    path.write_bytes(line[:at] + byte + line[at + len(byte) :])
    try:
        assert len(read_records(path).table) <= 2
    except InputError as error:
        assert "\n" not in str(error)
