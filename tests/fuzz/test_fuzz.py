"""A share of the fuzzing, and what was published of the whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
READERS = ("trace", "aiperf", "manifests", "runs", "bundle")
INPUTS, PUBLISHED = 2_000, 100_000


def sound(tally, inputs):
    assert tally["inputs"] == tally["accepted"] + tally["refused"] == inputs
    assert tally["crashed"] == 0
    assert tally["accepted"] > inputs / 100 and tally["refused"] > inputs / 10
    assert tally["peak_mb"] < 1000


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_broken_inputs_are_accepted_or_refused(tmp_path, reader):
    pytest.importorskip("atheris", reason="atheris is not installed")
    out = tmp_path / "fuzzing.json"
    command = [sys.executable, FUZZ, "--reader", reader, "--inputs", str(INPUTS), "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    tally = json.loads(out.read_text())["readers"][reader]
    sound(tally, INPUTS)
    assert tally["slowest_ms"] < 10_000


def test_the_published_fuzzing_found_every_reader_sound():
    published = Path(__file__).parents[2] / "book" / "published" / "fuzzing.json"
    found = json.loads(published.read_text())["readers"]
    assert list(found) == list(READERS)
    for tally in found.values():
        sound(tally, PUBLISHED)
