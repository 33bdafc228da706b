"""Replays of the whole trace: this study's against one `aisimulate predict` command an arm.

Run it with `make bench`. Pairs are interleaved, the order alternating; the ratios are medians. Also
where a replay's time goes, beside what the simulator reports of itself and all of `kvab run`, and
how sixteen cells of a sweep spread over cores. Raw seconds go to benchmarks/results/replay.json.
The aims: 2.5 times as fast for two arms, 3 times for four, under 15 % on top of the calls of the
simulator, under 35 % for `kvab run`.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import typer
import yaml

from kvab.clusters import simulated
from kvab.clusters.base import Job
from kvab.clusters.simulated import prediction
from kvab.runs import campaign
from kvab.runs.replay import Replay, plan_job
from kvab.study import load_study, root
from kvab.study.topology import read_topology
from kvab.trace.finding import find_trace

CLUSTER = "simulated-h200"
SWEEP_ROWS = 1_000
# What a replay loads of the simulator before its first request.
LOADED = (
    "dynamo.llm",
    "dynamo.replay.api",
    "dynamo.mocker.config",
    "dynamo.router.simulation",
    "aisimulate.compiler",
    "aisimulate.runner",
    "aisimulate_core.sdk.perf_database",
)
# The command line, whose one call of the simulator tells its seconds.
RUN = """
import sys, time
from kvab.cli import main
from kvab.clusters import simulated

predict = simulated.run_prediction

def timed(*given):
    start = time.perf_counter()
    report = predict(*given)
    print(time.perf_counter() - start, file=sys.stderr)
    return report

simulated.run_prediction = timed
main()
"""


def ours_s(jobs: list[Job]) -> float:
    """Return seconds from the call to both requests.parquet, in a process of its own."""
    start = time.perf_counter()
    campaign.replay_all(jobs)
    seconds = time.perf_counter() - start
    assert all((job.path / "requests.parquet").exists() for job in jobs)
    return seconds


def commands_s(jobs: list[Job], folder: Path) -> float:
    """Return seconds of the two commands one after the other."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DYN_LOG": "error"}
    start = time.perf_counter()
    for job in jobs:
        file = folder / f"{job.configuration}.yaml"
        topology = read_topology(job.recipe)
        config = prediction(topology, job.cluster, job.trace.path, job.trace.block_tokens)
        file.write_text(yaml.safe_dump(config))
        command = [Path(sys.executable).parent / "aisimulate", "predict", "--stack", "dynamo"]
        command += ["-c", file, "--output-dir", folder / job.configuration, "--capture-per-request"]
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def jobs_in(folder: Path, names: list[str], rows: int | None = None) -> list[Job]:
    """Return the first repeat of configurations of the study, with runs of their own."""
    study = load_study()
    trace = find_trace(study.trace)
    return [plan_job(study, CLUSTER, name, 1, rows, trace, folder) for name in names]


def against_commands(names: list[str], pairs: int) -> list[dict[str, float]]:
    """Return seconds of both ways for the same configurations, the order alternating."""
    measured = []
    for number in range(pairs):
        with tempfile.TemporaryDirectory(prefix="kvab-bench-") as name:
            folder = Path(name)
            jobs = jobs_in(folder, names)
            if number % 2:
                seconds = {"commands": commands_s(jobs, folder), "kvab": ours_s(jobs)}
            else:
                seconds = {"kvab": ours_s(jobs), "commands": commands_s(jobs, folder)}
        measured.append(seconds)
        print(f"{len(names)} arms, pair {number + 1}: kvab {seconds['kvab']:.1f} s, commands "
              f"{seconds['commands']:.1f} s, {seconds['commands'] / seconds['kvab']:.2f} times",
              flush=True)  # fmt: skip
    return measured


def parts(name: str) -> dict[str, float | str]:
    """Return seconds of each part of a replay, and what the simulator reports of itself."""
    os.environ.update(HF_HUB_OFFLINE="1", DYN_LOG="error")
    clock, seconds, within = [time.perf_counter()], [], []

    def lap() -> None:
        clock.append(time.perf_counter())
        seconds.append(clock[-1] - clock[-2])

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        report = run(*given)
        within.append(time.perf_counter() - start)
        return report

    for module in LOADED:
        importlib.import_module(module)
    lap()
    run = simulated.run_prediction
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(simulated, "run_prediction", timed),
    ):
        (job,) = jobs_in(Path(folder), [name])
        replay = Replay(job)
        replay.prepare()
        replay.deploy()
        lap()
        replay.replay()
        lap()
        path = replay.collect()
        lap()
        told = json.loads((path / "artifacts" / "simulation.json").read_text(encoding="utf-8"))
    loading_s, planning_s, replaying_s, writing_s = seconds
    return {
        "arm": name,
        "loading_s": loading_s,
        "planning_s": planning_s,
        "simulator_s": within[0],
        "converting_s": replaying_s - within[0],
        "writing_s": writing_s,
        "reported_s": told["summary"]["wall_time_ms"] / 1e3,
    }


def profile(names: list[str], pairs: int) -> list[dict[str, float | str]]:
    """Return the parts of replays, each in a process of its own that loads the simulator anew."""
    measured = []
    for name in names * pairs:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured.append(pool.submit(parts, name).result())
        print(", ".join(f"{key} {value if key == 'arm' else round(value, 2)}"
                        for key, value in measured[-1].items()), flush=True)  # fmt: skip
    return measured


def run_commands(names: list[str], pairs: int) -> list[dict[str, float | str]]:
    """Return seconds of `kvab run` from start to exit, and of the simulator's call within it."""
    measured: list[dict[str, float | str]] = []
    for name in names * pairs:
        with tempfile.TemporaryDirectory(prefix="kvab-bench-") as folder:
            command = [sys.executable, "-c", RUN, "run", "--configuration", name, "--runs", folder]
            start = time.perf_counter()
            ended = subprocess.run(command, check=True, capture_output=True, cwd=root())
            command_s = time.perf_counter() - start
        within_s = float(ended.stderr.split()[-1])
        measured.append({"arm": name, "command_s": command_s, "simulator_s": within_s})
        print(f"kvab run of {name}: {command_s:.1f} s, {command_s / within_s:.2f} times its "
              "simulator's", flush=True)  # fmt: skip
    return measured


def scaling(pairs: int) -> list[dict[str, float]]:
    """Return seconds of sixteen short replays on one core and on all."""
    study, cores, measured = load_study(), os.sched_getaffinity(0), []
    names = [*study.configurations] * 4
    for number in range(pairs):
        seconds: dict[str, float] = {}
        for label, allowed in (("one", {min(cores)}), ("all", cores))[:: 1 - 2 * (number % 2)]:
            os.sched_setaffinity(0, allowed)
            with tempfile.TemporaryDirectory(prefix="kvab-bench-") as name:
                parts = [jobs_in(Path(name) / str(n // 4), [each], SWEEP_ROWS)[0]
                         for n, each in enumerate(names)]  # fmt: skip
                seconds[label] = ours_s(parts)
        os.sched_setaffinity(0, cores)
        measured.append(seconds | {"cores": len(cores)})
        print(f"{len(names)} cells, pair {number + 1}: one core {seconds['one']:.1f} s, "
              f"{len(cores)} cores {seconds['all']:.1f} s", flush=True)  # fmt: skip
    return measured


def main(pairs: int = 5) -> None:
    """Measure the ratios over interleaved pairs."""
    study = load_study()
    document = {
        "rows": study.trace.rows,
        "two": against_commands([study.baseline, study.comparison], pairs),
        "four": against_commands([*study.configurations], pairs),
        "profile": profile([study.baseline, study.comparison], pairs),
        "run": run_commands([study.baseline, study.comparison], pairs),
        "scaling": scaling(pairs),
    }
    out = root() / "benchmarks" / "results" / "replay.json"
    out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for arms in ("two", "four"):
        ratio = statistics.median(each["commands"] / each["kvab"] for each in document[arms])
        print(f"{arms} arms: {ratio:.2f} times as fast as the commands")
    ratio = statistics.median(each["one"] / each["all"] for each in document["scaling"])
    print(f"sixteen cells: {ratio:.2f} times as fast on all cores; raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
