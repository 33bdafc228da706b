"""What tests share: the checkout, a small trace, a small simulated run."""

import gzip
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
os.environ.setdefault("KVAB_ROOT", str(ROOT))
# Where traces are, tests say themselves; those of real traces ask for them here.
TRACES = os.environ.pop("KVAB_TRACES", None)
# Started in the background, tests ignore Ctrl-C, and so would every command that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="write tests/contracts/golden anew")


def needed(program):
    """Return a program's path; skip where it is missing, fail where CI should have it."""
    path = shutil.which(program)
    if path is None:
        message = f"{program} is missing; install it, such as by apt-get install {program}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def chromium():
    return needed("chromium")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what a study reads: recipes and notebooks, free to be changed."""
    for name in ("recipes", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name)
    monkeypatch.setenv("KVAB_ROOT", str(tmp_path / "checkout"))
    return tmp_path / "checkout"


def trace_rows(bursts=8, size=5, block_tokens=512):
    """Rows of a small trace: bursts 3 s apart, each prompt beginning with one shared block."""
    rows = []
    for burst in range(bursts):
        for place in range(size):
            blocks = 2 + (burst + place) % 4
            rows.append(
                {
                    "timestamp": 3000 * burst,
                    "input_length": blocks * block_tokens - 7 * place,
                    "output_length": 1 if (burst, place) == (2, 2) else 20 + place,
                    "hash_ids": [
                        0,
                        *range(100 * burst + 10 * place + 1, 100 * burst + 10 * place + blocks),
                    ],
                }
            )
    return rows


@pytest.fixture(scope="session")
def recorded_trace(tmp_path_factory):
    """The trace of the recorded AIPerf runs, told from their records; its blocks are made up."""
    packed = ROOT / "tests" / "data" / "aiperf" / "0.13.0" / "profile_export.jsonl.gz"
    records = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    first_ns = min(record["metadata"]["request_start_ns"] for record in records)
    rows = {}
    for record in records:
        told, measured = record["metadata"], record["metrics"]
        prompt, answer = (
            measured[f"usage_{name}_tokens"]["value"] for name in ("prompt", "completion")
        )
        row = int(told["conversation_id"].removeprefix("session_"))
        burst = round((told["request_start_ns"] - first_ns) / 3e9)
        rows[row] = {
            "timestamp": 3000 * burst - (burst == 2),  # as the trace's clock has it
            "input_length": prompt,
            "output_length": answer,
            "hash_ids": [1000 * row + block for block in range(-(-prompt // 512))],
        }
    path = tmp_path_factory.mktemp("recorded") / "trace.jsonl"
    path.write_text("".join(json.dumps(rows[row]) + "\n" for row in sorted(rows)))
    return path


@pytest.fixture(scope="session")
def small_trace(tmp_path_factory):
    """A file of 40 rows in Mooncake's format."""
    path = tmp_path_factory.mktemp("trace") / "small.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in trace_rows()))
    return path


TTFT_MS, ITL_MS = [500.0, 1000.0, 2000.0], [10.0, 25.0]
BURST = np.repeat(np.arange(40), 5)


@pytest.fixture(scope="session")
def made_requests():
    """A requests table of bursts of five, of a seed."""
    return _made_requests


def _made_requests(seed, slower=1.0):
    """A requests table with failures, answers of one token and values equal to a bound."""
    rng = np.random.default_rng(seed)
    count = len(BURST)
    table = pd.DataFrame(
        {
            "row": np.arange(count, dtype="int32"),
            "ttft_ms": slower * np.where(rng.random(count) < 0.3, rng.choice(TTFT_MS, count),
                                         rng.uniform(100, 2500, count)),
            "itl_ms": rng.choice([*ITL_MS, 5.0, 11.0, 300.0], count),
            "output_tokens": rng.integers(1, 900, count).astype("int32"),
            "error": pd.array([None] * count, "string"),
        }
    )  # fmt: skip
    table.loc[table["output_tokens"] < 100, "itl_ms"] = np.nan
    table.loc[rng.choice(count, 9), "error"] = "503 busy"
    return table


@pytest.fixture(scope="session")
def judged():
    """A sweep at made-up bounds, every replay an hour long: who leads hangs on load and TTFT."""
    from kvab.runs.bounds import Bounds
    from kvab.runs.sweep import load_sweep
    from kvab.stats.bootstrap import Design
    from kvab.stats.crossings import at_bounds

    swept = load_sweep("recipes/qwen3-32b/study.yaml", "simulated-h200", "none")
    parts = []
    for load in sorted({cell.load for cell in swept.load_cells}):
        slow = {"agg-round-robin": 1.5, "agg-kv-router": 0.7 + 0.7 * load,
                "disagg-round-robin": 1.4, "disagg-kv-router": 1.0}  # fmt: skip
        tables = {name: _made_requests(5, slow[name]) for name in swept.arms}
        hours = dict.fromkeys(tables, 16.0)
        part = at_bounds(tables, hours, BURST, TTFT_MS, ITL_MS, Design(40, 2, 0.95, 200, 1))
        parts.append([of.assign(load=load) for of in part])
    bounds, best, costs = (pd.concat(of, ignore_index=True) for of in zip(*parts, strict=True))
    cells = [cell.model_copy(update={"duration_s": 3600.0}) for cell in swept.summary.cells]
    summary = swept.summary.model_copy(update={"cells": cells})
    made = replace(swept, summary=summary, bounds=bounds, best=best, costs=costs)
    return Bounds(made, bounds, best, costs)


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory, small_trace):
    """Two simulated repeats of both main configurations on the small trace."""
    pytest.importorskip("aisimulate", reason="the simulator (extra `simulate`) is not installed")
    from kvab.runs.replay import start

    folder = tmp_path_factory.mktemp("runs")
    for configuration in ("agg-round-robin", "disagg-kv-router"):
        for repeat in (1, 2):
            replay = start(
                "recipes/qwen3-32b/study.yaml",
                "simulated-h200",
                configuration,
                repeat,
                trace=str(small_trace),
                runs=folder,
            )
            replay.run()
    return folder
