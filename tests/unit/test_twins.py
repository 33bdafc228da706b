"""The simulated twins of live runs; here of simulated ones, which must be their own twins."""

import numpy as np
import pandas as pd
import pytest

from kvab.errors import InputError
from kvab.runs import folder, twins
from kvab.study import load_study
from kvab.trace.reading import read_trace

STUDY = load_study("recipes/qwen3-32b/study.yaml")


def runs_of(small_runs):
    names = (STUDY.baseline, STUDY.comparison)
    of = small_runs / STUDY.name / "simulated-h200"
    return {name: [folder.read_run(of / name / "r1")] for name in names}


@pytest.fixture(scope="module")
def made(small_runs, small_trace, tmp_path_factory):
    beside = tmp_path_factory.mktemp("twins")
    path = twins.make_twins(runs_of(small_runs), STUDY, read_trace(small_trace), beside)
    assert path == beside / twins.TABLE
    return [pd.read_parquet(beside / name) for name in (twins.TABLE, twins.ORDERS, twins.FITS)]


def test_a_simulated_run_is_its_own_twin(made, small_runs):
    table, _, fits = made
    for name, (run,) in runs_of(small_runs).items():
        twin = table[table["configuration"] == name].set_index("row")
        own = run.requests.set_index("row")
        assert np.allclose(twin["ttft_ms"], own["ttft_ms"], atol=0.06)  # KV routing breaks ties
        declared = run.manifest.cluster["frontend_ms_per_1k_tokens"]
        fit = fits[(fits["configuration"] == name) & (fits["order"] == twins.FILE)]
        of_it = fit[fit["frontend_ms_per_1k_tokens"] == declared]
        assert of_it["half"].to_list() == [1, 2]
        assert np.allclose(of_it[["far", "mean", "p50", "p90"]], 0, atol=1e-3)
        others = fit[fit["frontend_ms_per_1k_tokens"] != declared]
        assert (others[["mean", "p50", "p90"]].abs().sum(axis=1) > 1e-3).any()


def test_every_order_has_its_statistics_and_the_frontend_is_fitted_in_some(made):
    _, orders, fits = made
    assert orders.groupby("configuration")["order"].nunique().to_list() == [twins.SHUFFLES + 4] * 2
    assert fits["order"].nunique() == twins.FITTED + 1
    declared = STUDY.sensitivity.frontend_ms_per_1k_tokens
    assert sorted(fits["frontend_ms_per_1k_tokens"].unique()) == sorted(declared)


def test_of_two_prompts_read_at_once_the_short_one_is_ready_first():
    at_ms, tokens = np.array([0, 0, 0, 0, 9]), np.array([3000, 1000, 1000, 500, 100])
    read_ms = twins._read_ms(at_ms, tokens, np.arange(5))
    assert read_ms.tolist() == [3, 1, 2, 2.5, 9.1]
    one_by_one = twins._read_ms(at_ms, tokens, np.arange(5), readers=1)
    assert one_by_one.tolist() == [3, 4, 5, 5.5, 9.1]


def test_runs_of_another_trace_are_an_error(small_runs, recorded_trace, tmp_path):
    with pytest.raises(InputError, match="expected the trace of the runs"):
        twins.make_twins(runs_of(small_runs), STUDY, read_trace(recorded_trace), tmp_path)
