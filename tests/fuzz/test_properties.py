"""Structured inputs: whatever is well formed is read as it is, whatever is not is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvab import console
from kvab import declarations as declare
from kvab.errors import InputError
from kvab.requests import aiperf
from kvab.requests.matching import from_aiperf
from kvab.runs import folder as runs
from kvab.study import Slo, root
from kvab.study.manifests import read_configuration
from kvab.study.topology import flatten, read_topology
from kvab.trace.reading import burst_order, read_trace, slice_trace, write_rows

QUICK = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BLOCK = 512
RECIPE = root() / "recipes" / "qwen3-32b" / "vllm" / "disagg-kv-router"
RUN = root() / "book" / "published" / "qwen3-32b" / "live-cpu" / "disagg-kv-router" / "r1"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=8,
)


# --- traces ------------------------------------------------------------------------------------


@st.composite
def trace_rows(draw):
    """Sound rows of a trace, in the order of their arrival."""
    count, at_ms, rows = draw(st.integers(1, 12)), 0, []
    for _ in range(count):
        at_ms += draw(st.sampled_from([0, 0, 1, 3000, 0.5]))
        tokens = draw(st.integers(1, 6 * BLOCK))
        rows.append({
            "timestamp": at_ms,
            "input_length": tokens,
            "output_length": draw(st.integers(1, 2**31 - 1)),
            "hash_ids": draw(st.lists(st.integers(0, 2**63 - 1), min_size=-(-tokens // BLOCK),
                                      max_size=-(-tokens // BLOCK))),
        })  # fmt: skip
    return rows


def as_file(folder, rows):
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@QUICK
@given(rows=trace_rows(), seed=st.integers(0, 5))
def test_a_sound_trace_is_read_as_it_is_and_written_back(tmp_path, rows, seed):
    trace = read_trace(as_file(tmp_path, rows))
    assert trace.input_tokens.tolist() == [row["input_length"] for row in rows]
    assert trace.output_tokens.tolist() == [row["output_length"] for row in rows]
    assert [list(ids) for ids in trace.hash_ids] == [row["hash_ids"] for row in rows]
    order = burst_order(trace.timestamp_ms, seed)
    assert sorted(order) == list(range(len(rows)))
    assert (np.diff(trace.timestamp_ms[order]) >= 0).all()
    kept = slice_trace(trace, rows=len(rows))
    (tmp_path / "again.jsonl").unlink(missing_ok=True)  # of the example before
    again = read_trace(write_rows(trace, kept, tmp_path / "again.jsonl"))
    assert again.hash_ids == trace.hash_ids
    assert (again.timestamp_ms == trace.timestamp_ms).all()


@QUICK
@given(rows=trace_rows(), at=st.integers(0), field=st.sampled_from(
    ["timestamp", "input_length", "output_length", "hash_ids"]), value=json_values)  # fmt: skip
def test_a_trace_with_any_value_in_a_field_is_sound_or_refused(tmp_path, rows, at, field, value):
    number = at % len(rows)
    rows[number][field] = value
    path = as_file(tmp_path, rows)
    try:
        trace = read_trace(path)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith(f"{path}:{number + 1}: ") or field == "timestamp"
    else:
        assert (np.diff(trace.timestamp_ms) >= 0).all() and (trace.input_tokens >= 1).all()


# --- AIPerf ------------------------------------------------------------------------------------

milliseconds = st.floats(0, 1e6) | st.sampled_from([float("nan"), float("inf"), -1.0, None])
tokens = st.integers(-1, 2**33) | st.floats(0, 100) | st.none()


@st.composite
def records(draw):
    """Records of AIPerf, some of them odd, of a seeded run."""
    rows = draw(st.lists(st.integers(0, 30), min_size=1, max_size=10, unique=True))
    found = []
    for row in rows:
        metrics = {
            "time_to_first_token": {"value": draw(milliseconds), "unit": "ms"},
            "request_latency": {"value": draw(milliseconds), "unit": draw(st.sampled_from(
                ["ms", "s", "sec", "us", "ns"]))},
            "usage_prompt_tokens": {"value": draw(tokens)},
            "usage_completion_tokens": {"value": draw(tokens)},
            "usage_prompt_cache_read_tokens": {"value": draw(tokens)},
        }  # fmt: skip
        told = {"session_num": row, "conversation_id": f"session_{row:06d}",
                "request_start_ns": draw(st.integers(0, 2**63 - 1))}  # fmt: skip
        found.append({"metadata": told, "metrics": metrics,
                      "error": draw(st.none() | st.text(max_size=30))})  # fmt: skip
    return found


@QUICK
@given(found=records())
def test_records_of_any_numbers_make_a_sound_table(tmp_path, found):
    path = tmp_path / aiperf.RECORDS
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    table = from_aiperf(aiperf.read_artifacts(tmp_path))
    named = {record["metadata"]["session_num"]: record for record in found}
    assert table["row"].tolist() == list(range(max(named) + 1))
    for row in table.itertuples():
        record = named.get(row.row)
        if record is None:
            assert row.error == "no record"
        elif record["error"] is not None:
            assert row.error and len(row.error.splitlines()) == 1
        elif not isinstance(row.error, str):
            assert math.isfinite(row.latency_ms) and row.output_tokens >= 1
            assert 0 <= row.ttft_ms <= row.latency_ms or math.isnan(row.ttft_ms)


# --- manifests and other YAML ------------------------------------------------------------------


def paths_of(value, path=()):
    """Return the path of every value below a YAML value."""
    below = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in below:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from paths_of(each, (*path, key))


DEPLOY = yaml.safe_load((RECIPE / "deploy.yaml").read_text())
PLACES = list(paths_of(DEPLOY))


@QUICK
@given(place=st.sampled_from(PLACES), value=json_values)
def test_a_manifest_with_any_value_in_a_field_is_read_or_refused(tmp_path, place, value):
    changed = json.loads(json.dumps(DEPLOY))
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    (tmp_path / "perf.yaml").write_bytes((RECIPE / "perf.yaml").read_bytes())
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(changed))
    try:
        found = read_configuration(tmp_path)
        topology = read_topology(found)
        assert topology.gpus >= 1 and flatten(found)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert str(error).startswith(str(tmp_path))


@QUICK
@given(content=st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_yaml_of_plain_values_is_read_as_it_is(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=False))
    (read,) = declare.read_yaml(path)
    assert declare.digest(read) == declare.digest(content)


# --- run folders -------------------------------------------------------------------------------

TOLD = json.loads((RUN / "run.json").read_text())
FIELDS = [place for place in paths_of(TOLD) if place[0] not in ("files", "counts")]


@QUICK
@given(place=st.sampled_from(FIELDS), value=json_values)
def test_a_run_json_with_any_value_in_a_field_is_read_or_refused(tmp_path, place, value):
    told = json.loads(json.dumps(TOLD))
    parent = told
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    (tmp_path / "run.json").write_text(json.dumps(told))
    try:
        manifest = runs.read_manifest(tmp_path)
        assert manifest.trace.rows >= 1 and manifest.repeat >= 1
    except InputError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", ""])
def test_a_run_lists_files_of_its_own_folder_alone(tmp_path, name):
    Path(tmp_path / "outside").write_text("")
    told = json.loads(json.dumps(TOLD))
    told["files"] |= {name: 64 * "0"}
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1" / "run.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"files: .*inside the folder"):
        runs.read_manifest(tmp_path / "r1")


# --- secrets -----------------------------------------------------------------------------------


@QUICK
@given(before=st.text(max_size=40), token=st.text("abcXYZ0189", min_size=8, max_size=40))
def test_a_token_is_hidden_wherever_it_stands(before, token):
    for text in (f"{before} hf_{token} after", f"{before} Authorization: Bearer {token}"):
        assert token not in console.mask(text).removeprefix(before)


def test_the_slo_of_a_run_is_positive():
    with pytest.raises(ValueError, match="greater than 0"):
        Slo(ttft_ms=-1, itl_ms=25)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            '["aiperf", "--api-key",\n  "s3cret", "--ui"]',
            '["aiperf", "--api-key",\n  "***", "--ui"]',
        ),
        ("- --api-key\n  - s3cret\n  - x", "- --api-key\n  - ***\n  - x"),
        ("aiperf --api-key=s3cret -m x", "aiperf --api-key=*** -m x"),
        ("--header 'X-Key: s3cret' --ui", "--header '***' --ui"),
        ("export HF_TOKEN=s3cret; run", "export HF_TOKEN=*** run"),
        ('{"name": "HF_TOKEN", "value": "s3cret"}', '{"name": "HF_TOKEN", "value": "***"}'),
        ("- name: AWS_SECRET\n  value: s3cret\n", "- name: AWS_SECRET\n  value: ***\n"),
        ('{"Authorization": "Bearer s3cret"}', '{"Authorization": "Bearer ***"}'),
        ("MAX_TOKENS=100 of tokens", "MAX_TOKENS=100 of tokens"),
    ],
)
def test_a_secret_is_hidden_as_shells_and_manifests_write_it(text, kept):
    assert console.mask(text) == kept
