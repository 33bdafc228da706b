"""Start-up: how long a person waits for help and for the summary of one run.

Run it with `make bench`. Each command is a process of its own, interleaved with one that only
imports pandas; the table gives medians and their ratio to that. Raw data go to
benchmarks/results/startup.json. The aims: `kvab --help` under 0.3 s, `kvab summarize` of a run
folder under 1.5 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import typer

from kvab.study import load_study, root


def seconds(command: list[str]) -> float:
    """Return seconds of a command from start to exit."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=root())
    return time.perf_counter() - start


def main(pairs: int = 7) -> None:
    """Measure the commands in turn, again and again."""
    study = load_study()
    run = Path("book/published") / study.name / "simulated-h200" / study.baseline / "r1"
    kvab = [sys.executable, "-m", "kvab"]
    commands = {
        "import pandas": [sys.executable, "-c", "import pandas"],
        "kvab --help": [*kvab, "--help"],
        "kvab summarize": [*kvab, "summarize", str(run)],
    }
    for command in commands.values():
        seconds(command)  # compiles and fills the disk's cache
    measured = [{name: seconds(each) for name, each in commands.items()} for _ in range(pairs)]
    for name in commands:
        typical = statistics.median(each[name] for each in measured)
        ratio = statistics.median(each[name] / each["import pandas"] for each in measured)
        print(f"{name}: {typical:.2f} s, {ratio:.2f} of importing pandas")
    out = root() / "benchmarks" / "results" / "startup.json"
    out.write_text(json.dumps({"pairs": measured}, indent=2) + "\n")
    print(f"medians of {pairs}; raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
