"""What is promised outside, held against the committed files of golden/.

A change that is meant is taken with `pytest tests/contracts --golden`, which writes the files anew,
and reviewed as the difference that git shows. Numbers are rounded, so that machines agree on them.
"""

import difflib
import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from kvab import errors
from kvab.cli import app, main
from kvab.runs.folder import RunManifest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
PUBLISHED = ROOT / "book" / "published"
LIVE = PUBLISHED / "qwen3-32b" / "live-cpu"
AIPERF = ROOT / "tests" / "data" / "aiperf"
DIGITS = 6


@pytest.fixture
def held(pytestconfig):
    """Hold lines against a golden file, or write them to it with --golden."""

    def hold(name, lines):
        path = GOLDEN / name
        if pytestconfig.getoption("--golden"):
            path.write_text("".join(f"{line}\n" for line in lines))
        golden = path.read_text().splitlines()
        changed = difflib.unified_diff(golden, lines, name, "now", lineterm="", n=0)
        told = [*changed, "if this is meant: pytest tests/contracts --golden"]
        assert golden == lines, "\n".join(told)

    return hold


@pytest.fixture
def printed(monkeypatch, capsys, tmp_path):
    """Run a command of kvab here and return its exit code and what it printed."""
    monkeypatch.delenv("KVAB_TRACE", raising=False)
    monkeypatch.setenv("KVAB_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, capsys.readouterr().out

    return run


def commands(command, name):
    """A line for each command of a tree and for each argument and option of one."""
    for parameter in sorted(command.params, key=lambda each: each.opts):
        argument = parameter.param_type_name == "argument"
        names = parameter.name.upper() if argument else "/".join(
            [*parameter.opts, *parameter.secondary_opts]
        )  # fmt: skip
        shape = (
            " (flag)" if getattr(parameter, "is_flag", False) else " ..." * (parameter.nargs < 0)
        )
        default = parameter.default if isinstance(parameter.default, str | int | Path) else None
        told = " required" * parameter.required + f" = {default}" * bool(default)
        yield f"{name} {names}{shape}{told}"
    if not hasattr(command, "commands"):
        yield name
    for key, below in sorted(getattr(command, "commands", {}).items()):
        yield from commands(below, f"{name} {key}")


def test_commands_arguments_and_options(held):
    held("commands.txt", sorted(commands(typer.main.get_command(app), "kvab")))


def test_exit_codes(held, printed):
    codes = {
        f"{name}: {each.exit_code}"
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.KvabError)
    }
    tried = [
        ("--help",),
        ("check",),
        ("summarize", "nowhere"),
        ("run",),
        ("report", "--nothing"),
        ("doctor", "--cluster", "example-h200"),
    ]
    held(
        "exit_codes.txt",
        [*sorted(codes), *(f"kvab {' '.join(words)}: {printed(*words)[0]}" for words in tried)],
    )


def fields(schema, definitions, name=""):
    """A line for each field of a JSON schema: its path and its type."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    choices = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    null = " or null" if "anyOf" in schema else ""
    for choice in choices:
        yield from (f"{line}{null}" for line in fields(choice, definitions, name))
    if not choices and "properties" not in schema:
        values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        yield f"{name}: {schema.get('type', 'anything')} {' | '.join(map(str, values))}".rstrip()
    for key, below in sorted(schema.get("properties", {}).items()):
        optional = "" if key in schema.get("required", []) else "?"
        yield from fields(below, definitions, f"{name}.{key}{optional}".lstrip("."))


def keys(document, name=""):
    """A line for each key of a document and of those in it."""
    for key, value in sorted(document.items()):
        yield f"{name}{key}"
        if isinstance(value, dict) and key != "files":
            yield from keys(value, f"{name}{key}.")


def test_fields_of_run_json(held, small_runs):
    schema = RunManifest.model_json_schema()
    held("run_fields.txt", list(fields(schema, schema["$defs"])))
    run = small_runs / "qwen3-32b/simulated-h200/agg-round-robin/r1/run.json"
    held("run_keys_simulated.txt", list(keys(json.loads(run.read_text()))))


def test_columns_of_requests_parquet(held, small_runs):
    """As they are written; `kvab.requests.table.SCHEMA` alone says what is read."""
    path = small_runs / "qwen3-32b/simulated-h200/agg-round-robin/r1/requests.parquet"
    held(
        "requests_columns.txt",
        [
            f"{field.name}: {field.type}{'' if field.nullable else ' not null'}"
            for field in pq.read_schema(path)
        ],
    )


def rounded(value):
    """A JSON value with every number of so many digits."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("summarize_run", ("summarize", LIVE / "agg-round-robin/r1")),
        ("summarize_aiperf", ("summarize", AIPERF / "0.13.0")),
        (
            "compare_runs",
            ("compare", LIVE / "agg-round-robin/r1", LIVE / "disagg-kv-router/r1"),
        ),
        ("compare_aiperf", ("compare", AIPERF / "0.6.0", AIPERF / "0.13.0")),
        ("trace_describe", ("trace", "describe", "TRACE")),
        ("hardware", ("hardware", "idle-prefill-qwen3-32b")),
    ],
)
def test_documents_of_json_commands(held, printed, recorded_trace, name, words):
    words = [recorded_trace if word == "TRACE" else word for word in words]
    if AIPERF in [getattr(word, "parent", None) for word in words]:
        words += ["--trace", recorded_trace]
    code, document = printed(*words, "--json")
    assert code == 0
    held(f"{name}.json", json.dumps(rounded(json.loads(document)), indent=1).splitlines())


def test_document_of_advise(held, printed, judged, checkout):
    judged.swept.write(checkout / "runs")
    asked = ("--ttft-ms", 1500, "--itl-ms", 25, "--load", 1, "--json")
    code, document = printed("advise", *asked)
    assert code == 0
    held("advise.json", json.dumps(rounded(json.loads(document)), indent=1).splitlines())


def test_every_json_command_has_a_document():
    lines = commands(typer.main.get_command(app), "kvab")
    told = {line.split(" --")[0].removeprefix("kvab ") for line in lines if " --json " in line}
    held = {path.stem for path in GOLDEN.glob("*.json")}
    assert {name for name in told if not any(
        each.startswith(name.replace(" ", "_")) for each in held
    )} == set()  # fmt: skip


def test_targets_of_make(held):
    told = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    held("make_targets.txt", sorted(line.split()[0] for line in told.stdout.splitlines()))


def test_published_runs_read_and_summarize_to_the_same_figures(held, printed):
    lines = []
    for path in sorted(file.parent for file in PUBLISHED.rglob("run.json")):
        code, document = printed("summarize", path, "--json")
        assert code == 0
        told = rounded(json.loads(document))
        times = (
            f"{key} {told[key]['p50']} {told[key]['p99']}"
            for key in ("ttft_ms", "itl_ms", "latency_ms")
        )
        counts = told["requests"]["received"], told["requests"]["errors"], told["good"]["count"]
        lines.append(f"{path.relative_to(PUBLISHED)}: {counts} {', '.join(times)}")
    held("published_runs.txt", lines)
