"""Results kept between pages: computed once, whatever happened to the cache."""

import os
import time

import pytest

from kvab.cache import KEPT_DAYS, remember


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KVAB_CACHE", str(tmp_path))
    return tmp_path / "results"


def kept(calls):
    return remember("k" * 64, "test", lambda: calls.append(1) or len(calls))


def test_a_result_is_computed_once():
    calls = []
    assert (kept(calls), kept(calls), calls) == (1, 1, [1])


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x05\x95\xff", b"cno.such\nname\n."])
def test_a_damaged_cache_is_computed_anew(cache, content):
    calls = []
    kept(calls)
    (path,) = cache.glob("*.pickle")
    path.write_bytes(content)
    assert kept(calls) == 2
    assert kept(calls) == 2


def test_results_that_nobody_reads_are_removed_when_another_is_written(cache):
    def result(key):
        return remember(key * 64, "test", lambda: key)

    def age(key, days):
        for path in cache.glob(f"{key}*"):
            os.utime(path, (time.time() - days * 24 * 3600,) * 2)

    def held():
        return {path.name[0] for path in cache.iterdir()}

    for key in "abc":
        result(key)
    age("a", KEPT_DAYS + 1)
    age("b", KEPT_DAYS + 1)
    age("c", KEPT_DAYS - 1)
    result("b")  # read, so it stays
    assert held() == {"a", "b", "c"}
    result("d")
    assert held() == {"b", "c", "d"}


def test_a_failure_of_the_computation_is_no_failure_of_the_cache():
    calls = []

    def fail():
        calls.append(1)
        raise OSError("of the computation")

    with pytest.raises(OSError, match="of the computation"):
        remember("k" * 64, "test", fail)
    assert calls == [1]
