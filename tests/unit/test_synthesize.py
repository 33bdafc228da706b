"""The made-up trace has the published marginals of the real one."""

import json
import os

import numpy as np
import pytest

from kvab.errors import InputError
from kvab.trace.reading import describe, read_trace, reusable_tokens
from kvab.trace.synthesize import generated, synthesize, write_generated

REAL = os.environ.get("KVAB_TRACE")

# Percentiles of the real trace (sha256 b8cbb061…), computed with numpy.percentile.
PROMPT = {5: 901, 10: 964, 25: 2306.5, 50: 6909, 75: 15367, 90: 27367, 95: 39550.5, 99: 85400}
ANSWER = {5: 10, 10: 24, 25: 156.5, 50: 350, 75: 472, 90: 597, 95: 698, 99: 1118.5}
SEEDS = (1, 2, 3)


def row_lengths(rows):
    """Prompts and answers in tokens, blocks by row."""
    return (
        np.array([row["input_length"] for row in rows]),
        np.array([row["output_length"] for row in rows]),
        [row["hash_ids"] for row in rows],
    )


@pytest.fixture(scope="module", params=SEEDS)
def trace(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "made.jsonl"
    return read_trace(write_generated(path, seed=request.param))


@pytest.fixture(scope="module")
def described(trace):
    return describe(trace)


def test_every_row_says_that_it_is_made_up():
    assert all(row["synthetic"] is True for row in synthesize(50))


def test_a_made_up_trace_passes_the_reader(trace):
    assert (len(trace), trace.synthetic) == (12031, True)


@pytest.mark.parametrize("percentile", PROMPT)
def test_prompt_lengths_are_as_published(trace, percentile):
    got = np.percentile(trace.input_tokens, percentile)
    assert got == pytest.approx(PROMPT[percentile], rel=0.05)


@pytest.mark.parametrize("percentile", ANSWER)
def test_answer_lengths_are_as_published(trace, percentile):
    got = np.percentile(trace.output_tokens, percentile)
    assert got == pytest.approx(ANSWER[percentile], rel=0.05)


def test_means_are_as_published(described):
    assert described["input_tokens"]["mean"] == pytest.approx(12035, rel=0.02)
    assert described["output_tokens"]["mean"] == pytest.approx(343, rel=0.02)
    assert described["input_tokens_per_s"] == pytest.approx(40937, rel=0.03)


def test_prompts_stay_within_the_published_range(described):
    assert described["input_tokens"]["min"] == 891
    assert 120_000 < described["input_tokens"]["max"] <= 126_195


def test_one_token_answers_have_their_share(described):
    assert described["one_token_rows"] == 72


def test_requests_a_minute_are_as_published(described):
    per_min = described["rows"] / (described["duration_s"] / 60)
    assert per_min == pytest.approx(12031 / (3537 / 60), rel=0.03)


def test_the_clock_ticks_every_three_seconds_in_bursts(described):
    assert described["timestamp_step_s"] == 3.0
    assert described["mean_burst"] == pytest.approx(10.2, rel=0.03)
    assert 20 <= described["largest_burst"] <= 28


def test_cache_efficiency_is_within_a_point(described):
    assert described["cache_efficiency"] == pytest.approx(0.3664, abs=0.01)
    assert described["unique_blocks"] == pytest.approx(182_790, rel=0.03)


def test_reuse_is_by_prefix_as_in_the_real_trace(trace):
    """Origin of 37.36 %: the same function on the real trace."""
    share = reusable_tokens(trace).sum() / trace.input_tokens.sum()
    assert share == pytest.approx(0.3736, abs=0.015)


def test_all_prompts_share_the_first_block(trace):
    assert {ids[0] for ids in trace.hash_ids} == {0}


def test_no_prompt_holds_a_block_twice(trace):
    assert all(len(set(ids)) == len(ids) for ids in trace.hash_ids)


def test_a_conversation_goes_on_only_after_its_turn_and_answer(trace):
    """Blocks beyond the first come from one earlier row that fits, 12 s or more before."""
    owner = {}
    continuing = 0
    for row, ids in enumerate(trace.hash_ids):
        known = [block for block in ids[1:] if block in owner]
        assert list(ids[1 : 1 + len(known)]) == known
        if known:
            continuing += 1
            before = owner[known[-1]]
            assert trace.timestamp_ms[row] - trace.timestamp_ms[before] >= 12_000
            assert (
                trace.input_tokens[before] + trace.output_tokens[before] <= trace.input_tokens[row]
            )
        owner.update(dict.fromkeys(ids[1:], row))
    assert continuing / len(trace) == pytest.approx(0.387, abs=0.02)


def test_reuse_grows_from_a_cold_start_as_in_the_real_trace():
    """Origin: the first 300, 1,000 and 3,000 rows of the real trace, 8.0, 21.2 and 31.4 %."""
    for rows, real in ((300, 0.080), (1000, 0.212), (3000, 0.314)):
        ids = [block for row in synthesize(rows) for block in row["hash_ids"]]
        assert 1 - len(set(ids)) / len(ids) == pytest.approx(real, abs=0.05)


@pytest.mark.parametrize("rows", [1, 2, 9, 300])
def test_a_short_trace_passes_the_reader(tmp_path, rows):
    assert len(read_trace(write_generated(tmp_path / "t.jsonl", rows=rows))) == rows


def test_a_short_trace_keeps_rate_and_median_lengths():
    rows = synthesize(300)
    prompt, answer, _ = row_lengths(rows)
    assert np.median(prompt) == pytest.approx(6909, rel=0.05)
    assert np.median(answer) == pytest.approx(350, rel=0.05)
    assert 300 / (rows[-1]["timestamp"] / 60_000) == pytest.approx(204, rel=0.15)


def test_other_block_sizes_cover_the_prompts(tmp_path):
    path = write_generated(tmp_path / "t.jsonl", rows=300, block_tokens=64)
    assert len(read_trace(path, block_tokens=64)) == 300


def test_equal_seeds_give_equal_files(tmp_path):
    one = write_generated(tmp_path / "one.jsonl", rows=500, seed=5)
    two = write_generated(tmp_path / "two.jsonl", rows=500, seed=5)
    assert one.read_bytes() == two.read_bytes()


def test_other_seeds_give_other_rows():
    assert synthesize(500, 5) != synthesize(500, 6)


def test_rows_are_plain_json():
    rows = synthesize(20)
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows of 1 or more, got 0"),
        ({"seed": -1}, "seed of 0 or more, got -1"),
        ({"block_tokens": 0}, "blocks of 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        synthesize(**arguments)


def test_an_existing_file_is_not_overwritten_unasked(tmp_path):
    path = write_generated(tmp_path / "t.jsonl", rows=5)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_generated(path, rows=6)
    assert path.read_bytes() == before
    assert len(read_trace(write_generated(path, rows=6, overwrite=True))) == 6


def test_the_stand_in_names_its_seed(tmp_path):
    trace = read_trace(generated(30, 512, tmp_path))
    assert (trace.name, len(trace)) == ("GENERATED WORKLOAD (seed 1)", 30)


@pytest.mark.skipif(
    not REAL, reason="the real trace: run `kvab trace fetch --to FILE` and name it in KVAB_TRACE"
)
def test_marginals_agree_with_the_real_trace(trace):
    real = read_trace(REAL)
    for column in ("input_tokens", "output_tokens"):
        percentiles = np.arange(5, 100, 5)
        got = np.percentile(getattr(trace, column), percentiles)
        np.testing.assert_allclose(
            got, np.percentile(getattr(real, column), percentiles), rtol=0.08
        )
