"""docs/performance.md: how long the study's own steps take, and the memory of large inputs.

Input: benchmarks/results/, as the other programs here write it; `make bench` runs this last.
Output: the page and its figure. Ratios are of interleaved pairs of one run, so they travel to
another machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import matplotlib as mpl
import matplotlib.pyplot as plt

from kvab.console import number, percent
from kvab.pages.theme import THEME, WIDTH_IN

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, FIGURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "memory.svg"
NAMES = ("replay", "records", "comparison", "report", "startup")
REPLAY = {
    "loading_s": "loading the simulator's packages, once a process",
    "planning_s": "reading the trace, checking the recipe",
    "simulator_s": "the simulator: its kernel data, the replay, its records",
    "reported_s": "… of which it reports the replay",
    "converting_s": "writing the trace for it, making the requests table",
    "writing_s": "writing the run folder",
}
COMPARISON = {  # functions of which none calls another one
    "contrasts.pair": "pairing the rows",
    "contrasts.plan": "estimating the block length",
    "bootstrap._drawn": "drawing bursts (arch)",
    "contrasts.sample": "sorting each metric",
    "bootstrap.percentiles": "percentiles of every resample",
    "bootstrap.hodges_lehmann": "Hodges-Lehmann estimates and their ends",
}
TEXT = """\
# How long do the study's own steps take?

Is it quick enough to try an idea, and does it grow to a real campaign? Ratios are to what one
would use instead. `make bench` measures it and writes this page.

{ratios}

Seconds are medians on the machine that ran the benchmarks; only the ratios, measured in
interleaved pairs of one run, travel to another machine.

## Where a replay's time goes

{replay}

Seconds of one replay of the whole trace by part, medians over processes. A replay cannot be faster
than NVIDIA's simulator, which does the work: beside the time that the simulator reports of itself,
a replay loads it, writes the trace for it and reads its records back. Arms are replayed side by
side, one a core, and a process that replays several loads the simulator once.

## Where a comparison's time goes

{comparison}

The largest comparison below, by part. Every statistic is evaluated on the same draws, so bursts
are drawn once. A percentile of a resample lies near that of the sample, and only there are weights
added up; the Hodges-Lehmann estimate is found by bisection among all pairwise means, without
forming them.

## Large inputs

{growth}

![Memory over time, a panel for each large input](memory.svg)

Each by itself; memory is that of all its processes, twice a second, and what they share counts
once. AIPerf's records are read line by line and without their chunk times, so memory is that of
the table. The comparison draws bursts and copies no rows: memory holds the pairs, and how often
each burst was drawn. The book loads its runs once for each page, a few pages at a time.

## What was learned

{lesson}
"""


def table(rows: list[dict]) -> str:
    """Return rows as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def against(told: dict[str, dict]) -> list[tuple[str, str, list[float], list[float]]]:
    """Return what was measured against what: both names, seconds of ours and of the other's."""
    replay, records, comparison = (told[name] for name in ("replay", "records", "comparison"))
    parts = [name for name in REPLAY if name not in ("loading_s", "reported_s")]
    profile = [{**each, "all": sum(each[part] for part in parts)} for each in replay["profile"]]
    book = [{kind: each[kind]["seconds"] for kind in each} for each in told["report"]["pairs"]]
    reading = f"reading {records['requests']:,} records of AIPerf"
    compared = f"comparison, {comparison['resamples']:,} resamples"
    cells = f"sixteen cells of a sweep on {replay['scaling'][0]['cores']} cores"
    found = [
        *((f"replay of {arms} arms", f"{arms} aisimulate commands, one after the other",
           replay[arms], "kvab", "commands") for arms in ("two", "four")),
        ("replay of one arm", "the simulator's calls within it", profile, "all", "simulator_s"),
        ("kvab run of one arm", "the simulator's call within it", replay["run"], "command_s",
         "simulator_s"),
        (cells, "the same on one core", replay["scaling"], "all", "one"),
        (reading, "pandas.read_json(lines=True)", records["pairs"], "kvab", "pandas"),
        (reading, "the loader of aiperf plot", records["pairs"], "kvab", "aiperf"),
        (compared, "one arch call a statistic", comparison["pairs"], "kvab_s", "arch_s"),
        ("the book again, nothing changed", "the book with an empty cache", book, "cached", "cold"),
        *((command, "python -c 'import pandas'", told["startup"]["pairs"], command, "import pandas")
          for command in told["startup"]["pairs"][0] if command != "import pandas"),
    ]  # fmt: skip
    return [(step, other, [each[a] for each in pairs], [each[b] for each in pairs])
            for step, other, pairs, a, b in found]  # fmt: skip


def ratios(told: dict[str, dict]) -> list[dict]:
    """Return how many times as fast each step is as what one would use instead."""
    rows = []
    for step, other, ours, theirs in against(told):
        times = [b / a for a, b in zip(ours, theirs, strict=True)]
        rows.append({
            "step": step,
            "seconds": number(median(ours)),
            "against": other,
            "times as fast": number(median(times)),
            "range over pairs": f"{number(min(times))} to {number(max(times))} ({len(times)})",
        })  # fmt: skip
    return rows


def lesson(told: dict[str, dict]) -> str:
    """Return where most is gained and where least; start-up has no rival."""
    gains = {
        (step, other): median(b / a for a, b in zip(ours, theirs, strict=True))
        for step, other, ours, theirs in against(told)
        if not step.startswith("kvab ")
    }
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    said = [f"in {each[0]}: {number(gains[each])} times as fast as {each[1]}"
            for each in (best, worst)]  # fmt: skip
    return f"Most is gained {said[0]}. Least {said[1]}."


def replay_parts(profile: list[dict]) -> list[dict]:
    """Return where the time of a replay goes, a row a part."""
    arms = dict.fromkeys(each["arm"] for each in profile)
    return [
        {"part": said, **{
            f"{arm} [s]": number(median(each[part] for each in profile if each["arm"] == arm))
            for arm in arms
        }}
        for part, said in REPLAY.items()
    ]  # fmt: skip


def comparison_parts(largest: dict) -> list[dict]:
    """Return where the time of a comparison goes, a row a part; they add up to all of it."""
    parts = {said: largest["parts"][name] for name, said in COMPARISON.items()}
    parts["the rest"] = largest["seconds"] - sum(parts.values())
    whole = largest["seconds"]
    return [{"part": said, "seconds": number(seconds), "share": percent(seconds / whole)}
            for said, seconds in parts.items()]  # fmt: skip


def growth(told: dict[str, dict]) -> list[dict]:
    """Return time and memory of large inputs, each in a process of its own."""
    records, book = told["records"]["large"], told["report"]["large"]
    size = f"{records['requests']:,} requests, {records['bytes'] / 1e9:.1f} GB"
    found = [("comparison", f"{each['rows']:,} pairs", each["seconds"], each["peak_gb"])
             for each in told["comparison"]["growth"]]  # fmt: skip
    found += [
        ("reading AIPerf's records", size, records["seconds"], records["peak_mb"] / 1e3),
        ("the book", f"{book['runs']:,} runs of the trace", book["seconds"], book["peak_gb"]),
    ]
    columns = ("step", "size", "seconds", "memory at most [GB]")
    return [dict(zip(columns, (step, size, number(seconds), number(peak)), strict=True))
            for step, size, seconds, peak in found]  # fmt: skip


def draw(told: dict[str, dict], path: Path) -> None:
    """Draw memory over time, a panel for each large input that was watched."""
    watched = {
        "comparison": told["comparison"]["growth"][-1]["memory"],
        "the book": told["report"]["large"]["memory"],
    }
    with mpl.rc_context(THEME):
        figure, axes = plt.subplots(1, len(watched), figsize=(WIDTH_IN, 2.5), sharey=True)
        for place, (step, memory) in zip(axes, watched.items(), strict=True):
            seconds, gb = zip(*memory, strict=True)
            place.plot(seconds, gb, color="#333333", linewidth=1.3)
            place.fill_between(seconds, gb, color="#8c8c8c", alpha=0.25, linewidth=0)
            place.set(title=step, xlabel="seconds", xlim=(0, None), ylim=(0, None))
        axes[0].set_ylabel("memory [GB]")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def page(told: dict[str, dict]) -> str:
    """Return the page of the results, by the name of their file."""
    return TEXT.format(
        ratios=table(ratios(told)),
        replay=table(replay_parts(told["replay"]["profile"])),
        comparison=table(comparison_parts(told["comparison"]["growth"][-1])),
        growth=table(growth(told)),
        lesson=lesson(told),
    )


def results() -> dict[str, dict]:
    """Return what the benchmarks measured, by the name of their file."""
    return {name: json.loads((RESULTS / f"{name}.json").read_bytes()) for name in NAMES}


if __name__ == "__main__":
    PAGE.write_text(page(results()), encoding="utf-8")
    draw(results(), FIGURE)
    print(PAGE)
