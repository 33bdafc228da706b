"""Both arms of the whole trace: this study's replay against two `aisimulate predict` commands.

Run it with `make bench`. Each pair is measured in one go, the order alternating; the table gives
the median ratio, and the raw seconds go to benchmarks/results/replay.json. The aim is under 0.5.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer
import yaml

from kvab import recipes
from kvab.runs import campaign
from kvab.runs.replay import Job, plan_job
from kvab.simulate import prediction
from kvab.study import load_study, root
from kvab.trace import find_trace


def ours_s(jobs: list[Job]) -> float:
    """Return seconds from the call to both requests.parquet, in a process of its own."""
    start = time.perf_counter()
    campaign.replay_all(jobs, quiet=True)
    seconds = time.perf_counter() - start
    assert all((job.path / "requests.parquet").exists() for job in jobs)
    return seconds


def commands_s(jobs: list[Job], folder: Path) -> float:
    """Return seconds of the two commands one after the other."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DYN_LOG": "error"}
    start = time.perf_counter()
    for job in jobs:
        file = folder / f"{job.configuration}.yaml"
        topology = recipes.topology(job.recipe)
        config = prediction(topology, job.cluster, job.trace.path, job.trace.block_tokens)
        file.write_text(yaml.safe_dump(config))
        command = [Path(sys.executable).parent / "aisimulate", "predict", "--stack", "dynamo"]
        command += ["-c", file, "--output-dir", folder / job.configuration, "--capture-per-request"]
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def main(pairs: int = 5) -> None:
    """Measure the ratio over interleaved pairs."""
    study = load_study()
    trace = find_trace(study.trace)
    measured = []
    for number in range(pairs):
        with tempfile.TemporaryDirectory(prefix="kvab-bench-") as name:
            folder = Path(name)
            jobs = [
                plan_job(study, "simulated-h200", arm, 1, None, trace, folder)
                for arm in (study.baseline, study.comparison)
            ]
            if number % 2:
                seconds = {"commands": commands_s(jobs, folder), "kvab": ours_s(jobs)}
            else:
                seconds = {"kvab": ours_s(jobs), "commands": commands_s(jobs, folder)}
        measured.append(seconds)
        ratio = seconds["kvab"] / seconds["commands"]
        print(f"pair {number + 1}: kvab {seconds['kvab']:.1f} s, commands "
              f"{seconds['commands']:.1f} s, ratio {ratio:.2f}", flush=True)  # fmt: skip
    ratios = [each["kvab"] / each["commands"] for each in measured]
    out = root() / "benchmarks" / "results" / "replay.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": len(trace), "pairs": measured}, indent=2) + "\n")
    print(f"median ratio {statistics.median(ratios):.2f} over {pairs} pairs; raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
