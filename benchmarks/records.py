"""AIPerf's records file of a million requests: time and memory, against pandas and AIPerf itself.

Run it with `make bench`. The export is made of the records of a real run (tests/data/aiperf), each
with as many chunk times as answers of the trace have on average, so that a line has a realistic
length. The others hold the whole file in memory: the ratio is measured on the smaller export that
they can take, in interleaved pairs; the million is read in a process of its own. Raw data go to
benchmarks/results/records.json. The aims: under 1 GB, and 8 times faster than either.
"""

from __future__ import annotations

import gzip
import json
import logging
import multiprocessing
import re
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pandas as pd
import typer

from kvab.requests.aiperf import read_records
from kvab.study import root

SEEDS = "tests/data/aiperf/0.13.0"
CHUNKS = 343  # the mean answer of the conversation trace
MARK = 987_654_321  # stands for the number of the request
DISK_SPARE_BYTES = 5 << 30


def write_export(path: Path, requests: int) -> None:
    """Write an export of as many requests, from the records of a real one."""
    packed = root() / SEEDS / "profile_export.jsonl.gz"
    seeds = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    gaps = np.random.default_rng(1)
    lines = []
    for record in seeds:
        chunks = [round(float(gap), 6) for gap in gaps.gamma(4, 4, CHUNKS)]
        record["metrics"]["inter_chunk_latency"] = {"value": chunks, "unit": "ms"}
        record["metadata"] |= {"session_num": MARK, "conversation_id": f"session_{MARK}"}
        lines.append(
            json.dumps(record, separators=(",", ":")).replace("%", "%%").replace(str(MARK), "%(n)d")
        )
    with path.open("w", encoding="utf-8") as file:
        for n in range(requests):
            file.write(lines[n % len(lines)] % {"n": n} + "\n")


def ours_s(path: Path) -> float:
    """Return seconds of this study's reader."""
    start = time.perf_counter()
    assert len(read_records(path).table) > 0
    return time.perf_counter() - start


def pandas_s(path: Path) -> float:
    """Return seconds of pandas reading the same lines, without picking them apart."""
    start = time.perf_counter()
    assert len(pd.read_json(path, lines=True)) > 0
    return time.perf_counter() - start


def aiperf_s(path: Path) -> float:
    """Return seconds of the loader behind `aiperf plot`."""
    from aiperf.plot.core.data_loader import DataLoader

    logging.getLogger("aiperf").setLevel(logging.ERROR)
    start = time.perf_counter()
    assert len(DataLoader()._load_jsonl(path)) > 0
    return time.perf_counter() - start


def _peak_mb() -> float:
    """Return this process's own peak; that of getrusage may be its parent's."""
    told = Path("/proc/self/status").read_text(encoding="utf-8")
    return float(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) / 1e3


def _alone(path: Path) -> dict[str, Any]:
    imports_mb = _peak_mb()
    with memory.over_time() as memory_gb:
        seconds = ours_s(path)
    return {"seconds": seconds, "peak_mb": _peak_mb(), "imports_mb": imports_mb,
            "memory": memory_gb}  # fmt: skip


def million(requests: int, folder: Path) -> dict:
    """Return time and memory of reading a large export, as large as the disk allows."""
    path = folder / "large.jsonl"
    write_export(path, 1000)
    line_bytes = path.stat().st_size / 1000
    room = shutil.disk_usage(folder).free - DISK_SPARE_BYTES
    requests = int(min(requests, room / line_bytes))
    write_export(path, requests)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        measured = alone.submit(_alone, path).result()
    found = {"requests": requests, "bytes": path.stat().st_size, **measured}
    path.unlink()
    print(f"{requests:,} requests, {found['bytes'] / 1e9:.1f} GB: {found['seconds']:.1f} s, "
          f"{found['peak_mb']:.0f} MB at most", flush=True)  # fmt: skip
    return found


def main(pairs: int = 5, small: int = 20_000, large: int = 1_000_000) -> None:
    """Measure the ratios over interleaved pairs, then the large export."""
    measured = []
    with tempfile.TemporaryDirectory(prefix="kvab-bench-") as name:
        path = Path(name) / "profile_export.jsonl"
        write_export(path, small)
        readers = {"kvab": ours_s, "pandas": pandas_s, "aiperf": aiperf_s}
        for number in range(pairs):
            order = list(readers) if number % 2 else list(readers)[::-1]
            seconds = {reader: readers[reader](path) for reader in order}
            measured.append(seconds)
            print(f"pair {number + 1}: " + ", ".join(
                f"{reader} {seconds[reader]:.1f} s" for reader in readers
            ), flush=True)  # fmt: skip
        path.unlink()
        document = {"requests": small, "pairs": measured, "large": million(large, Path(name))}
    for other in ("pandas", "aiperf"):
        ratio = statistics.median(each[other] / each["kvab"] for each in measured)
        print(f"{other} takes {ratio:.1f} times as long, median over {pairs} pairs")
    out = root() / "benchmarks" / "results" / "records.json"
    out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
