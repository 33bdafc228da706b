"""Clusters side by side: never pooled, and silent where a gate is red."""

import os
import shutil

import pytest

from kvab.errors import InputError
from kvab.pages import reproduce
from kvab.pages.evidence import load_evidence
from kvab.pages.reproduce import WITHHELD, load_clusters
from kvab.runs import folder as runs
from kvab.stats.robustness import AGREE, DIFFER, UNKNOWN
from kvab.study import root

STUDY = "recipes/qwen3-32b/study.yaml"
PLACE = ("qwen3-32b", "live-cpu", "disagg-kv-router", "r1")


@pytest.fixture
def sound(tmp_path):
    """The published live runs alone: 600 rows that pass the gate."""
    for name in ("live-cpu", "workloads"):
        from_ = root() / "book" / "published" / "qwen3-32b" / name
        shutil.copytree(from_, tmp_path / "sound" / "qwen3-32b" / name)
    return tmp_path / "sound"


@pytest.fixture
def doctored(sound, tmp_path):
    """The same runs, with one answer shorter than what was asked for."""
    folder = shutil.copytree(sound, tmp_path / "doctored")
    path = folder.joinpath(*PLACE)
    run = runs.read_run(path)
    files = {name: (path / name).read_bytes() for name in run.manifest.files}
    table = run.requests.copy()
    table.loc[3, "output_tokens"] -= 1
    files["requests.parquet"] = runs.requests_bytes(table)
    shutil.rmtree(path)
    runs.write_run(path, run.manifest.model_dump(by_alias=True, exclude={"files"}), files)
    return folder


def test_a_cluster_with_a_red_gate_agrees_with_nothing(doctored, sound):
    found = load_clusters(STUDY, doctored, sound)
    assert list(found.places) == ["live-cpu", "live-cpu (published)"]
    assert found.verdicts["live-cpu"] == WITHHELD
    assert found.verdicts["live-cpu (published)"] != WITHHELD
    assert set(found.agreements["live-cpu"]["verdict"]) == {WITHHELD}
    said = reproduce.learned(found) + reproduce.overview_table(found).caption
    assert "withheld" in said and "withheld on 1" in said
    assert not [word for word in ("agrees", "differs", UNKNOWN) if word in said]
    shown = reproduce.agreement_table(found).frame["gap"].tolist()
    assert all(WITHHELD in each for each in shown)


def test_where_the_reference_is_red_nothing_agrees_with_it(doctored, sound):
    found = load_clusters(STUDY, sound, doctored)
    assert set(found.agreements["live-cpu"]["verdict"]) == {WITHHELD}


@pytest.mark.parametrize("name", ["requests.parquet", "manifests/deploy.yaml"])
def test_a_file_altered_after_its_run_was_read_and_kept_is_noticed(
    sound, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("KVAB_CACHE", str(tmp_path / "cache"))
    first = load_evidence(STUDY, "live-cpu", sound)
    with monkeypatch.context() as once:
        once.setattr("kvab.runs.folder.read_run", None)  # kept: not read again
        assert load_evidence(STUDY, "live-cpu", sound).key == first.key
    path = sound.joinpath(*PLACE, name)
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InputError, match=rf"{path}: altered"):
        load_evidence(STUDY, "live-cpu", sound)


def test_equal_runs_are_one_cluster_and_have_nothing_to_agree_with(sound):
    found = load_clusters(STUDY, sound, sound)
    assert list(found.places) == ["live-cpu"] and not found.others
    assert "nothing to compare them with" in reproduce.whose(found)


def test_a_study_with_nothing_published_compares_with_its_own_first(sound, tmp_path):
    found = load_clusters(STUDY, sound, tmp_path)
    assert found.known == "live-cpu" and not found.others
    with pytest.raises(InputError, match="no published runs"):
        load_clusters(STUDY, tmp_path, tmp_path)


def test_the_card_explains_its_words():
    assert all(word in reproduce.RULE.lower() for word in (AGREE, DIFFER, UNKNOWN))


def test_one_odd_cluster_is_left_out_with_a_notice(sound, tmp_path):
    place = shutil.copytree(sound / "qwen3-32b" / "live-cpu", sound / "qwen3-32b" / "odd")
    path = place / "disagg-kv-router" / "r1"
    run = runs.read_run(path)
    files = {name: (path / name).read_bytes() for name in run.manifest.files}
    files["requests.parquet"] = runs.requests_bytes(run.requests.iloc[:590])
    manifest = run.manifest.model_dump(by_alias=True, exclude={"files"})
    manifest["trace"]["rows"] = 590
    manifest["counts"] = {"expected": 590, "received": 590, "errors": 0}
    shutil.rmtree(path)
    runs.write_run(path, manifest, files)
    found = load_clusters(STUDY, sound, sound)
    assert list(found.places) == ["live-cpu"]
    assert found.left_out["odd"].startswith(f"{place}: left out of the book")
    assert "move the folder away" in found.left_out["odd"]
    assert "Left out, as its runs cannot be compared: odd." in reproduce.whose(found)
