"""AIPerf's artifacts from anywhere: shown, compared, imported; nothing half done."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from kvab import metrics, runs
from kvab.aiperf import archives
from kvab.errors import InputError
from kvab.evidence import load_evidence
from kvab.runs.imports import import_run, is_imported
from kvab.runs.jobs import plan_job
from kvab.runs.sources import comparable, read_source
from kvab.study import load_study
from kvab.trace import read_trace

DATA = Path(__file__).parents[1] / "data" / "aiperf"
STUDY = Path("recipes/qwen3-32b/study.yaml")


@pytest.fixture(autouse=True)
def no_trace_at_hand(monkeypatch, tmp_path):
    monkeypatch.delenv("KVAB_TRACE", raising=False)
    monkeypatch.setenv("KVAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def study():
    return load_study(STUDY)


@pytest.fixture
def copy(tmp_path):
    def made(name, version="0.13.0"):
        return Path(shutil.copytree(DATA / version, tmp_path / name))

    return made


def told(source, study):
    return "\n".join(source.told(study.slo))


def cancelled(folder):
    (folder / ".aiperf_results_ready.json").write_text('{"ready": true, "was_cancelled": true}')
    return folder


def packed(folder, to):
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, f"run/{file.name}")
    else:
        with tarfile.open(to, "w:gz") as archive:
            archive.add(folder, "run")
    return to


@pytest.mark.parametrize("name", ["run.zip", "run.tar.gz"])
def test_an_archive_reads_as_its_folder(study, tmp_path, name, recorded_trace):
    plain = read_source(DATA / "0.13.0", study, recorded_trace)
    source = read_source(packed(DATA / "0.13.0", tmp_path / name), study, recorded_trace)
    assert source.requests.equals(plain.requests)
    assert "test_an_archive" not in told(source, study).replace(str(tmp_path), "")


def tar_of(path, name, content=b"", **fields):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for field, value in fields.items():
            setattr(member, field, value)
        archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("../outside.jsonl", {}, "leaves the folder"),
        ("/outside.jsonl", {}, "leaves the folder"),
        ("link", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
    ],
)
def test_archives_that_leave_their_folder_are_refused(study, tmp_path, name, fields, said):
    with pytest.raises(InputError, match=said):
        read_source(tar_of(tmp_path / "odd.tgz", name, **fields), study)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.tgz"]


def test_an_archive_bomb_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    bomb = tar_of(tmp_path / "bomb.tgz", "profile_export.jsonl", bytes(20 << 20))
    with pytest.raises(InputError, match="unpacks to over 200 times its size"):
        read_source(bomb, study)


def test_what_is_no_archive_and_a_cut_off_one_are_refused(study, tmp_path, recorded_trace):
    whole = packed(DATA / "0.13.0", tmp_path / "run.tgz").read_bytes()
    (tmp_path / "cut.tgz").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "cut.tgz", recorded_trace):
        with pytest.raises(InputError, match=f"{path.name}: expected a tar or zip archive"):
            read_source(path, study)


def test_several_runs_in_one_archive_are_refused(study, tmp_path):
    with pytest.raises(InputError, match="got those of 3"):
        read_source(packed(DATA, tmp_path / "all.tgz"), study)


def test_a_summary_alone_says_what_it_can(study, copy):
    whole = metrics.summarize(read_source(DATA / "0.13.0", study).requests, study.slo)
    folder = copy("summary")
    (folder / "profile_export.jsonl.gz").unlink()
    source = read_source(folder, study)
    document = source.summary(study.slo)
    assert set(document) == set(whole)
    for key in ("ttft_ms", "latency_ms", "itl_ms"):
        assert document[key] == pytest.approx(whole[key], rel=1e-9)
    assert document["requests"] == {"expected": 60, "received": 60, "errors": 0, "one_token": None}
    assert document["good"]["count"] == whole["good"]["count"]
    assert "no pairs and no intervals" in told(source, study)
    with pytest.raises(InputError, match=r"mean TTFT 1,428\.7 ms.*need profile_export.jsonl"):
        comparable([[source], [source]])


def test_a_cancelled_run_is_shown_as_partial_and_not_compared(study, copy):
    whole, part = (read_source(each, study) for each in (copy("a"), cancelled(copy("b"))))
    document = part.summary(study.slo)
    assert (document["status"], document["reason"]) == ("partial", "the run was cancelled")
    assert "status" not in whole.summary(study.slo)
    with pytest.raises(InputError, match=r"partial.*no verdict can rest on it"):
        comparable([[whole], [part]])


def test_without_a_trace_runs_are_compared_on_one_clock(study):
    arms = [[read_source(DATA / version, study)] for version in ("0.9.0", "0.13.0")]
    (first,), (second,) = comparable(arms)
    assert first["arrival_ms"].tolist() == second["arrival_ms"].tolist()
    assert "when AIPerf issued each request" in told(arms[0][0], study)


def test_runs_of_other_schedules_are_not_compared(study, copy):
    folder = copy("slow")
    file = folder / "profile_export.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    for record in records:
        record["metadata"]["credit_issued_ns"] += 10**9 * record["metadata"]["session_num"]
    file.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    arms = [[read_source(DATA / "0.9.0", study)], [read_source(folder, study)]]
    with pytest.raises(InputError, match="expected one schedule"):
        comparable(arms)


def test_an_import_is_a_run_as_any_other(study, checkout, recorded_trace):
    for name, version in (("agg-round-robin", "0.9.0"), ("disagg-kv-router", "0.13.0")):
        path, said = import_run(DATA / version, STUDY, "mine", name, trace=recorded_trace)
    run = runs.read_run(path)
    assert run.manifest.status == "complete"
    assert (run.manifest.trace.rows, run.manifest.versions["aiperf"]) == (60, "0.13.0")
    assert run.manifest.inferred[0] == "trace: trace, which is not the study's"
    assert all(any(line in each for each in said) for line in run.manifest.inferred)
    assert (run.path / "artifacts" / "profile_export.jsonl.gz").is_file()
    evidence = load_evidence(STUDY, "mine", "runs")
    assert list(evidence.runs) == ["agg-round-robin", "disagg-kv-router"]
    assert evidence.comparison.pairs == 60
    assert is_imported(study, "mine", checkout / "runs")


def test_an_import_to_a_declared_cluster_is_not_replayed_again(study, checkout, recorded_trace):
    trace = read_trace(recorded_trace)
    path, _ = import_run(
        DATA / "0.13.0", STUDY, "example-h200", "agg-round-robin", trace=recorded_trace
    )
    job = plan_job(study, "example-h200", "agg-round-robin", 1, None, trace, checkout / "runs")
    assert job.path == path
    assert runs.state(path, job.depends_on())[0] == "complete"


def test_a_partial_import_says_so(checkout, copy, recorded_trace):
    path, _ = import_run(
        cancelled(copy("b")), STUDY, "mine", "agg-round-robin", trace=recorded_trace
    )
    manifest = runs.read_manifest(path)
    assert (manifest.status, manifest.reason) == ("partial", "the run was cancelled")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cluster": "simulated-h200"}, "choose a new name"),
        ({"cluster": "../up"}, "expected a name such as"),
        ({"configuration": "fast"}, "no configuration 'fast'"),
        ({"repeat": 9}, "repeat from 1"),
        ({"trace": None}, "name it with --trace"),
        ({"rows": 50}, "expected rows 0 to 49, got a record of row 59"),
        ({"rows": 70}, "trace has 60 rows"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(checkout, given, said, recorded_trace):
    arguments = {
        "cluster": "mine",
        "configuration": "agg-round-robin",
        "trace": recorded_trace,
        **given,
    }
    with pytest.raises(InputError, match=said):
        import_run(DATA / "0.13.0", STUDY, **arguments)
    assert not (checkout / "runs").exists()
