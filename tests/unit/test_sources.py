"""AIPerf's artifacts from anywhere: shown, compared, imported; nothing half done."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from kvab.errors import InputError
from kvab.pages.evidence import load_evidence
from kvab.pages.printed import comparison_lines, summary_lines
from kvab.requests import archives, metrics
from kvab.runs import folder as runs
from kvab.runs import importing, sources
from kvab.runs.importing import is_imported
from kvab.runs.replay import plan_job
from kvab.runs.sources import Hints, comparable, paired, study_of, terms
from kvab.stats.compare import compare, compare_unpaired
from kvab.study import Slo, load_study, new_study
from kvab.trace.reading import read_trace

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


def read_source(path, study, trace=None, expected=None, counts=None):
    return sources.read_source(path, Hints(study, trace, expected, counts))


def import_runs(path, study, cluster, configuration, repeat=1, trace=None, rows=None, counts=None):
    hints = Hints(load_study(study), trace, rows, counts)
    return importing.import_runs(path, hints, cluster, configuration, repeat)


def told(source, study):
    return "\n".join(source.remarks(study.slo))


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
        ("../outside.jsonl", {}, "outside the destination"),
        ("/outside.jsonl", {}, "expected a record a line, got none"),  # taken for outside.jsonl
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
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path / "cut.tgz", tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=f"{path.name}: expected a tar or zip archive"):
            read_source(path, study)
    with pytest.raises(InputError, match=r"trace\.jsonl:1: expected a record of AIPerf"):
        read_source(recorded_trace, study)


def test_several_runs_in_one_archive_are_refused(study, tmp_path):
    with pytest.raises(InputError, match="got those of 6"):
        read_source(packed(DATA, tmp_path / "all.tgz"), study)


def test_a_summary_alone_says_what_it_can(study, copy):
    whole = metrics.summarize(read_source(DATA / "0.13.0", study).requests, study.slo)
    folder = copy("summary")
    (folder / "profile_export.jsonl.gz").unlink()
    source = read_source(folder, study)
    document = source.summary(study.slo)
    assert set(document) == {*whole, "token_counts"}
    for key in ("ttft_ms", "latency_ms", "itl_ms"):
        assert document[key] == pytest.approx(whole[key], rel=1e-9)
    counts = {"expected": 60, "received": 60, "errors": 0, "overload": 0, "one_token": None}
    assert document["requests"] == counts
    assert document["good"]["count"] == whole["good"]["count"]
    assert "no pairs and no intervals" in told(source, study)
    with pytest.raises(InputError, match=r"only AIPerf's summary.*need profile_export.jsonl"):
        comparable([[source], [source]])


def shed(folder, statuses):
    """Fail the first requests of artifacts with these HTTP statuses; return the folder."""
    path = folder / "profile_export.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for record, status in zip(records, statuses, strict=False):
        record["error"] = {"code": status, "type": "", "message": "overloaded"}
        record["metrics"] = {}
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))
    path = folder / "profile_export_aiperf.json"
    summary = json.loads(path.read_text())
    summary["request_count"]["avg"] = len(records) - len(statuses)
    summary["error_request_count"] = {"unit": "requests", "avg": len(statuses)}
    summary["error_summary"] = [
        {"error_details": {"code": status}, "count": statuses.count(status)}
        for status in set(statuses)
    ]
    path.write_text(json.dumps(summary))
    return folder


def test_requests_rejected_for_overload_are_told_with_and_without_records(study, copy):
    folder = shed(copy("shed"), [503, 529, 529, 500])
    source = read_source(folder, study)
    assert source.summary(study.slo)["requests"] | {"one_token": 0} == {
        "expected": 60, "received": 56, "errors": 4, "overload": 3, "one_token": 0,
    }  # fmt: skip
    (line,) = (value for name, value in summary_lines(source, study.slo) if name == "requests")
    assert line == "56 of 60, 4 failed, 3 of them rejected for overload (HTTP 503 or 529)"
    (folder / "profile_export.jsonl.gz").unlink()
    assert read_source(folder, study).summary(study.slo)["requests"]["overload"] == 3
    path = folder / "profile_export_aiperf.json"
    path.write_text(path.read_text().replace("error_summary", "another_key"))
    assert read_source(folder, study).summary(study.slo)["requests"]["overload"] is None


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
    with pytest.raises(InputError, match="expected one schedule with"):
        comparable(arms)


def test_an_import_is_a_run_as_any_other(study, checkout, recorded_trace):
    for name, version in (("agg-round-robin", "0.9.0"), ("disagg-kv-router", "0.13.0")):
        ((path, said),) = import_runs(DATA / version, STUDY, "mine", name, trace=recorded_trace)
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
    ((path, _),) = import_runs(
        DATA / "0.13.0", STUDY, "example-h200", "agg-round-robin", trace=recorded_trace
    )
    job = plan_job(study, "example-h200", "agg-round-robin", 1, None, trace, checkout / "runs")
    assert job.path == path
    assert runs.state(path, job.depends_on())[0] == "complete"


def test_a_partial_import_says_so(checkout, copy, recorded_trace):
    ((path, _),) = import_runs(
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
        ({"repeat": 99}, "repeat from 1"),
        ({"trace": None}, "name it with --trace"),
        ({"rows": 50}, "expected rows 0 to 49, got a record of row 59"),
        ({"rows": 70}, "--rows 70: AIPerf sent 60 requests"),
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
        import_runs(DATA / "0.13.0", STUDY, **arguments)
    assert not (checkout / "runs").exists()


# --- token counts ------------------------------------------------------------------------------


def test_counts_that_differ_are_said_with_both_figures(study):
    slo = Slo(ttft_ms=100, itl_ms=15)
    source = read_source(DATA / "other-counts", study)
    aiperf = source.artifacts.summary
    said = "\n".join(source.remarks(slo))
    assert "answers have 1,203 tokens by the server, 706 by AIPerf" in said
    assert f"By AIPerf's own: ITL mean {aiperf['inter_token_latency']['avg']:.1f} ms" in said
    assert "good 0.0 % (--token-counts client takes those)" in said
    assert source.summary(slo)["token_counts"] == "server"


def test_counts_of_the_client_give_the_figures_of_aiperf(study):
    slo = Slo(ttft_ms=100, itl_ms=15)
    source = read_source(DATA / "other-counts", study, counts="client")
    document, aiperf = source.summary(slo), source.artifacts.summary
    assert document["token_counts"] == "client"
    assert document["itl_ms"]["mean"] == pytest.approx(aiperf["inter_token_latency"]["avg"])
    assert document["good"]["count"] == aiperf["good_request_count"]["avg"]


def test_counts_that_agree_are_not_spoken_of(study):
    assert "token counts" not in told(read_source(DATA / "0.13.0", study), study)


def test_counts_that_nobody_gave_are_rejected(study):
    with pytest.raises(InputError, match="no record has the server's count"):
        read_source(DATA / "0.6.0", study, counts="server")


def test_a_run_keeps_whose_counts_it_was_written_with(study, checkout, recorded_trace):
    ((path, _),) = import_runs(
        DATA / "0.13.0", STUDY, "mine", "agg-round-robin", trace=recorded_trace, counts="client"
    )
    assert runs.read_manifest(path).token_counts == "client"
    assert read_source(path, study, counts="client").token_counts == "client"
    with pytest.raises(InputError, match="--token-counts server: the run was written with those"):
        read_source(path, study, counts="server")


# --- by what a run is judged -------------------------------------------------------------------


def judged(runs_read, study, named=False, ttft_ms=None, itl_ms=None):
    by = terms(runs_read, study, named, ttft_ms, itl_ms)
    return by.slo.ttft_ms, by.slo.itl_ms, by.basis


def with_goodput(folder, **bounds):
    file = folder / "profile_export_aiperf.json"
    summary = json.loads(file.read_text())
    summary["input_config"]["slos"] = bounds or None
    file.write_text(json.dumps(summary))
    return folder


def test_bounds_are_the_commands_then_the_runs_then_aiperfs_then_the_studys(
    study, copy, checkout, recorded_trace
):
    own = study.model_copy(update={"slo": Slo(ttft_ms=1000, itl_ms=30)})
    ((path, _),) = import_runs(
        DATA / "0.13.0", STUDY, "mine", "agg-round-robin", trace=recorded_trace
    )
    run = read_source(path, study)
    aiperf = read_source(with_goodput(copy("a"), time_to_first_token=500.0), study)
    silent = read_source(with_goodput(copy("b")), study)
    assert judged([run], own) == (2000, 25, "of the run's own study")
    assert judged([run, aiperf], own) == (2000, 25, "of the run's own study")
    assert judged([run], own, ttft_ms=700, itl_ms=20) == (700, 20, "as named")
    assert judged([run], own, named=True)[:2] == (1000, 30)
    assert judged([silent], own) == (1000, 30, "of the study qwen3-32b, by default")
    assert judged([aiperf], own) == (
        500, 30, "TTFT of AIPerf's --goodput, ITL of the study qwen3-32b, by default",
    )  # fmt: skip


def test_a_bound_of_aiperf_that_is_not_judged_is_named(study, copy):
    source = read_source(with_goodput(copy("a"), request_latency=5000.0), study)
    assert "AIPerf's --goodput also bounds request_latency: not judged" in told(source, study)


def test_runs_made_for_different_bounds_need_bounds_named(study, copy):
    pair = [
        read_source(with_goodput(copy(str(ms)), time_to_first_token=ms), study)
        for ms in (500.0, 900.0)
    ]
    with pytest.raises(InputError, match=r"different bounds.*500 ms and 900 ms.*--ttft-ms"):
        judged(pair, study)
    assert judged(pair, study, ttft_ms=900)[0] == 900
    with pytest.raises(InputError, match="--ttft-ms: expected milliseconds above 0, got -1"):
        judged(pair, study, ttft_ms=-1)


def test_a_run_folder_is_read_by_its_own_study(checkout, recorded_trace):
    for name in ("qwen3-32b", "other"):
        study = checkout / "recipes" / name / "study.yaml"
        if name == "other":
            new_study(name, STUDY)
            study.write_text(study.read_text().replace("good_share: 0.01", "good_share: 0.2"))
        ((path, _),) = import_runs(
            DATA / "0.13.0", study, "mine", "agg-round-robin", trace=recorded_trace
        )
        assert study_of([path], None).name == name
        assert runs.read_manifest(path).margins == load_study(study).margins
    shutil.rmtree(study.parent)
    source = read_source(path, found := study_of([path], None))
    assert found.name == "qwen3-32b"
    assert terms([source], found, False, None, None).margins["good_share"] == 0.2


# --- what else people have ---------------------------------------------------------------------

FOREIGN = {
    "GuideLLM": ("benchmarks.json", {"metadata": {"guidellm_version": "0.5.0"}, "benchmarks": []}),
    "vLLM's": ("vllm-inf.json", {"ttfts": [0.1] * 9, "mean_ttft_ms": 9, "median_ttft_ms": 9}),
    "SGLang's": ("sglang.jsonl", {"backend": "sglang", "median_ttft_ms": 9}),
    "inference-perf": ("summary_lifecycle_metrics.json", {"load_summary": {}, "successes": {}}),
    "genai-perf": (
        "profile_export_genai_perf.json",
        {"request_latency": {"avg": 1}, "input_config": {"endpoint": {"service_kind": "openai"}}},
    ),
}


@pytest.mark.parametrize("tool", FOREIGN)
@pytest.mark.parametrize("whole", [True, False])
def test_results_of_another_tool_are_rejected(study, tmp_path, tool, whole):
    name, content = FOREIGN[tool]
    (folder := tmp_path / "results").mkdir()
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match="name a folder that `aiperf profile` wrote") as rejected:
        read_source(folder if whole else folder / name, study)
    assert name in str(rejected.value) and "\n" not in str(rejected.value)


def test_a_file_of_aiperf_stands_for_its_run(study, copy):
    folder = copy("run")
    shutil.copyfile(DATA / "0.9.0" / "profile_export.jsonl.gz", folder / "other.jsonl.gz")
    whole = read_source(DATA / "0.13.0", study)
    for name in ("profile_export.jsonl.gz", "profile_export_aiperf.json"):
        source = read_source(folder / name, study)
        assert source.requests.equals(whole.requests)
        assert source.status == "complete"


def test_records_alone_are_whole_only_if_their_number_is_said(study, tmp_path):
    file = Path(shutil.copy(DATA / "0.13.0" / "profile_export.jsonl.gz", tmp_path))
    assert read_source(file, study).status == "partial"
    assert read_source(file, study, expected=60).status == "complete"


@pytest.fixture
def several(tmp_path):
    for number in (1, 2):
        shutil.copytree(DATA / "0.13.0", tmp_path / "several" / "profile_runs" / f"run_000{number}")
    return tmp_path / "several"


def test_runs_of_one_command_are_repeats(study, several, tmp_path, checkout, recorded_trace):
    with pytest.raises(InputError, match=r"got 2 of --num-profile-runs.*run_0001"):
        read_source(several, study)
    assert len(sources.read_sources(packed_tree(several, tmp_path / "runs.tgz"), Hints(study))) == 2
    found = import_runs(several, STUDY, "mine", "agg-round-robin", 2, trace=recorded_trace)
    assert [path.name for path, _ in found] == ["r2", "r3"]
    shutil.rmtree(checkout / "runs")
    with pytest.raises(InputError, match="expected a repeat from 1 to 20"):
        import_runs(several, STUDY, "mine", "agg-round-robin", 20, trace=recorded_trace)
    assert not (checkout / "runs").exists()


def packed_tree(folder, to):
    with tarfile.open(to, "w:gz") as archive:
        archive.add(folder, folder.name)
    return to


def test_a_load_without_a_schedule_has_no_pairs(study):
    arms = [[read_source(DATA / name, study)] for name in ("concurrency", "other-counts")]
    assert not paired(arms)
    assert "no trace, concurrency 4, 40 rows" in dict(arms[0][0].about).values()
    (first,), (second,) = comparable(arms)
    found = compare_unpaired([first], [second], study.slo, resamples=200)
    assert (found.pairs, found.to_json()["faster_share"]["ttft_ms"]) == (0, None)
    assert found.notes[0].startswith("Unpaired")
    row = found.ttft.mean.difference
    assert row.value == pytest.approx(second["ttft_ms"].mean() - first["ttft_ms"].mean())
    assert 0 < row.low < row.value < row.high
    assert paired([[read_source(DATA / "0.9.0", study)]])


def test_answers_that_were_not_streamed_are_said_and_not_judged(study, checkout, recorded_trace):
    source = read_source(DATA / "unstreamed", study)
    document = source.summary(study.slo)
    assert document["good"]["count"] is document["good"]["share"] is None
    assert "run AIPerf with --streaming" in told(source, study)
    found = compare_unpaired([source.requests], [source.requests], study.slo, resamples=200)
    assert "The baseline was not streamed: only its latency can be compared." in found.notes
    assert found.to_json()["good_share"]["difference"] is None
    assert ("good requests", "– -> –: not measured in both") in comparison_lines(found)
    assert found.to_json()["metrics"]["latency_ms"]["mean"]["ci_low"] is not None


def test_pairs_that_were_not_streamed_compare_their_latency(study):
    table = read_source(DATA / "0.13.0", study).requests
    table = table.assign(ttft_ms=float("nan"), itl_ms=float("nan"))
    found = compare([table], [table.assign(latency_ms=table["latency_ms"] + 5)], study.slo)
    assert found.to_json()["good_share"]["difference"] is None
    assert found.metrics["latency_ms"].mean.difference.value == pytest.approx(5)
    assert ("faster, latency", "0.0 %") in comparison_lines(found)


def test_a_run_that_is_set_aside_is_said(checkout, recorded_trace, caplog):
    for _ in range(2):
        import_runs(DATA / "0.13.0", STUDY, "mine", "agg-round-robin", trace=recorded_trace)
    assert "r1: was there already, set aside as r1.set-aside-" in caplog.text
