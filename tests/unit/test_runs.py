"""Run folders: whole or absent, verified when read, planned by what they depend on."""

import json

import numpy as np
import pytest

from kvab.errors import InputError
from kvab.requests.table import typed
from kvab.runs import folder as runs

FIELDS = {
    "study": "s",
    "study_version": 1,
    "study_digest": "d",
    "cluster": {"name": "c"},
    "kind": "simulated",
    "configuration": "a",
    "repeat": 1,
    "order": "file",
    "seed": 0,
    "trace": {"name": "t", "sha256": "0", "synthetic": False, "rows": 3, "total_rows": 3},
    "start": "2026-01-01T00:00:00Z",
    "end": "2026-01-01T00:01:00Z",
    "versions": {},
    "host": {},
    "counts": {"expected": 3, "received": 3, "errors": 0},
    "status": "complete",
    "depends_on": {"deploy.yaml": "1", "order": 0},
}


def table(rows=3):
    return typed(
        {
            "row": np.arange(rows),
            "arrival_ms": np.arange(rows) * 3000.0,
            "input_tokens": np.full(rows, 10),
            "output_tokens": np.full(rows, 5),
            "requested_output_tokens": np.full(rows, 5),
            "ttft_ms": np.full(rows, 100.0),
            "latency_ms": np.full(rows, 200.0),
        }
    )


def write(path, fields=None, requests=None):
    files = {"requests.parquet": runs.requests_bytes(table() if requests is None else requests)}
    return runs.write_run(path, {**FIELDS, **(fields or {})}, files)


def test_what_was_written_is_read_back(tmp_path):
    run = runs.read_run(write(tmp_path / "r1"))
    assert run.requests.equals(table())
    assert run.manifest.counts.expected == 3


def test_a_run_leaves_nothing_beside_it(tmp_path):
    write(tmp_path / "r1")
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]


def test_a_rerun_moves_the_complete_run_aside(tmp_path):
    write(tmp_path / "r1")
    write(tmp_path / "r1", {"seed": 7})
    (aside,) = tmp_path.glob("r1.set-aside-*")
    assert runs.read_run(aside).manifest.seed == 0
    assert runs.read_run(tmp_path / "r1").manifest.seed == 7


def test_a_manifest_with_a_wrong_field_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="repeat"):
        write(tmp_path / "r1", {"repeat": "first"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        write(tmp_path / "file" / "r1")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: (p / "requests.parquet").unlink(), r"requests\.parquet: missing"),
        (lambda p: (p / "requests.parquet").write_bytes(b"x"), r"requests\.parquet: altered"),
        (lambda p: (p / "run.json").unlink(), "expected a run folder with run.json"),
        (lambda p: (p / "run.json").write_text("{"), r"run\.json: .*JSON"),
        (lambda p: (p / "run.json").write_text("{}"), r"run\.json: study"),
    ],
)
def test_a_damaged_folder_is_refused_by_file(tmp_path, spoil, said):
    path = write(tmp_path / "r1")
    spoil(path)
    with pytest.raises(InputError, match=said) as caught:
        runs.read_run(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_run_json_is_refused(tmp_path):
    path = write(tmp_path / "r1") / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": 1}))
    with pytest.raises(InputError, match="colour"):
        runs.read_run(tmp_path / "r1")


def test_fewer_rows_than_the_manifest_says_are_refused(tmp_path):
    path = write(tmp_path / "r1", requests=table(2))
    with pytest.raises(InputError, match="says 3 rows, got 2"):
        runs.read_run(path)


def test_a_row_that_stands_twice_is_refused(tmp_path):
    twice = table()
    twice.loc[2, "row"] = 1
    path = write(tmp_path / "r1", requests=twice)
    with pytest.raises(InputError, match="row 1 stands twice"):
        runs.read_run(path)


def test_state_names_what_changed(tmp_path):
    path = write(tmp_path / "r1")
    assert runs.state(path, {"deploy.yaml": "1", "order": 0})[0] == "complete"
    assert runs.state(path, {"deploy.yaml": "2", "order": 0}) == (
        "changed",
        "changed since: deploy.yaml",
    )
    assert runs.state(tmp_path / "r2", {})[0] == "missing"


def test_state_of_a_failed_run_is_its_reason(tmp_path):
    path = write(tmp_path / "r1", {"status": "failed", "reason": "a worker died"})
    assert runs.state(path, FIELDS["depends_on"]) == ("failed", "a worker died")


def test_a_run_set_aside_comes_back_when_it_serves_again(tmp_path):
    write(tmp_path / "r1")
    write(tmp_path / "r1", {"depends_on": {"deploy.yaml": "2", "order": 0}})
    assert runs.find_state(tmp_path / "r1", {"deploy.yaml": "1", "order": 0})[0] == "complete"
    assert runs.read_manifest(tmp_path / "r1").depends_on["deploy.yaml"] == "1"
    assert len(list(tmp_path.glob("r1.set-aside-*"))) == 1
