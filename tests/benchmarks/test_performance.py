"""docs/performance.md: what the benchmarks measured, and nothing that they did not."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = dict.fromkeys(("contrasts.pair", "contrasts.plan", "bootstrap._drawn", "contrasts.sample",
                       "bootstrap.percentiles", "bootstrap.hodges_lehmann"), 1.5)  # fmt: skip
MEMORY = [[0.5, 1.0], [1.0, 2.0]]
ONE = {"arm": "a", "loading_s": 1, "planning_s": 1, "simulator_s": 8, "converting_s": 0.5,
       "writing_s": 0.5, "reported_s": 7}  # fmt: skip
TOLD = {
    "replay": {
        "two": [{"kvab": 2, "commands": 4}, {"kvab": 2, "commands": 5}, {"kvab": 2, "commands": 9}],
        "four": [{"kvab": 2, "commands": 8}],
        "profile": [ONE, {**ONE, "simulator_s": 10}],
        "run": [{"command_s": 10, "simulator_s": 8}, {"command_s": 10, "simulator_s": 9}],
        "scaling": [{"one": 40, "all": 20, "cores": 2}],
    },
    "records": {
        "requests": 5000,
        "pairs": [{"kvab": 1, "pandas": 8, "aiperf": 14}],
        "large": {"requests": 10**6, "bytes": 6e9, "seconds": 24, "peak_mb": 360},
    },
    "comparison": {
        "resamples": 200,
        "pairs": [{"kvab_s": 1, "arch_s": 15}],
        "growth": [
            {"rows": 12, "seconds": 1, "peak_gb": 0.5},
            {"rows": 3000, "seconds": 10, "peak_gb": 2, "memory": MEMORY, "parts": PARTS},
        ],
    },
    "report": {
        "pairs": [{"cold": {"seconds": 60}, "cached": {"seconds": 10}}],
        "large": {"runs": 200, "seconds": 149, "peak_gb": 4, "memory": MEMORY},
    },
    "startup": {"pairs": [{"import pandas": 1, "kvab --help": 0.02}]},
}


@pytest.fixture(scope="module")
def performance():
    return SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "performance.py")))


def test_the_committed_page_is_made_of_the_measured_files(performance):
    assert performance.PAGE.read_text() == performance.page(performance.results())
    assert performance.FIGURE.is_file()


def test_ratios_are_medians_over_pairs(performance):
    rows = {row["step"]: row for row in performance.ratios(TOLD)}
    two = rows["replay of two arms"]
    assert (two["times as fast"], two["range over pairs"]) == ("2.50", "2.00 to 4.50 (3)")
    assert rows["comparison, 200 resamples"]["times as fast"] == "15.0"
    assert rows["replay of one arm"]["times as fast"] == "0.82"  # of 8/10 and 10/12
    assert rows["kvab run of one arm"]["times as fast"] == "0.85"  # of 8/10 and 9/10
    assert rows["kvab --help"]["against"] == "python -c 'import pandas'"


def test_the_largest_comparison_is_taken_apart_and_adds_up(performance):
    rows = performance.comparison_parts(TOLD["comparison"]["growth"][-1])
    assert [row["share"] for row in rows] == 6 * ["15.0 %"] + ["10.0 %"]


def test_the_lesson_names_most_and_least_and_leaves_start_up_out(performance):
    assert performance.lesson(TOLD) == (
        "Most is gained in comparison, 200 resamples: 15.0 times as fast as one arch call a "
        "statistic. Least in replay of one arm: 0.82 times as fast as the simulator's calls "
        "within it."
    )


def test_large_inputs_have_a_line_and_those_watched_a_panel(performance, tmp_path):
    assert "| comparison | 3,000 pairs | 10.0 | 2.00 |" in performance.page(TOLD)
    performance.draw(TOLD, tmp_path / "memory.svg")
    assert (tmp_path / "memory.svg").read_bytes().count(b'id="axes_') == 2
