"""The fault campaign on its page: numbers from the file alone, plain words where there is none."""

import json

import pytest

from kvab.errors import InputError
from kvab.evidence.reliability import WRONG, Campaign, load_fuzzing, load_reliability
from kvab.tables import reliability as tables
from kvab.wording import reliability as wording

FAULT = {"kind": "simulated", "fault": "kill", "injected": 1200, "completed": 30, "refused": 2,
         "seconds": 9.5, **dict.fromkeys(WRONG, 0)}  # fmt: skip
CONTENT = {
    "schema": 1,
    "seed": 1,
    "date": "2026-01-01T00:00:00Z",
    "seconds": 90,
    "cores": 2,
    "time_scale": 12,
    "versions": {},
    "faults": [{**FAULT, "kind": "live", "fault": "full disk", "injected": 3}, FAULT],
}


def campaign(**changes):
    faults = [CONTENT["faults"][0], {**FAULT, **changes}]
    return Campaign.model_validate({**CONTENT, "faults": faults})


def published(folder, content):
    (folder / "reliability.json").write_text(json.dumps(content))
    return load_reliability(folder)


def test_without_a_campaign_the_page_says_so(tmp_path):
    assert load_reliability(tmp_path) is None
    assert "No fault campaign is published" in wording.answer(None)
    assert tables.faults(None) is None
    assert wording.setup(None) == ""
    assert "without a campaign" in wording.learned(None)


def test_a_file_that_is_no_campaign_is_refused_by_its_key(tmp_path):
    with pytest.raises(InputError, match=r"reliability\.json: faults\.1\.lost: .*make faults"):
        published(tmp_path, {**CONTENT, "faults": [FAULT, {**FAULT, "lost": -1}]})


def test_nothing_wrong_is_said_with_how_much_was_tried(tmp_path):
    told = wording.answer(published(tmp_path, CONTENT))
    assert told.startswith("**1,203 faults, 1,200 of them kills, on 2 kinds of cluster: nothing")
    assert "60 runs were completed so" in wording.learned(campaign())


def test_what_went_wrong_comes_first_and_withholds_the_lesson():
    found = campaign(lost=2, locked=1)
    assert "2 runs lost, 1 runs left locked.** The target" in wording.answer(found)
    assert "3 things went wrong" in wording.learned(found)


def test_the_table_has_a_line_a_fault_kills_first():
    frame = tables.faults(campaign(altered=4)).frame
    assert list(frame["fault"]) == ["kill", "full disk"]
    assert list(frame["went wrong"]) == ["4 results altered", "nothing"]


def test_what_was_left_out_is_named():
    skipped = [{"kind": "kubernetes", "fault": "kill", "why": "no schemas"}]
    found = Campaign.model_validate({**CONTENT, "skipped": skipped})
    assert "- kill on kubernetes: no schemas" in wording.setup(found)


def test_another_campaign_is_another_key():
    assert campaign().key != campaign(lost=1).key


READER = {"inputs": 1000, "accepted": 300, "refused": 698, "crashed": 2, "slowest_ms": 12.5,
          "peak_mb": 170, "seconds": 3.5}  # fmt: skip


def test_broken_inputs_are_counted_by_reader(tmp_path):
    sound = {**READER, "refused": 700, "crashed": 0}
    told = {"seed": 1, "readers": {"trace": READER, "runs": sound}}
    (tmp_path / "fuzzing.json").write_text(json.dumps(told))
    found = load_fuzzing(tmp_path)
    assert wording.inputs(found).startswith(
        "**2,000 broken inputs for 2 readers: 2 of them made a reader"
    )
    assert list(tables.inputs(found).frame["crashed"]) == ["2", "0"]
    told["readers"] = {"trace": sound}
    (tmp_path / "fuzzing.json").write_text(json.dumps(told))
    assert "not one of them made a reader crash" in wording.inputs(load_fuzzing(tmp_path))


def test_without_fuzzing_the_page_says_so(tmp_path):
    assert load_fuzzing(tmp_path) is None
    assert "`make fuzz`" in wording.inputs(None)
    assert tables.inputs(None) is None
    (tmp_path / "fuzzing.json").write_text("{}")
    with pytest.raises(InputError, match=r"fuzzing\.json: seed: .*make fuzz"):
        load_fuzzing(tmp_path)
