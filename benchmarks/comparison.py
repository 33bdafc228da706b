"""The paired comparison of two whole-trace runs: cost, growth with rows, ratio to plain `arch`.

Run it with `make bench`. The ratio calls `arch` once per statistic on DataFrames, as its manual
shows, with the same number of resamples, in interleaved pairs. The growth is measured in a fresh
process for each size, with all resamples, with its memory over time and where its time goes. Raw
data go to benchmarks/results/comparison.json. The aims: under 15 s and 1 GB at one trace, linear
growth, 3 million pairs within 5 minutes and 4 GB.
"""

from __future__ import annotations

import cProfile
import json
import multiprocessing
import pstats
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import memory
import numpy as np
import pandas as pd
import typer
from arch.bootstrap import StationaryBootstrap
from performance import COMPARISON

from kvab.pages.evidence import load_published
from kvab.requests.metrics import COMPARED, LATENCIES, PERCENTILES, good
from kvab.stats.compare import compare
from kvab.study import load_study, root

STUDY, PUBLISHED = "", "book/published"  # the published study
FACTORS = (1, 4, 16, 250)


def repeated(table: pd.DataFrame, factor: int) -> pd.DataFrame:
    """Return a run of a trace that is ``factor`` times as long: the same hour again and again."""
    hour_ms = table["arrival_ms"].max() + 3000.0
    parts = [
        table.assign(
            row=table["row"] + n * len(table), arrival_ms=table["arrival_ms"] + n * hour_ms
        )
        for n in range(factor)
    ]
    return pd.concat(parts, ignore_index=True)


def arms(factor: int = 1) -> list[pd.DataFrame]:
    """Return the first published repeat of baseline and comparison."""
    evidence = load_published(STUDY, PUBLISHED)
    names = evidence.study.baseline, evidence.study.comparison
    return [repeated(evidence.tables(name)[0], factor) for name in names]


def ours_s(tables: list[pd.DataFrame], resamples: int) -> float:
    """Return seconds of the full comparison."""
    start = time.perf_counter()
    compare([tables[0]], [tables[1]], load_study(STUDY).slo, resamples=resamples)
    return time.perf_counter() - start


def arch_s(tables: list[pd.DataFrame], resamples: int, block_rows: int) -> tuple[float, int]:
    """Return seconds and number of statistics of one `arch` call for each of them."""
    slo = load_study(STUDY).slo
    first, second = (table.sort_values("row").reset_index(drop=True) for table in tables)
    runs = ((0, first), (1, second))
    both = pd.DataFrame({f"{key}_{n}": table[key] for key in LATENCIES for n, table in runs})
    both["good_0"], both["good_1"] = good(first, slo), good(second, slo)

    def apart(key: str, name: str):
        def of(frame: pd.DataFrame) -> float:
            one, two = (frame[f"{key}_{n}"] for n in (0, 1))
            if name == "mean":
                return two.mean() - one.mean()
            q = PERCENTILES[name] / 100
            return two.quantile(q) - one.quantile(q)

        return of

    wanted = [apart(key, name) for key in LATENCIES for name in COMPARED]
    wanted.append(apart("good", "mean"))
    wanted += [lambda f, k=k: (f[f"{k}_1"] < f[f"{k}_0"]).mean() for k in LATENCIES]
    wanted += [lambda f, k=k: (f[f"{k}_1"] - f[f"{k}_0"]).median() for k in LATENCIES]
    start = time.perf_counter()
    for of in wanted:
        StationaryBootstrap(block_rows, both, seed=1).conf_int(of, reps=resamples, method="basic")
    return time.perf_counter() - start, len(wanted)


def _measure(factor: int, resamples: int) -> dict:
    tables = arms(factor)
    profile = cProfile.Profile()
    with memory.over_time() as memory_gb, profile:
        seconds = ours_s(tables, resamples)
    told = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage's may be a parent's
    peak_gb = float(re.search(r"VmHWM:\s+(\d+) kB", told)[1]) / 1e6
    return {
        "rows": len(tables[0]),
        "seconds": seconds,
        "peak_gb": peak_gb,
        "memory": memory_gb,
        "parts": _parts(profile),
    }


def _parts(profile: cProfile.Profile) -> dict[str, float]:
    """Return seconds of the parts of a comparison; what their threads do, they wait for."""
    found = dict.fromkeys(COMPARISON, 0.0)
    for (file, _, function), (_, _, _, seconds, _) in pstats.Stats(profile).stats.items():
        if (name := f"{Path(file).stem}.{function}") in found:
            found[name] += seconds
    if lost := [name for name, seconds in found.items() if not seconds]:
        raise SystemExit(f"not called, or called otherwise now: {', '.join(lost)}")
    return found


def growth(resamples: int) -> list[dict]:
    """Return rows, seconds and peak memory of the comparison at each size."""
    context = multiprocessing.get_context("spawn")
    measured = []
    for factor in FACTORS:
        with ProcessPoolExecutor(1, context) as alone:
            measured.append(alone.submit(_measure, factor, resamples).result())
        last = measured[-1]
        print(f"{last['rows']:,} pairs, {resamples:,} resamples: "
              f"{last['seconds']:.1f} s, {last['peak_gb']:.2f} GB", flush=True)  # fmt: skip
    rows, seconds = (np.array([each[key] for each in measured]) for key in ("rows", "seconds"))
    slope = np.polyfit(np.log(rows), np.log(seconds), 1)[0]
    print(f"seconds grow as rows to the power of {slope:.2f}")
    return measured


def main(pairs: int = 5, resamples: int = 200) -> None:
    """Measure the ratio over interleaved pairs, then the growth."""
    tables, measured = arms(), []
    method = compare([tables[0]], [tables[1]], load_study(STUDY).slo, resamples=100).method
    block_rows = round(method.block_bursts * len(tables[0]) / method.bursts)
    for number in range(pairs):
        ours = ours_s(tables, resamples) if number % 2 else None
        theirs, statistics_called = arch_s(tables, resamples, block_rows)
        ours = ours or ours_s(tables, resamples)
        measured.append({"kvab_s": ours, "arch_s": theirs})
        print(f"pair {number + 1}: kvab {ours:.1f} s, arch {theirs:.1f} s for {statistics_called} "
              f"statistics, ratio {ours / theirs:.3f}", flush=True)  # fmt: skip
    ratio = statistics.median(each["kvab_s"] / each["arch_s"] for each in measured)
    document = {"resamples": resamples, "pairs": measured, "growth": growth(2000)}
    out = root() / "benchmarks" / "results" / "comparison.json"
    out.write_text(json.dumps(document, indent=2) + "\n")
    print(f"median ratio {ratio:.3f} over {pairs} pairs; raw data in {out}")


if __name__ == "__main__":
    typer.run(main)
