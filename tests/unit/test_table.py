"""Simulator records -> the requests table."""

import dataclasses

import numpy as np
import pytest

from kvab.clusters.simulated import from_simulator, sending
from kvab.errors import DependencyError, InputError
from kvab.requests.table import PARTS, check_table
from kvab.trace.reading import burst_order, read_trace


@pytest.fixture
def trace(small_trace):
    return read_trace(small_trace)


def records(trace, order, at_ms, prefill_worker=None):
    """Records as the simulator gives them: no row id, in another order."""
    made = [
        {
            "arrival_time_ms": at,
            "input_length": int(trace.input_tokens[row]),
            "requested_output_length": int(trace.output_tokens[row]),
            "output_length": int(trace.output_tokens[row]),
            "ttft_ms": 100.0 + row,
            "e2e_latency_ms": 100.0 + row + 10.0 * (int(trace.output_tokens[row]) - 1),
            "first_token_ms": at + 100.0 + row,
            "first_admit_ms": at + 20.0,
            "source_held_ms": at + 70.0,
            "decode_admit_ms": at + 90.0,
            "reused_input_tokens": 64,
            "prefill_worker_idx": prefill_worker,
            "decode_worker_idx": int(row) % 8,
            "terminal_status": "completed",
        }
        for row, at in zip(order, at_ms, strict=True)
    ]
    return made[::-1]


def tidied(trace, seed=0, spoil=lambda made: None, frontend_ms=0.0, prefill_worker=None):
    order = burst_order(trace.timestamp_ms, seed)
    sent = sending(trace, order, frontend_ms)
    made = records(trace, order, sent["reached_ms"] - sent["reached_ms"].min(), prefill_worker)
    spoil(made)
    return from_simulator(made, sent)


@pytest.mark.parametrize("seed", [0, 5])
def test_every_record_finds_its_row(trace, seed):
    table = tidied(trace, seed)
    assert (table["row"] == np.arange(len(trace))).all()
    assert (table["ttft_ms"] == 100.0 + table["row"]).all()
    assert (table["arrival_ms"] == trace.arrival_ms).all()


def test_itl_is_the_mean_gap_and_undefined_for_one_token(trace):
    table = tidied(trace)
    one = table["output_tokens"] == 1
    assert one.sum() == 1
    assert table.loc[one, "itl_ms"].isna().all()
    np.testing.assert_allclose(table.loc[~one, "itl_ms"], 10.0)


def test_an_aggregated_worker_is_both_workers(trace):
    table = tidied(trace)
    assert (table["prefill_worker"] == table["decode_worker"]).all()


@pytest.mark.parametrize(
    ("prefill_worker", "parts"), [(3, [20.0, 50.0, 20.0, 10.0]), (None, [20.0, 80.0, 0.0, 0.0])]
)
def test_the_parts_of_a_ttft_add_up_to_it(trace, prefill_worker, parts):
    table = tidied(trace, prefill_worker=prefill_worker)
    assert table.loc[0, [*PARTS]].tolist() == pytest.approx(parts)
    np.testing.assert_allclose(table[[*PARTS]].sum(axis=1), table["ttft_ms"])


def test_a_frontend_that_reads_one_prompt_at_a_time_is_waited_for(trace):
    at_once, read = tidied(trace), tidied(trace, frontend_ms=2.0)
    waited = read["ttft_ms"] - at_once["ttft_ms"]
    assert (waited > 2.0 * trace.input_tokens / 1000 - 1e-3).all()
    np.testing.assert_allclose(read["queue_ms"] - at_once["queue_ms"], waited, atol=1e-3)
    np.testing.assert_allclose(read["latency_ms"] - at_once["latency_ms"], waited)
    burst = trace.arrival_ms == trace.arrival_ms[0]
    assert waited[burst].max() == pytest.approx(
        trace.input_tokens[burst].sum() * 2.0 / 1000, abs=1e-3
    )


def test_a_table_of_schema_1_has_no_parts(trace):
    table = check_table(tidied(trace).drop(columns=[*PARTS]), "here")
    assert table[[*PARTS]].isna().all(axis=None)
    with pytest.raises(InputError, match="none named prefill_ms"):
        check_table(tidied(trace).drop(columns="prefill_ms"), "here")


def test_a_lost_record_is_a_row_with_an_error(trace):
    table = tidied(trace, spoil=lambda made: made.pop())
    assert len(table) == len(trace)
    (error,) = table["error"].dropna()
    assert "lost" in error


def test_a_request_that_failed_keeps_no_latency(trace):
    table = tidied(trace, spoil=lambda made: made[0].update(terminal_status="rejected"))
    failed = table[table["error"].notna()]
    assert failed["error"].tolist() == ["rejected: longer than a worker takes"]
    assert failed[["ttft_ms", "itl_ms", "latency_ms"]].isna().all(axis=None)


def test_a_record_that_fits_no_row_is_an_error(trace):
    with pytest.raises(DependencyError, match="only 39 are a row"):
        tidied(trace, spoil=lambda made: made[0].update(arrival_time_ms=1e9))


def test_a_record_of_another_prompt_is_an_error(trace):
    with pytest.raises(DependencyError, match="only 39 are a row"):
        tidied(trace, spoil=lambda made: made[0].update(input_length=1))


def test_rows_alike_within_a_burst_are_sent_apart_and_all_others_together(trace):
    alike = dataclasses.replace(
        trace,
        input_tokens=np.full_like(trace.input_tokens, 9),
        output_tokens=np.full_like(trace.output_tokens, 9),
    )
    order = burst_order(trace.timestamp_ms, 3)
    assert sending(alike, order)["sent_ms"].nunique() == len(trace)
    assert (sending(trace, order)["sent_ms"] == trace.arrival_ms[order]).all()


def test_a_table_without_a_column_is_refused(trace):
    with pytest.raises(InputError, match="none named itl_ms"):
        check_table(tidied(trace).drop(columns="itl_ms"), "here")
