"""A whole run on the emulated cluster: what it leaves, and what it takes away."""

from kvab import runs


def test_a_run_is_deployed_replayed_collected_and_torn_down(emulated, small_trace):
    path = emulated.run(small_trace)
    run = runs.read_run(path)
    assert run.manifest.status == "complete"
    assert run.manifest.counts.received == 40
    assert run.requests["error"].isna().all()
    assert emulated.left() == []
