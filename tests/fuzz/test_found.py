"""What the fuzzer found: each input is refused in one line, as its defect was fixed."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from readers import BETWEEN, READERS, SLO, SUM

from kvab import declarations as declare
from kvab.errors import InputError
from kvab.requests import aiperf
from kvab.requests.matching import from_aiperf
from kvab.runs.folder import read_run

YAML = {
    "values nested too deeply": "a: " + 500 * "[",
    "inside itself": "a: &a [*a]",
    "aliases that unfold without end": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{y}: &{y} [{','.join(10 * [f'*{x}'])}]\n"
              for x, y in zip("abcdefgh", "bcdefghi", strict=True)),
    "a date": "a: 2026-01-01",
    "a date that is none": "a: 2026-02-30",
    "a key that is a number": "1: x\na: y",
    "a key that is a list": "? [a]\n: b",
    "half a character": 'a: "\\ud800"',
    "an object of Python": "a: !!python/object/apply:os.system [true]",
    "bytes": "a: !!binary aGVsbG8=",
}  # fmt: skip


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_that_json_cannot_hold_is_refused(tmp_path, text):
    path = tmp_path / "any.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        declare.read_yaml(path)
    assert str(raised.value).startswith(str(path))
    assert len(str(raised.value).splitlines()) == 1


def test_aliases_and_equal_keys_of_two_mappings_are_read(tmp_path):
    path = tmp_path / "any.yaml"
    path.write_text("a: &a {x: 1, y: [1, 2.5, null, true]}\nb: *a\n")
    ((found),) = declare.read_yaml(path)
    assert found["b"] == found["a"] == {"x": 1, "y": [1, 2.5, None, True]}


def refused(name, folder, change):
    """Return why a reader refuses its first seed, changed."""
    reader = READERS[name](folder)
    data = next(reader.seeds())
    reader.read(data)
    changed = change(data)
    assert changed != data
    with pytest.raises(InputError) as raised:
        reader.read(changed)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_a_table_that_is_no_parquet_is_refused(tmp_path):
    said = refused("runs", tmp_path, lambda data: data.partition(BETWEEN)[0] + BETWEEN + b"PAR1")
    assert "requests.parquet: expected a requests table" in said


@pytest.mark.parametrize(("count", "low"), [("repeat", 0), ("rows", -1), ("received", -4)])
def test_counts_below_what_can_be_counted_are_refused(tmp_path, count, low):
    def change(data):
        return re.sub(rb'"%b": \d+' % count.encode(), b'"%b": %d' % (count.encode(), low), data)

    assert "greater than or equal" in refused("runs", tmp_path, change)


def test_a_row_number_beyond_all_memory_is_refused(tmp_path):
    def change(data):
        records = data.partition(BETWEEN)[0].splitlines()
        records[0] = records[0].replace(b'"session_0000', b'"session_99999999990000')
        return b"\n".join(records) + b"\n"

    reader = READERS["aiperf"](tmp_path)
    data = next(data for data in reader.seeds() if b'"session_0000' in data)
    (tmp_path / "profile_export.jsonl").write_bytes(change(data))
    with pytest.raises(InputError, match="at most 1,000,000 requests"):
        from_aiperf(aiperf.read_artifacts(tmp_path))


def test_a_record_nested_too_deeply_is_refused(tmp_path):
    nested = b'{"metadata": {}, "metrics": {}, "error": ' + 5000 * b'{"a":' + b"\n"
    said = refused("aiperf", tmp_path, lambda data: nested)
    assert "profile_export.jsonl:1: expected a record of AIPerf" in said


def test_an_override_that_is_no_number_is_refused(tmp_path):
    def change(data):
        return data.replace(b'"max_position_embeddings":131072', b'"max_position_embeddings":"x"')

    assert "--max-model-len" in refused("manifests", tmp_path, change)


def test_an_argument_of_several_lines_is_quoted_in_one(tmp_path):
    def change(data):
        return data.replace(b'{"rope_scaling":', b'{"rope_scaling"\n\n\n')

    assert "expected a JSON object" in refused("manifests", tmp_path, change)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [(b"limits: {}", b"limits: 5", "Frontend.resources.limits: expected a mapping"),
     (b"limits: {}", b"limits: {gpu: some}", "limits.gpu: expected a number of devices"),
     (b"envs:", b"envs: 5\n      more:", "Frontend.envs: expected a list, got 5"),
     (b"        image: python", b"        is: python", "containers.0.image: expected a value, got"),
     (b"        env:\n", b"        env:\n        - RUN_ID\n", "env.0: expected a mapping")],
)  # fmt: skip
def test_manifests_that_could_not_be_applied_are_refused(tmp_path, old, new, said):
    assert said in refused("manifests", tmp_path, lambda data: data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"limits: {}", b"limits:"), (b"volumes:\n", b"volumes:\n      - name: perf-cache\n")],
)
def test_manifests_with_nothing_where_a_mapping_may_stand_can_be_applied(tmp_path, old, new):
    reader = READERS["manifests"](tmp_path)
    changed = next(reader.seeds()).replace(old, new, 1)
    assert new in changed
    reader.read(changed)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"clusters": [\n  "c"\n ]', b'"clusters": []'), (b'"c"', b'"d"'), (b"/c/", b"/<b>/"),
     (b'"study": "recipes/s/study.yaml"', b'"study": "../../study.yaml"')],
)  # fmt: skip
def test_a_bundle_that_is_not_what_it_says_is_refused(tmp_path, old, new):
    assert "got others" in refused("bundle", tmp_path, lambda data: data.replace(old, new))


def test_a_run_of_a_seed_is_read_whole(tmp_path):
    reader = READERS["runs"](tmp_path)
    data = next(reader.seeds())
    assert SUM in data and json.loads(data.partition(BETWEEN)[0])["repeat"] == 1
    reader.read(data)
    assert len(read_run(tmp_path / "run").requests) == 4


@pytest.mark.parametrize("count", ["{}", "NaN", "Infinity", "1" + 400 * "0", "2.5", '"x"'])
def test_a_count_that_is_no_number_of_requests_is_refused(tmp_path, count):
    def change(data):
        return data.replace(b'"avg": 3.0', f'"avg": {count}'.encode())

    assert "they are of different runs" in refused("aiperf", tmp_path, change)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + 400 * "0", "[1]", "true", '"x"'])
def test_numbers_of_a_summary_that_are_none_are_not_known(tmp_path, value):
    entry = f'{{"unit": ["ms"], "avg": {value}}}'
    summary = f'{{"request_latency": {entry}, "total_osl": {entry}}}'
    (tmp_path / aiperf.SUMMARY).write_text(summary)
    found = aiperf.summary_document(aiperf.read_artifacts(tmp_path), SLO)
    assert found["output_tokens_per_s"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("series", ['"x"', '[{"stats": 1}]', "[1]", '[{"stats": {"total": "x"}}]'])
def test_counters_of_a_router_that_are_none_are_refused(tmp_path, series):
    text = f'{{"metrics": {{"dynamo_component_kv_cache_events_applied": {{"series": {series}}}}}}}'
    (tmp_path / "server_metrics_export.json").write_text(text)
    with pytest.raises(InputError, match="expected series of numbers"):
        aiperf.router_counters(tmp_path)
