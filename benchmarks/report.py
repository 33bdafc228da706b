"""The book: cold, cached, and over two hundred runs of the whole trace.

Run it with `make bench`. Each build is a process of its own with its own cache of results, from the
published runs; the cold and the cached build alternate. The large one is a study of fifty repeats,
made of copies of the published requests. Raw data go to benchmarks/results/report.json. The aims:
a cached build in a fifth of a cold one, two hundred runs within 3 minutes and 4 GB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import memory
import typer

from kvab.clusters.base import run_path
from kvab.pages.evidence import load_published
from kvab.runs import folder as runs
from kvab.study import load_study, root

REPEATS = 50
PARTS = ("recipes", "notebooks", "book", "requirements.lock")


def build(place: Path, cache: Path, out: Path) -> dict[str, Any]:
    """Return seconds of a build, and the memory of all its processes together over time."""
    told = {**os.environ, "KVAB_CACHE": str(cache), "KVAB_ROOT": str(place)}
    command = [sys.executable, "-m", "kvab", "report", "--from", str(place / "book" / "published")]
    start = time.perf_counter()
    with memory.over_time(own=False) as memory_gb:
        ended = subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, env=told
        )
    if ended.returncode:
        raise SystemExit(f"a build ended with {ended.returncode}: {ended.stderr[-3000:]}")
    seconds, peak_gb = time.perf_counter() - start, max(gb for _, gb in memory_gb)
    return {"seconds": seconds, "peak_gb": peak_gb, "memory": memory_gb}


def large_study(place: Path) -> int:
    """Make a checkout whose study has fifty repeats of each configuration; return its runs."""
    for name in PARTS:
        source = root() / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, place / name)
    evidence = load_published("", "book/published")
    declared = place / evidence.study.folder.relative_to(root()) / "study.yaml"
    text = declared.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^repeats: \d+$", f"repeats: {REPEATS}", text)
    text = re.sub(r"(?m)^seeds: .*$", f"seeds: {list(range(REPEATS))}", text)
    declared.write_text(text, encoding="utf-8")
    study, count = load_study(declared), 0
    target = place / "book" / "published"
    for name, found in evidence.runs.items():
        shutil.rmtree(target / study.name / evidence.cluster / name)
        for repeat in range(1, REPEATS + 1):
            run = found[(repeat - 1) % len(found)]
            told = run.manifest.model_dump(by_alias=True, exclude={"files"}) | {"repeat": repeat}
            files = {each: (run.path / each).read_bytes() for each in run.manifest.files}
            runs.write_run(run_path(target, study, evidence.cluster, name, repeat), told, files)
            count += 1
    return count


def main(pairs: int = 5) -> None:
    """Measure cold and cached builds in turn, then the large study."""
    measured = []
    with tempfile.TemporaryDirectory(prefix="kvab-bench-") as name:
        folder = Path(name)
        for number in range(pairs):
            cache = folder / f"cache-{number}"
            pair = {label: build(root(), cache, folder / "out") for label in ("cold", "cached")}
            measured.append(pair)
            print(f"pair {number + 1}: cold {pair['cold']['seconds']:.0f} s, cached "
                  f"{pair['cached']['seconds']:.0f} s", flush=True)  # fmt: skip
        (folder / "large").mkdir()
        count = large_study(folder / "large")
        large = {"runs": count, **build(folder / "large", folder / "cache", folder / "out")}
    print(f"{count} runs: {large['seconds']:.0f} s, {large['peak_gb']:.1f} GB", flush=True)
    out = root() / "benchmarks" / "results" / "report.json"
    document = {"pairs": measured, "large": large}
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    ratio = statistics.median(
        each["cached"]["seconds"] / each["cold"]["seconds"] for each in measured
    )
    print(f"cached {ratio:.2f} of cold, median over {pairs} pairs; raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
