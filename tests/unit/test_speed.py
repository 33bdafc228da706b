"""What the benchmarks wrote, as the page on performance shows it."""

import json

import pytest

from kvab.errors import InputError
from kvab.evidence import speed
from kvab.figures import speed as speed_figures
from kvab.tables import speed as speed_tables
from kvab.wording import speed as speed_wording

PARTS = dict.fromkeys(("pairing.pair", "pairing.plan", "bootstrap._drawn", "pairing.sample",
                       "percentiles.percentiles", "ranks.hodges_lehmann"), 1.5)  # fmt: skip
MEMORY = [[0.5, 1.0], [1.0, 2.0]]
ONE = {"loading_s": 1, "planning_s": 1, "simulator_s": 8, "converting_s": 0.5, "writing_s": 0.5,
       "reported_s": 7}  # fmt: skip
WRITTEN = {
    "replay": {
        "two": [{"kvab": 2, "commands": 4}, {"kvab": 2, "commands": 5}, {"kvab": 2, "commands": 9}],
        "profile": [{"arm": "a", **ONE}, {"arm": "a", **ONE, "simulator_s": 10}],
    },
    "comparison": {
        "resamples": 200,
        "pairs": [{"kvab_s": 1, "arch_s": 15}],
        "growth": [
            {"rows": 12, "seconds": 1, "peak_gb": 0.5},
            {"rows": 3000, "seconds": 10, "peak_gb": 2, "memory": MEMORY, "parts": PARTS},
        ],
    },
}


@pytest.fixture
def written(tmp_path):
    for name, told in WRITTEN.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    return tmp_path


def test_ratios_are_medians_over_pairs(written):
    found = speed.load_speed(written).set_index("step")
    two = found.loc["replay of two arms"]
    assert [two[name] for name in ("ratio", "least", "most", "pairs")] == [2.5, 2, 4.5, 3]
    assert found.loc["comparison, 200 resamples", "ratio"] == 15
    assert found.loc["replay of one arm", "ratio"] == pytest.approx((8 / 10 + 10 / 12) / 2)


def test_largest_comparison_is_taken_apart_and_adds_up(written):
    table = speed_tables.comparison_profile(speed.load_comparison_profile(written)).frame
    assert [*table["share"]] == 6 * ["15.0 %"] + ["10.0 %"]
    assert [*speed.load_growth(written)["size"]] == ["12 pairs", "3,000 pairs"]
    assert speed.load_profile(written).loc["a", "simulator_s"] == 9


def test_memory_is_drawn_where_it_was_measured(written):
    panel = speed_figures.memory(speed.load_memory(written))
    assert panel.caption.startswith("No large input needs more than 2.00 GB: comparison 2.00 GB.")
    assert b"SIMULATED" not in panel.svg
    assert panel.csv.splitlines()[1] == b"0.5,1,comparison"


def test_nothing_measured_is_said(tmp_path):
    loaders = (speed.load_speed, speed.load_growth, speed.load_profile, speed.load_memory,
               speed.load_comparison_profile)  # fmt: skip
    assert [load(tmp_path / "none") for load in loaders] == 5 * [None]
    assert "make bench" in speed_wording.lesson(None)
    assert speed_figures.memory(None) is None


@pytest.mark.parametrize("content", ["{", '{"two": [{"kvab": 1}]}', '{"profile": [1]}'])
def test_broken_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "replay.json").write_text(content)
    with pytest.raises(InputError, match="expected what `make bench` writes") as refused:
        speed.load_speed(tmp_path)
    assert len(str(refused.value).splitlines()) == 1
