"""The README: its numbers are those of the published runs, and what it names is there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

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


def test_every_command_and_path_is_there():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    known = subprocess.run([sys.executable, "-m", "kvab", "--help"], capture_output=True, text=True)
    commands = {line.split()[1] for line in lines if line.startswith("kvab ")}
    assert len(commands) > 8
    assert {name for name in commands if f"  {name} " not in known.stdout} == set()
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert {name for name in targets if not re.search(rf"^{name}:", makefile, re.M)} == set()
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and [name for name in links if not (ROOT / name).exists()] == []
