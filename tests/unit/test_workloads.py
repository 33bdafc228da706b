"""Workloads side by side: what is said hangs on the verdicts of each, and none is pooled."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvab.pages import gate, workloads
from kvab.pages.evidence import load_evidence
from kvab.pages.gate import WITHHELD
from kvab.pages.printed import with_ends
from kvab.pages.workloads import Workloads, load_workloads
from kvab.runs.sweep import load_sweep
from kvab.study import load_study, root

STUDY, CLUSTER = "recipes/qwen3-32b/study.yaml", "simulated-h200"
NAME = "qwen3-32b+mooncake-synthetic"


@pytest.fixture(scope="module")
def evidence():
    """The published runs of the second workload: 3,993 requests, 10 longer than the context."""
    return load_evidence(f"{STUDY}#mooncake-synthetic", CLUSTER, "book/published")


@pytest.fixture
def judged(evidence, monkeypatch):
    """Workloads of these verdicts on good requests; the gate of a withheld one is red."""
    red = []
    for module in (workloads, gate):
        monkeypatch.setattr(module, "gate", lambda of: SimpleNamespace(green=id(of) not in red))

    def made(**verdicts):
        shown = {}
        for name, verdict in verdicts.items():
            good = evidence.comparison.good
            good = replace(good, judgement=replace(good.judgement, verdict=verdict))
            metrics = evidence.comparison.metrics | {"good_share": good}
            shown[name] = replace(evidence)
            shown[name].__dict__["comparison"] = replace(evidence.comparison, metrics=metrics)
            shown[name].__dict__["pooled"] = evidence.pooled
            if verdict == WITHHELD:
                red.append(id(shown[name]))
        return Workloads(evidence.study.on(), CLUSTER, shown)

    return made


def test_the_finding_says_whether_the_verdict_is_the_same(judged):
    same = workloads.finding(judged(one="better", two="better"))
    assert same.startswith(
        "**On 2 workloads the verdict on good requests is the same: better.**\n\n- `one`. Yes, in "
        "simulation: prefill and decode workers behind the KV router kept "
    )
    assert workloads.finding(judged(one="better", two="worse")).startswith(
        "**The verdict on good requests depends on the workload.**"
    )


def test_nothing_is_compared_with_a_workload_without_a_verdict(judged):
    for shown in (judged(one="better"), judged(one="better", two=WITHHELD)):
        said = workloads.finding(shown)
        assert said.startswith("Fewer than two workloads have a verdict")
    assert "- `two`. **No verdict" in said and f"- `two`. {WITHHELD}." in workloads.lesson(shown)
    assert workloads.table(shown).frame["two"].str.endswith(WITHHELD).sum() == 3


def test_the_table_has_the_comparison_and_every_configuration_by_workload(judged):
    shown = workloads.table(judged(one="better", two="worse"))
    assert shown.caption.startswith("2 of 3 metrics have one verdict on all workloads shown.")
    cells = shown.frame.set_index("what")
    assert cells.loc["good requests", "one"].endswith("\nbetter")
    assert cells.loc["good requests", "two"].endswith("\nworse")
    assert cells.loc["workload", "one"].endswith("10 too long")
    assert len(cells) == 1 + 3 + 2


def test_only_requests_that_failed_and_are_too_long_are_counted(evidence):
    assert workloads.too_long(evidence) == 10
    served = replace(evidence)
    served.__dict__["requests"] = evidence.requests.assign(error=None)
    assert workloads.too_long(served) == 0
    served.__dict__["requests"] = evidence.requests.assign(error="503 busy")
    assert workloads.too_long(served) == 10


def test_the_notice_names_every_workload(judged):
    said = workloads.notice(load_workloads(STUDY, CLUSTER, "book/published"))
    assert "conversation trace, Mooncake FAST25 synthetic trace." in said
    assert "Simulated, not measured" in said and "GENERATED" not in said
    assert workloads.notice(judged()) == ""


def test_effects_have_the_interval_of_the_attribution(judged, evidence):
    shown = judged(one="better")
    rows = evidence.attribution.query("statistic == 'share'").set_index("effect")
    for name, row in rows.iterrows():
        ends = (
            f"{100 * row[key]:+.1f}".replace("-", "−") for key in ("value", "ci_low", "ci_high")
        )
        assert "{} {} ({} to {})".format(name, *ends) in workloads.lesson(shown)
    runs = {name: of for name, of in evidence.runs.items() if name != "agg-kv-router"}
    fewer = replace(shown, places={"one": replace(evidence, runs=runs)})
    assert "no interval" in workloads.lesson(fewer)


def test_sweeps_stand_side_by_side():
    shown = workloads.sweeps_table(load_workloads(STUDY, CLUSTER, "book/published"))
    cells = shown.frame.set_index("what")
    assert [*cells.columns] == ["conversation", "mooncake-synthetic"]
    for name in cells.columns:
        swept = load_sweep(load_study(STUDY).on(name), CLUSTER, "book/published")
        ratio = swept.curves.ratios.loc[swept.headline, "low"]
        assert cells.loc["comparison / baseline", name].startswith(f"{ratio:.2f} times\n(")
        for load in (0.5, 1.0):
            rows = swept.layouts.loc[load]
            best = rows["share"].idxmax()
            text = cells.loc[f"{swept.arms[best[0]].label}, best layout at {load:g}x", name]
            assert text.startswith(f"{best[1]}: {100 * rows.loc[best, 'share']:.1f} % good")
            for key in swept.arms.keys() & {*rows.index.get_level_values(0)}:
                row = rows.loc[key].loc[rows.loc[key, "share"].idxmax()]
                text = cells.loc[f"{swept.arms[key].label}, best layout at {load:g}x", name]
                points = f"\n{100 * row['difference']:+.1f} (".replace("-", "−")
                assert row["difference"] == 0 or points in text


def test_what_was_learned_takes_few_lines(judged):
    said = workloads.lesson(judged(one="better", two="better", three="worse"))
    assert len(said.splitlines()) == 4 and "is not shown here" in said
    assert "is not shown here" not in workloads.lesson(judged(one="better"))


def test_how_to_get_a_workload_that_is_not_shown(judged):
    shown = judged(conversation="better", toolagent="better")
    command = f"kvab report --study {STUDY} --cluster {CLUSTER} --workload mooncake-synthetic"
    assert workloads.to_come(shown) == (
        f"Declared, but without runs to compare; to make them: `{command}`."
    )
    every = judged(**dict.fromkeys(shown.study.workloads, "better"))
    assert workloads.to_come(every) == ""
    only = {"conversation": shown.study.workloads["conversation"]}
    alone = replace(shown, study=shown.study.model_copy(update={"workloads": only}))
    assert "declares one workload" in workloads.to_come(alone)


def test_a_workload_whose_runs_are_missing_or_damaged_is_left_out(tmp_path):
    shown = load_workloads(STUDY, CLUSTER, tmp_path)
    assert list(shown.places) == ["conversation", "mooncake-synthetic"]  # the published ones
    assert load_workloads(STUDY, CLUSTER, tmp_path, tmp_path).places == {}
    shutil.copytree(root() / "book/published" / NAME, tmp_path / NAME)
    other = load_study(STUDY).on("mooncake-synthetic")
    assert list(load_workloads(other, CLUSTER, tmp_path, tmp_path).places) == [other.workload]
    path = tmp_path / NAME / CLUSTER / other.comparison / "r1" / "requests.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert load_workloads(STUDY, CLUSTER, tmp_path, tmp_path).places == {}


def test_the_first_page_tells_the_further_workloads_and_which_layout_beats_the_comparison(evidence):
    shown = load_workloads(STUDY, CLUSTER, "book/published")
    good = evidence.comparison.good.mean.difference
    said = workloads.beside_answer(shown)
    assert said.count("changes the good share by") == 1
    assert with_ends("good_share", good.value, good.low, good.high, gap=" ") in said
    swept = load_sweep(evidence.study, CLUSTER, "book/published")
    ahead = 0
    for load in swept.layouts.index.unique("load"):
        rows = swept.layouts.loc[load]
        best = rows["share"].idxmax()
        low = rows.loc[best, "difference_low"]
        layout = f"{swept.arms[best[0]].label} as {best[1]}"
        told = f"At {load:g} times its load {layout}, chosen after the fact, is ahead"
        assert (told in said) == (best[0] != evidence.study.comparison and low > 0)
        ahead += told in said
    assert said.count(" is ahead of the comparison by ") == ahead
    first = {name: of for name, of in shown.places.items() if name == shown.study.workload}
    assert workloads.beside_answer(replace(shown, places=first)) == ""
