"""The command line as a user meets it: one clear line and the right exit code."""

import errno
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def kvab(*arguments, **environment):
    """Run `python -m kvab` in the checkout and return the finished process."""
    command = [sys.executable, "-m", "kvab", *map(str, arguments)]
    settings = {**os.environ, "COLUMNS": "100", **environment}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


def refused(process, *said):
    """Assert exit code 2, nothing on stdout and one line on stderr that says these words."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    assert len(process.stderr.strip().splitlines()) == 1, process.stderr
    assert "Traceback" not in process.stderr
    for words in said:
        assert words in process.stderr


@pytest.mark.parametrize(
    "command", ["import", "run", "summarize", "compare", "report", "capacity", "doctor", "trace"]
)
def test_every_command_explains_itself(command):
    process = kvab(command, "--help")
    assert process.returncode == 0
    assert "Usage" in process.stdout


def test_summarize_prints_the_contract(small_runs):
    path = small_runs / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    process = kvab("summarize", path, "--json")
    document = json.loads(process.stdout)
    assert process.returncode == 0
    assert document["requests"] == {
        "expected": 40,
        "received": 40,
        "errors": 0,
        "overload": 0,
        "one_token": 1,
    }
    assert set(document) == {
        "schema", "requests", "ttft_ms", "itl_ms", "latency_ms", "good", "output_tokens_per_s",
        "duration_s", "cached_share", "token_counts", "bounds",
    }  # fmt: skip


def test_compare_prints_the_contract(small_runs):
    folder = small_runs / "qwen3-32b" / "simulated-h200"
    arms = [
        ",".join(str(folder / name / repeat) for repeat in ("r1", "r2"))
        for name in ("agg-round-robin", "disagg-kv-router")
    ]
    process = kvab("compare", *arms, "--json")
    assert process.returncode == 0, process.stderr
    document = json.loads(process.stdout)
    assert document["pairs"] == 80
    assert {"baseline", "comparison", "difference", "ratio", "ci_low", "ci_high"} <= set(
        document["metrics"]["ttft_ms"]["p99"]
    )
    assert set(document["verdict"]) == {"ttft_ms", "itl_ms", "latency_ms", "good_share"}


def test_artifacts_of_aiperf_are_summarized_with_what_was_inferred_beside(recorded_trace):
    data = ROOT / "tests" / "data" / "aiperf"
    process = kvab("summarize", data / "0.6.0", "--trace", recorded_trace, "--json")
    document = json.loads(process.stdout)
    assert process.returncode == 0
    assert document["requests"] == {
        "expected": 60,
        "received": 60,
        "errors": 0,
        "overload": 0,
        "one_token": 1,
    }
    assert document["good"]["count"] == 40
    assert "inferred: trace: trace, which is not the study's" in process.stderr
    assert "inferred: expected requests: 60" in process.stderr


def test_describe_prints_the_contract(small_trace):
    process = kvab("trace", "describe", small_trace, "--json")
    document = json.loads(process.stdout)
    assert (document["rows"], document["one_token_rows"]) == (40, 1)
    assert document["distinct_timestamps"] == 8


def test_slice_writes_a_trace_and_refuses_to_overwrite(small_trace, tmp_path):
    out = tmp_path / "part.jsonl"
    assert kvab("trace", "slice", small_trace, out, "--rows", 7).returncode == 0
    assert json.loads(kvab("trace", "describe", out, "--json").stdout)["rows"] == 7
    refused(kvab("trace", "slice", small_trace, out, "--rows", 7), "exists already")


def test_synthesize_says_what_it_made(tmp_path):
    out = tmp_path / "made-up.jsonl"
    assert kvab("trace", "synthesize", out, "--rows", 300).returncode == 0
    assert json.loads(kvab("trace", "describe", out, "--json").stdout)["synthetic"] is True


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ('{"timestamp": 0, "input_length": 5, "outp', ":1"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\nno\n', ":2"),
        ('{"timestamp": 0, "input_length": 5, "hash_ids": [1]}\n', "output_length"),
        (
            '{"timestamp": -1, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n',
            "timestamp",
        ),
        (
            '{"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []}\n',
            "input_length",
        ),
        (
            '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}\n',
            "hash_ids",
        ),
    ],
)
def test_a_wrong_trace_is_refused_by_line(tmp_path, content, said):
    path = tmp_path / "wrong.jsonl"
    path.write_text(content)
    refused(kvab("trace", "describe", path), str(path), said)
    refused(kvab("run", "--configuration", "agg-round-robin", "--trace", path), str(path), said)


def test_a_trace_with_another_sha256_is_refused(small_trace):
    process = kvab("run", "--configuration", "agg-round-robin", KVAB_TRACE=str(small_trace))
    refused(process, "sha256", "--trace")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--configuration", "fast"), "no configuration 'fast'"),
        (("--configuration", "agg-round-robin", "--cluster", "mine"), "no cluster 'mine'"),
        (("--configuration", "agg-round-robin", "--repeat", "99"), "repeat from 1 to 20"),
        (("--configuration", "agg-round-robin", "--rows", "41"), "rows from 1 to 40"),
        (("--configuration", "agg-round-robin", "--study", "none.yaml"), "none.yaml"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(small_trace, arguments, said):
    refused(kvab("run", *arguments, "--trace", small_trace), said)


def test_a_cluster_profile_with_an_examples_values_is_refused(small_trace, tmp_path):
    process = kvab(
        "run",
        "--configuration",
        "agg-round-robin",
        "--cluster",
        "example-h200",
        "--trace",
        small_trace,
        "--runs",
        tmp_path,
    )
    refused(process, "example-h200.yaml", "storage_class", "my-rwx-class")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    refused(kvab("summarize", tmp_path), str(tmp_path), "run.json")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda fields: fields["trace"].update(sha256="0" * 64), "compare runs of one workload"),
        (
            lambda fields: fields["slo"].update(ttft_ms=1000.0),
            "(1000 ms and 2000 ms); name the bounds with --ttft-ms",
        ),
    ],
)
def test_runs_that_differ_in_workload_or_bounds_are_not_compared(small_runs, tmp_path, spoil, said):
    from kvab.runs import folder as runs

    path = small_runs / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    run = runs.read_run(path)
    fields = run.manifest.model_dump(by_alias=True, exclude={"files"})
    spoil(fields)
    other = runs.write_run(
        tmp_path / "r1", fields, {"requests.parquet": runs.requests_bytes(run.requests)}
    )
    refused(kvab("compare", path, other), said)


def test_a_report_without_runs_names_the_command(tmp_path):
    refused(kvab("report", "--from", tmp_path), "kvab report")


def test_a_run_folder_takes_no_rows_and_no_trace(small_runs, small_trace):
    path = small_runs / "qwen3-32b" / "simulated-h200" / "agg-round-robin" / "r1"
    for option in (["--rows", 40], ["--trace", small_trace]):
        refused(kvab("summarize", path, *option), "a run folder says itself what was replayed")


@pytest.mark.parametrize("command", [["report"], ["capacity"]])
def test_a_place_for_runs_that_cannot_be_one_is_refused(command, small_trace):
    process = kvab(*command, "--runs", "/dev/null/x", "--trace", small_trace)
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert re.match("kvab: .*cannot write.*/dev/null|kvab: /dev/null.*: cannot write",
                    process.stderr.strip().splitlines()[-1])  # fmt: skip


def test_doctor_says_what_is_wrong_with_the_trace_and_goes_on(tmp_path):
    (tmp_path / "trace.jsonl").write_text("{}\n")
    process = kvab("doctor", KVAB_TRACE=tmp_path / "trace.jsonl", KVAB_CACHE=tmp_path / "cache")
    assert process.returncode == 3
    assert "Traceback" not in process.stderr
    assert "trace:" in process.stdout + process.stderr
    assert "GB free" in process.stdout + process.stderr
    assert not (tmp_path / "cache").exists()


def test_doctor_downloads_nothing(tmp_path):
    process = kvab("doctor", KVAB_TRACE="", KVAB_CACHE=tmp_path / "cache")
    assert "run `kvab trace fetch`" in process.stdout + process.stderr
    assert not list(tmp_path.rglob("*.jsonl"))


def test_blocks_of_another_size_are_described(tmp_path):
    row = {"timestamp": 0, "input_length": 30, "output_length": 1, "hash_ids": [0, 1]}
    (tmp_path / "trace.jsonl").write_text(json.dumps(row) + "\n")
    refused(kvab("trace", "describe", tmp_path / "trace.jsonl"), "trace.jsonl:1")
    process = kvab("trace", "describe", tmp_path / "trace.jsonl", "--block-tokens", 16)
    assert process.returncode == 0, process.stderr


@pytest.fixture
def elsewhere(tmp_path):
    """Run kvab as installed from a package, where there is no checkout."""
    shutil.copytree(ROOT / "kvab", tmp_path / "site" / "kvab")
    environment = {k: v for k, v in os.environ.items() if k not in ("KVAB_ROOT", "KVAB_TRACE")}
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "KVAB_CACHE": str(tmp_path / "cache")}
    (tmp_path / "here").mkdir()

    def run(*words, **more):
        return subprocess.run(
            [sys.executable, "-m", "kvab", *map(str, words)],
            cwd=tmp_path / "here", env=environment | more, capture_output=True, text=True,
        )  # fmt: skip

    return run


def test_results_are_shown_without_a_checkout(elsewhere):
    data = ROOT / "tests" / "data" / "aiperf"
    shown = elsewhere("summarize", data / "concurrency", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["bounds"] == "of the study qwen3-32b, by default"
    compared = elsewhere("compare", data / "0.9.0", data / "0.13.0", "--ttft-ms", "700")
    assert compared.returncode == 0, compared.stderr
    assert "TTFT 700 ms, ITL 25 ms, TTFT as named, ITL of AIPerf's --goodput" in compared.stdout
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packed["package-data"]["kvab"] == ["study/default.yaml", "pages/bounds.js"]


def test_paths_count_from_the_working_folder(elsewhere, recorded_trace, tmp_path):
    shutil.copytree(ROOT / "tests" / "data" / "aiperf" / "0.13.0", tmp_path / "here" / "mine")
    words = ["import", "mine", "--cluster", "x", "--configuration", "agg-round-robin"]
    process = elsewhere(*words, "--trace", recorded_trace, "--runs", "filed", KVAB_ROOT=str(ROOT))
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.strip()).is_relative_to(tmp_path / "here" / "filed")
    process = elsewhere("summarize", "mine", "--study", "study.yaml", KVAB_ROOT=str(ROOT))
    assert (process.returncode, "here/study.yaml: expected a file" in process.stderr) == (2, True)


@pytest.fixture
def away(checkout, tmp_path):
    """A study whose trace cannot be had: what asks for it is counted."""
    asked = []

    class Away(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Away)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    study = checkout / "recipes" / "qwen3-32b" / "study.yaml"
    at = f"http://127.0.0.1:{server.server_port}/trace.jsonl"
    study.write_text(re.sub(r"url: .*conversation_trace.*", f"url: {at}", study.read_text()))
    told = {"KVAB_TRACE": "", "KVAB_CACHE": tmp_path / "cache", "KVAB_ROOT": checkout}
    yield lambda *words: (kvab(*words, "--runs", tmp_path / "runs", **told), len(asked))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--configuration", "fast"], "no configuration 'fast'"),
        (["run", "--configuration", "agg-round-robin", "--rows", "99999"], "rows from 1 to 12031"),
        (["run", "--configuration", "agg-round-robin", "--repeat", "99"], "repeat from 1 to 20"),
        (["report", "--repeats", "99"], "repeat from 1 to 20"),
        (["report", "--cluster", "mine"], "no cluster 'mine'"),
        (["report", "--on", "mine"], "no cluster 'mine'"),
        (["capacity", "--rows", "0"], "rows from 1 to 12031"),
    ],
)
def test_options_are_checked_before_the_trace_is_fetched(away, words, said):
    process, asked = away(*words)
    refused(process, said)
    assert asked == 0


def test_a_trace_that_cannot_be_had_is_asked_for_once(away):
    """The notebook of the command looks for it."""
    process, asked = away("run", "--configuration", "agg-round-robin", "--rows", 20)
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("GENERATED WORKLOAD") == 1
    assert asked == 3  # the tries of one download
    manifest = json.loads((Path(process.stdout.splitlines()[0]) / "run.json").read_text())
    assert manifest["trace"]["name"] == "GENERATED WORKLOAD (seed 1)"


@pytest.mark.parametrize("group", [[], ["trace"]])
def test_summaries_fit_a_terminal(group):
    process = kvab(*group, "-h", COLUMNS="80")
    assert process.returncode == 0
    lines = process.stdout.splitlines()[1:]  # after the usage
    assert [line for line in lines if len(line) > 80 or line.endswith("...")] == []


def test_the_shell_completes_commands():
    told = {"_KVAB_COMPLETE": "complete_bash", "COMP_WORDS": "kvab su", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("kvab")
    process = subprocess.run([command], env={**os.environ, **told}, capture_output=True, text=True)
    assert process.stdout.split() == ["summarize"], process.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_signs_gets_simpler_ones(small_runs, encoding):
    folder = small_runs / "qwen3-32b" / "simulated-h200"
    arms = [folder / name / "r1" for name in ("agg-round-robin", "disagg-kv-router")]
    process = kvab("compare", *arms, PYTHONIOENCODING=encoding)
    assert process.returncode == 0, process.stderr
    found = dict(re.split("  +", line, maxsplit=1) for line in process.stdout.splitlines())
    assert found["baseline"] == "agg-round-robin r1 on simulated-h200"
    assert found["comparison"] == "disagg-kv-router r1 on simulated-h200"
    assert found["intervals"] == "95 %"
    assert re.search(r": [+-][\d,.]+ \(", found["latency mean [ms]"])


def test_names_keep_what_they_can_in_ascii():
    from kvab.cli import SIMPLER

    assert "Zoë … \u2212 ±1 \u00d7 → 中".encode("ascii", SIMPLER) == b"Zoe ... - +-1 x -> ?"


def test_a_place_with_far_too_many_folders_is_rejected(tmp_path, monkeypatch):
    from kvab.errors import InputError
    from kvab.requests import archives

    (tmp_path / "a" / "b").mkdir(parents=True)
    assert archives.within(tmp_path, tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    monkeypatch.setattr(archives, "MOST_FOLDERS", 2)
    with pytest.raises(InputError, match="more than 2 folders; name the folder of one run"):
        archives.within(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("package", "cluster", "extra"),
    [
        ("httpx", "live-cpu", "live"),
        ("aisimulate_core", "simulated-h200", "simulate"),
        ("kubernetes", "mine", "cluster"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    checkout, small_trace, tmp_path, package, cluster, extra
):
    """Where it is asked for first."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    clusters = checkout / "recipes" / "clusters"
    profile = (clusters / "example-h200.yaml").read_text().replace("my-", "")
    (clusters / "mine.yaml").write_text(profile.replace("name: example-h200", "name: mine"))
    told = {"PYTHONPATH": tmp_path / "site", "KVAB_ROOT": checkout}
    process = kvab("run", "--cluster", cluster, "--configuration", "agg-round-robin", "--rows", 5,
                   "--trace", small_trace, "--runs", tmp_path / "runs", **told)  # fmt: skip
    assert process.returncode == 3, process.stderr
    last = process.stderr.strip().splitlines()[-1]
    assert f"the package {package} is not installed" in last
    assert f"with its extra `{extra}`" in last and "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EROFS, "name a place that you may write"),
        (errno.EEXIST, "name another place"),
    ],
)
def test_what_cannot_be_written_comes_with_its_own_remedy(monkeypatch, capsys, code, said):
    from kvab import cli

    def fail(**_):
        raise OSError(code, os.strerror(code), "runs")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert capsys.readouterr().err.endswith(f"{os.strerror(code)}: 'runs'); {said}\n")
