"""Bundles: whole, the same elsewhere, silent about hosts, and refused when they are not whole."""

import io
import json
import shutil
import tarfile

import pandas as pd
import pyarrow as pa
import pytest

from kvab.book.build import report_bundle
from kvab.book.publish import CONTENTS, bundle, unpacked
from kvab.errors import InputError
from kvab.pages.evidence import load_evidence
from kvab.runs import folder as runs
from kvab.study import root

STUDY = "recipes/qwen3-32b/study.yaml"


def packed(paths, out, **given):
    bundle(root() / STUDY, paths, out, **given)
    return out


def content(path):
    """Return every file of a bundle by its name."""
    with (
        pa.input_stream(str(path), compression="zstd") as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        return {member.name: archive.extractfile(member).read() for member in archive}


def repacked(files, path):
    """Write files as a bundle, whatever they say."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    path.write_bytes(pa.compress(plain.getvalue(), codec="zstd", asbytes=True))
    return path


@pytest.fixture(scope="module")
def whole(small_runs, tmp_path_factory):
    return packed([small_runs], tmp_path_factory.mktemp("bundle") / "whole.tar.zst")


def test_what_comes_out_says_the_same_as_what_went_in(small_runs, whole):
    there = load_evidence(STUDY, "simulated-h200", small_runs)
    with unpacked(whole) as (folder, contents):
        assert contents.clusters == ["simulated-h200"]
        back = load_evidence(folder / contents.study, "simulated-h200", folder / "runs")
        pd.testing.assert_frame_equal(back.requests, there.requests)
        pd.testing.assert_frame_equal(back.workload.table, there.workload.table)
        assert back.comparison.to_json() == there.comparison.to_json()


def test_equal_runs_make_equal_bundles(small_runs, whole, tmp_path):
    assert packed([small_runs], tmp_path / "b.tar.zst").read_bytes() == whole.read_bytes()


def test_a_part_of_the_runs_may_be_packed(small_runs, tmp_path):
    one = small_runs / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    names = content(packed([one], tmp_path / "b.tar.zst"))
    assert sum(name.endswith("run.json") for name in names) == 1


def test_names_of_machines_stay_behind_unless_asked_for(small_runs, tmp_path):
    source = small_runs / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    run = runs.read_run(source)
    pods = {"agg-frontend-7f": {"component": "Frontend", "node": "gpu-a.corp.example"}}
    told = run.manifest.model_dump(by_alias=True, exclude={"files"})
    told |= {"host": {"pods": pods, "restarts": {"agg-frontend-7f": 0}}}
    told["cluster"] = told["cluster"] | {"context": "corp-prod"}
    told["depends_on"] = told["depends_on"] | {"nodes": "pool=corp"}
    told |= {"kind": "kubernetes", "reason": "agg-frontend-7f restarted on gpu-a.corp.example"}
    place = tmp_path / "runs"
    copy = place / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    files = {name: source / name for name in run.manifest.files}
    files["diagnostics/node.log"] = b"gpu-a.corp.example"
    runs.write_run(copy, told, files)
    (place / "qwen3-32b" / "workloads").symlink_to(small_runs / "qwen3-32b" / "workloads")
    secret = (b"corp", b"agg-frontend-7f")
    silent = content(packed([place], tmp_path / "silent.tar.zst"))
    assert not [n for n, text in silent.items() if any(word in text for word in secret)]
    assert b'"node": "node-0"' in silent[f"runs/{copy.relative_to(place)}/run.json"]
    asked = content(packed([place], tmp_path / "asked.tar.zst", hosts=True))
    assert b"gpu-a.corp.example" in asked[f"runs/{copy.relative_to(place)}/run.json"]


def test_what_is_not_whole_is_refused(whole, tmp_path):
    files = content(whole)
    table = next(name for name in files if name.endswith("requests.parquet"))
    wrong = {
        "altered: bundle.json says sha256": files | {table: files[table][:-1] + b"?"},
        "missing, though": {name: text for name, text in files.items() if name != table},
        "is not listed": files | {"runs/more": b""},
        "no readable bundle.json": {name: text for name, text in files.items() if name != CONTENTS},
        "outside the destination": files | {"../out": b""},
    }
    for said, held in wrong.items():
        path = repacked(held, tmp_path / "wrong.tar.zst")
        with pytest.raises(InputError, match=rf"wrong\.tar\.zst.*{said}"), unpacked(path):
            pass
    path.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match="can be unpacked"), unpacked(path):
        pass


def test_a_bundle_of_another_schema_is_refused(whole, tmp_path):
    files = content(whole)
    told = json.loads(files[CONTENTS]) | {"schema": 2}
    path = repacked(files | {CONTENTS: json.dumps(told).encode()}, tmp_path / "next.tar.zst")
    with pytest.raises(InputError, match=r"no readable bundle\.json"), unpacked(path):
        pass


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing.tar.zst", "expected a folder of runs"), ("b.zip", r"ends in \.tar")],
)
def test_without_runs_or_with_another_ending_nothing_is_written(tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        packed([tmp_path], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_studies_that_are_left_out_are_named(small_runs, tmp_path):
    folder = shutil.copytree(small_runs, tmp_path / "runs")
    shutil.copytree(folder / "qwen3-32b", folder / "other")
    _, left = bundle(root() / STUDY, [folder], tmp_path / "both.tar.zst")
    assert len(left) == 1
    assert left[0].startswith(f"{folder / 'other'}: left out, a bundle holds one study")
    inside = folder / "qwen3-32b" / "simulated-h200"
    assert bundle(root() / STUDY, [inside], tmp_path / "one.tar.zst")[1] == []


def test_a_cluster_that_a_bundle_does_not_hold_is_rejected(whole, tmp_path):
    with pytest.raises(InputError, match=r"holds simulated-h200, not mine; name one of them"):
        report_bundle(whole, "mine", tmp_path)
