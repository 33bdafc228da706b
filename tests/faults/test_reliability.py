"""docs/reliability.md: numbers from the two files alone, and what went wrong comes first."""

import reliability
from counting import WRONG

KILL = {"kind": "simulated", "fault": "kill", "injected": 1200, "completed": 30, "refused": 2,
        "seconds": 9.5, **dict.fromkeys(WRONG, 0)}  # fmt: skip
FULL = {**KILL, "kind": "live", "fault": "full disk", "injected": 3}
READER = {"inputs": 1000, "accepted": 300, "refused": 698, "crashed": 2, "slowest_ms": 12.5,
          "peak_mb": 170, "seconds": 3.5}  # fmt: skip
SOUND = {**READER, "refused": 700, "crashed": 0}


def page(*faults, skipped=(), readers=None):
    campaign = {"seed": 7, "date": "2026-01-01T00:00:00Z", "seconds": 90, "cores": 2,
                "time_scale": 12, "faults": faults, "skipped": skipped}  # fmt: skip
    return reliability.page(campaign, {"seed": 5, "readers": readers or {"trace": SOUND}})


def test_the_committed_page_is_made_of_the_published_files():
    assert reliability.PAGE.read_text() == reliability.published()


def test_nothing_wrong_is_said_with_how_much_was_tried():
    told = page(FULL, KILL)
    assert "**1,203 faults, 1,200 of them kills, on 2 kinds of cluster: nothing went" in told
    assert "60 runs were completed so" in told
    assert "Seed 7, 2026-01-01, 2 cores, 1.5 minutes." in told
    assert "Left out" not in told


def test_what_went_wrong_comes_first_and_withholds_the_lesson():
    told = page(FULL, {**KILL, "lost": 2, "locked": 1})
    assert "2 runs lost, 1 runs left locked.** The target" in told
    assert "Things went wrong (2 runs lost, 1 runs left locked)" in told
    assert "nothing is cleaned up by hand" not in told


def test_the_table_has_a_line_a_fault_kills_first():
    lines = page(FULL, {**KILL, "altered": 4}).splitlines()
    first = lines.index("| simulated | kill | 1,200 | 30 | 2 | 4 results altered |")
    assert lines[first + 1] == "| live | full disk | 3 | 30 | 2 | nothing |"


def test_what_was_left_out_is_named():
    told = page(KILL, skipped=[{"kind": "kubernetes", "fault": "kill", "why": "no schemas"}])
    assert "\nLeft out:\n\n- kill on kubernetes: no schemas\n\n## Broken" in told


def test_broken_inputs_are_counted_by_reader():
    told = page(KILL, readers={"trace": READER, "runs": SOUND})
    assert "**2,000 broken inputs for 2 readers: 2 of them made a reader crash.**" in told
    assert "| run folders | 1,000 | 300 | 700 | 0 | 12 | 170 |" in told
    assert "not one of them made a reader crash" in page(KILL)
