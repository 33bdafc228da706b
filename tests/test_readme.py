"""The README: its numbers are those of the published runs, and what it names is there."""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from kvab.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def maker():
    spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_answer_and_picture_are_those_of_the_published_runs():
    said, picture = maker().answer()
    assert "simulat" in said and said in README
    assert (ROOT / "docs" / "answer.svg").read_bytes() == picture


def test_no_other_result_is_typed_into_it():
    rest = README.replace(maker().answer()[0], "")
    assert re.findall(r"\d[\d.,]* ?(?:%|ms|points)", rest) == []


def lines():
    """Every command of the README's blocks, and the papermill line in its text."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    found = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in found if line] + re.findall(r"`(papermill [^`]+)`", README)


# What takes a cluster, real time or minutes is only parsed here, and run elsewhere.
PARSED = {
    r"kvab report\b": "tests/book builds whole books",
    r"kvab capacity\b": "tests/unit/test_capacity.py sweeps",
    r"kvab advise\b": "tests/unit/test_bounds.py asks for advice",
    r"kvab sensitivity\b": "tests/unit/test_sensitivity.py sweeps",
    r"kvab hardware\b": "tests/unit/test_hardware.py simulates scenarios",
    r"kvab resample\b": "tests/unit/test_hours.py replays made hours",
    r"kvab run --cluster (live-cpu|mine)\b": "tests/live and tests/cluster run them",
    r"kvab doctor --cluster mine\b": "tests/cluster looks at an emulated cluster",
}


def only_parsed(line):
    return any(re.match(pattern, line) for pattern in PARSED)


def test_every_line_is_run_or_parsed_or_names_what_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for line in lines():
        if named := re.match(r"kubectl apply -[fk] (\S+)", line):
            assert (ROOT / named[1]).exists(), line
        elif named := re.match(r"make (\S+)", line):
            assert re.search(rf"^{named[1]}:", makefile, re.M), line
        elif only_parsed(line):
            parse(shlex.split(line)[1:])
        else:  # run below, but for kubectl create, which only a cluster answers
            assert re.match("kvab |papermill |cp |kubectl .*create ", line), line
    assert all(any(re.match(pattern, line) for line in lines()) for pattern in PARSED)


def parse(words):
    """Read a command as the command line does, without carrying it out."""
    group = typer.main.get_command(app)
    with group.make_context("kvab", list(words)) as context:
        name, command, rest = group.resolve_command(context, list(words))
        command.make_context(name, rest, parent=context).close()


@pytest.fixture
def clone(checkout, recorded_trace):
    """A copy of the checkout whose study replays a small trace, and what a user has there."""
    content, study = recorded_trace.read_bytes(), checkout / "recipes/qwen3-32b/study.yaml"
    text = study.read_text()
    block = re.search(r"^  conversation:\n(?:    .*\n)+", text, re.M)[0]
    small = re.sub(r"sha256: \S+", f"sha256: {hashlib.sha256(content).hexdigest()}", block)
    study.write_text(text.replace(block, re.sub(r"rows: \d+", "rows: 60", small)))
    (checkout / "conversation_trace.jsonl").write_bytes(content)
    shutil.copyfile(ROOT / "requirements.lock", checkout / "requirements.lock")
    (checkout / "book/published/qwen3-32b").mkdir(parents=True)  # the study meant by default
    for name in ("FOLDER", "artifacts"):
        shutil.copytree(ROOT / "tests/data/aiperf/0.13.0", checkout / name)
    for name in ("baseline", "comparison"):
        shutil.make_archive(str(checkout / name), "gztar", checkout / "artifacts")
    return checkout


def test_every_command_runs_as_written(clone):
    """In the README's order, but that the other arm of `compare` is replayed before it."""
    told = {key: value for key, value in os.environ.items() if key != "KVAB_ROOT"}
    told |= {"PATH": f"{Path(sys.executable).parent}:{told['PATH']}"}
    told |= {"KVAB_TRACE": str(clone / "conversation_trace.jsonl")}
    run = [line for line in lines() if re.match("kvab|papermill|cp ", line)]
    run = [line for line in run if not only_parsed(line) and "recipes/clusters/mine" not in line]
    first = "kvab run --configuration agg-round-robin"
    assert len(run) > 10
    for line in [first, *run]:
        ended = subprocess.run(
            ["bash", "-c", line], cwd=clone, env=told, capture_output=True, text=True
        )
        looked = line.startswith("kvab doctor")  # at this machine too, which may lack something
        assert ended.returncode in ((0, 3) if looked else (0,)), f"{line}: {ended.stderr[-1500:]}"


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and [name for name in links if not (ROOT / name).exists()] == []
