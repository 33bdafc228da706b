"""The gate's look at caches and at images."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from kvab.pages.gate import _arm_checks, _cache_checks
from kvab.runs.folder import Run

ALIKE = SimpleNamespace(gpus=SimpleNamespace(differ=True))  # a study that does not compare GPUs


def cold(cached_tokens):
    """Whether caches count as cold where the first two of three rows came in one burst."""
    workload = pd.DataFrame(
        {"row": [0, 1, 2], "input_tokens": [1000] * 3, "reusable_tokens": [0, 512, 512]}
    )
    requests = pd.DataFrame(
        {
            "row": [0, 1, 2],
            "arrival_ms": [0.0, 0.0, 3000.0],
            "input_tokens": [1000] * 3,
            "cached_tokens": pd.array(cached_tokens, dtype="Int32"),
            "error": pd.array([None] * 3, dtype="string"),
        }
    )
    run = Run(Path(), SimpleNamespace(host={}), requests)
    evidence = SimpleNamespace(workload=SimpleNamespace(table=workload), reusable_share=1024 / 3000)
    checks = {name: passed for name, _, _, passed in _cache_checks(run, evidence)}
    return checks["caches cold at the start"]


@pytest.mark.parametrize(
    ("cached_tokens", "expected"),
    [([0, 512, 512], True), ([512, 0, 512], True), ([512, 512, 512], False)],
)
def test_the_first_burst_may_reuse_its_own_tokens_only(cached_tokens, expected):
    assert cold(cached_tokens) is expected


def images_pass(*versions):
    """Whether runs with these versions count as runs of one image."""
    runs = [
        SimpleNamespace(
            manifest=SimpleNamespace(
                trace=SimpleNamespace(sha256="a"),
                cluster={"kind": "kubernetes"},
                versions=each,
                study_version=1,
                repeat=1,
            )
        )
        for each in versions
    ]
    evidence = SimpleNamespace(runs={"A": runs[:1], "B": runs[1:]}, arms={}, study=ALIKE)
    checks = {name: passed for name, *_, passed in _arm_checks(evidence)}
    assert checks["same versions"]
    return checks["same images"]


def test_arms_of_other_components_may_share_an_image_but_not_differ_in_it():
    aggregated = {"operator": "1.5.0", "image Frontend": "x@1", "image VllmWorker": "x@1"}
    split = {"operator": "1.5.0", "image Frontend": "x@1", "image VllmPrefillWorker": "x@1"}
    assert images_pass(aggregated, split)
    assert not images_pass(aggregated, split | {"image VllmPrefillWorker": "x@2"})


def reuse_check(kv_tokens, control=True):
    """The check of what KV routing finds, where the KV arm's cached tokens may be unknown."""

    def run(cached):
        requests = pd.DataFrame(
            {
                "row": [0, 1],
                "input_tokens": [1000, 1000],
                "cached_tokens": pd.array(cached, dtype="Int32"),
                "error": pd.array([None, None], dtype="string"),
            }
        )
        manifest = SimpleNamespace(
            host={}, trace=SimpleNamespace(rows=2, sha256="a"), cluster={}, versions={},
            study_version=1, repeat=1,
        )  # fmt: skip
        return Run(Path(), manifest, requests)

    runs = {"kv": [run(kv_tokens)]} | ({"rr": [run([0, 100])]} if control else {})
    arms = {
        name: SimpleNamespace(factors=SimpleNamespace(split="aggregated", routing=routing))
        for name, routing in (("kv", "kv"), ("rr", "round-robin"))
        if name in runs
    }
    evidence = SimpleNamespace(runs=runs, arms=arms, study=ALIKE, reusable_share=0.256)
    return next(
        (where, found, passed)
        for check, where, _, found, passed in _arm_checks(evidence)
        if check == "KV routing finds more of the cache"
    )


def test_unknown_reuse_is_said_and_turns_nothing_red():
    where, found, passed = reuse_check([None, None], control=False)
    assert passed
    assert (where, found) == (
        "kv",
        "cannot tell: the file server_metrics_export.json was not given",
    )


@pytest.mark.parametrize(("tokens", "expected"), [([0, 400], True), ([0, 50], False)])
def test_known_reuse_is_judged_against_the_control(tokens, expected):
    where, _, passed = reuse_check(tokens)
    assert (where, passed) == ("kv and rr", expected)
