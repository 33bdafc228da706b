"""Sentences on studies of all sizes: what is said of the published one must not be said of others.

Made-up evidence: a study of three configurations, forty requests, no bursts, open verdicts.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from kvab.console import change, counted, interval, signed, span
from kvab.pages import attribution, index, outcome, reproduce, robustness, setup, theme
from kvab.pages.evidence import load_evidence
from kvab.pages.printed import side_by_side
from kvab.pages.theme import arm_styles, markdown
from kvab.requests.metrics import METRICS
from kvab.runs.sweep import load_sweep
from kvab.stats.contrasts import Estimate, Judgement
from kvab.study import root

STUDY, ARMS = "recipes/qwen3-32b/study.yaml", ("agg-round-robin", "disagg-kv-router")


@pytest.fixture(scope="module")
def published():
    return load_evidence(STUDY, "simulated-h200", "book/published")


def requests(arrival_s, prompt=1500, answer=100, reusable=0):
    table = pd.DataFrame({"arrival_ms": 1000.0 * np.asarray(arrival_s)})
    sizes = {"input_tokens": prompt, "output_tokens": answer, "reusable_tokens": reusable}
    return table.assign(row=range(len(table)), **sizes)


def replaying(evidence, table, rows=None, **trace):
    """Evidence of another workload, of which the first rows were replayed."""
    rows = rows or len(table)
    told = {"rows": rows, "total_rows": len(table), "name": "orders", **trace}
    of = {
        name: [
            replace(run, manifest=run.manifest.model_copy(
                update={"trace": run.manifest.trace.model_copy(update=told)}))
            for run in found[:1]
        ]
        for name, found in evidence.runs.items()
    }  # fmt: skip
    description = {"rows": len(table), "duration_s": float(table["arrival_ms"].max() / 1000)}
    return replace(
        evidence, runs=of, workload=SimpleNamespace(table=table, description=description)
    )


def without(evidence, *names):
    """Evidence of a study that declares fewer configurations."""
    kept = {n: arm for n, arm in evidence.study.configurations.items() if n not in names}
    found = {n: each for n, each in evidence.runs.items() if n not in names}
    study = evidence.study.model_copy(update={"configurations": kept})
    return replace(evidence, study=study, runs=found)


def comparing(evidence, **changes):
    """Evidence with other outcomes of some metrics; the others are the published one's."""
    comparison = evidence.comparison
    changed = replace(evidence)
    changed.__dict__["comparison"] = replace(comparison, metrics=comparison.metrics | changes)
    return changed


GREEN = SimpleNamespace(green=True)


def test_one_of_a_thing_is_singular():
    assert [counted(n, "replay") for n in (0, 1, 2, 1200)] == [
        "0 replays", "1 replay", "2 replays", "1,200 replays",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 seconds"), (89, "89 seconds"), (262, "4.4 minutes"),
                          (3536, "59 minutes")],
)  # fmt: skip
def test_a_length_of_time_is_said_in_its_own_unit(seconds, said):
    assert span(seconds) == said


def test_the_length_is_that_of_the_rows_replayed(published):
    table = requests(np.linspace(0, 3600, 120))
    assert "the same 120 requests, 60 minutes of orders" in index.how_known(
        replaying(published, table)
    )
    said = index.how_known(replaying(published, table, rows=40))
    assert "the same 40 requests, 20 minutes of orders" in said
    assert "the same 3 requests, 61 seconds" in index.how_known(replaying(published, table, rows=3))
    assert "12,031 requests, 59 minutes of Mooncake" in index.how_known(published)


def test_bursts_are_said_only_of_requests_that_come_in_bursts(published):
    assert "share their timestamp with others, and the order inside such a burst" in (
        setup.clock(published)
    )
    assert "Requests come in bursts" in setup.lesson(published)
    nearly = replaying(published, requests([*range(1, 39), 40, 40]))
    assert setup.clock(nearly).startswith(
        "Requests come mostly one by one: 2 of 40 share their timestamp with another, so a shuffle"
    )
    assert "Requests come mostly one by one" in setup.lesson(nearly)
    alone = replaying(published, requests(range(40)))
    assert "come one by one: no two share a timestamp, so a shuffle changes nothing" in (
        setup.clock(alone)
    )


def test_lengths_are_those_of_the_workload(published):
    assert "Prompts are long against answers" in setup.lengths(published)
    assert re.search(r"[\d,]+ requests with one answer token", setup.lengths(published))
    short = replaying(published, requests(range(40), prompt=150, answer=100))
    assert "Answers hold a good part" in setup.lengths(short)
    assert "one answer token" not in setup.lengths(short)
    assert "prompts hold 1.5 times as many tokens as answers" in setup.lesson(short)
    assert "saves next to nothing" in setup.lesson(short)
    assert "is worth something" in setup.lesson(published)
    one = requests(range(40))
    one.loc[7, "output_tokens"] = 1
    assert "1 request with one answer token" in setup.lengths(replaying(published, one))


def test_the_table_of_the_trace_says_that_it_is_of_the_whole(published):
    description = {**published.workload.description}
    few = replaying(published, published.workload.table, rows=40)
    few = replace(few, workload=SimpleNamespace(table=few.workload.table, description=description))
    assert setup.description_table(few).caption == (
        "The whole trace; replayed were the first 40 of its 12,031 requests."
    )
    assert setup.description_table(published).caption == ""


def test_a_made_up_workload_is_not_called_recorded(published):
    made_up = replaying(published, requests(range(40)), synthetic=True)
    assert "the workload is generated" in index.known_limits(made_up)
    assert "the workload is a recorded trace" in index.known_limits(published)


def test_ties_of_the_kv_router_are_said_only_of_one(published):
    assert "behind the KV router, ties" in index.known_limits(published)
    assert "KV router" not in index.known_limits(
        without(published, "agg-kv-router", "disagg-kv-router")
    )


def test_further_configurations_have_a_style_too(published):
    arms = published.study.configurations
    ablation = arms["agg-kv-router"]
    assert len(arm_styles({**arms, "third": ablation, "fourth": ablation})) == 6


def test_three_configurations_are_not_called_four(published):
    three = without(published, "agg-kv-router")
    assert "Each of the 3 configurations" in index.how_known(three)
    three.__dict__["comparison"] = published.comparison
    assert "points of good requests: Disaggregated, round-robin +" in index.by_factor(three, GREEN)
    assert attribution.effects_table(three) is None
    assert "no run of aggregated + kv" in attribution.lesson(three, GREEN)


def test_what_factors_do_together_is_said_only_where_it_is_seen(published):
    assert "**: what one factor brings depends on" in attribution.lesson(published, GREEN)
    table = published.attribution.copy()
    at = (table["metric"] == "good_share") & (table["effect"] == "interaction")
    table.loc[at, ["value", "ci_low", "ci_high"]] = [0.001, -0.01, 0.012]
    unclear = replace(published)
    unclear.__dict__["attribution"] = table
    assert "do not show that what one factor brings depends" in attribution.lesson(unclear, GREEN)


def test_effects_are_shown_by_the_bounds_through_which_they_come(published):
    table = published.attribution.copy()
    at = (table["effect"] == "interaction") & table["statistic"].str.contains("kept")
    table.loc[at, "value"] = [0.05, -0.021, 0.001]
    made_up = replace(published)
    made_up.__dict__["attribution"] = table
    frame = attribution.effects_table(made_up).frame.set_index("effect on")
    assert frame.loc["ITL bound kept [points]", "interaction"].startswith("−2.1\n(")
    assert frame.loc["good share [points]", "interaction"].startswith("+18.2\n(")
    assert attribution.effects_table(made_up).caption.startswith(
        "Routing and split interact by +18.2 points (+16.0 to +20.5) of good share."
    )


def missing(published, baseline, comparison):
    """Evidence of other kinds of misses in the two main configurations."""
    made_up = replace(published)
    misses = published.misses.copy()
    for name, shares in zip(ARMS, (baseline, comparison), strict=True):
        misses.loc[name] = shares
    made_up.__dict__["misses"] = misses
    return made_up


def test_the_reasons_of_misses_are_those_of_the_requests(published):
    made_up = missing(published, (0.5, 0.1, 0.3, 0.1, 0, 0), (0.9, 0.06, 0, 0, 0.03, 0.01))
    assert attribution.misses_figure(made_up).caption.startswith(
        "What the comparison changes, in points of requests: tokens slow −30.0, late and "
        "slow −10.0, first token late −4.0, one-token answer +3.0, failed +1.0. "
    )
    assert "failed 1.0 %" in attribution.misses_figure(made_up).alt
    assert "failed" not in attribution.misses_figure(published).alt  # none did
    none = missing(published, (1, 0, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0))
    assert "in points of requests: nothing." in attribution.misses_figure(none).caption


def test_a_quantity_has_one_value_on_all_pages(published):
    comparison, pooled = published.comparison, published.pooled
    for key in ("ttft_ms", "itl_ms", "latency_ms"):
        for name in ("mean", "p50", "p99"):
            both = comparison.metrics[key].statistics[name]
            assert pooled.loc[ARMS[0], f"{key}.{name}"] == pytest.approx(both.baseline)
            assert pooled.loc[ARMS[1], f"{key}.{name}"] == pytest.approx(both.comparison)
    assert pooled.loc[ARMS[0], "good.share"] == pytest.approx(comparison.good.mean.baseline)
    assert published.misses.loc[ARMS[0], "good"] == pytest.approx(comparison.good.mean.baseline)
    points = side_by_side("good_share", comparison.good.mean)[2]
    for text in (
        outcome.headline(published, GREEN),
        index.short_answer(published, GREEN),
        outcome.variation(published),
        attribution.lesson(published, GREEN),
        index.by_factor(published, GREEN),
    ):
        assert f" {points}" in text or f"({points}" in text
    verdicts = outcome.verdicts_table(published, GREEN).frame.set_index("difference of")
    assert verdicts.loc["estimate", "good share [points]"] == points
    table = robustness.choices_table(published, GREEN).frame
    assert table["good share [points]"].iloc[0].startswith(f"better\n{points} ±")


@pytest.mark.parametrize(
    ("pair", "decimals", "expected"),
    [
        ((62.26, 86.04), 1, ("62.3", "86.0", "+23.7")),  # not +23.8
        ((2136.53, 1214.14), None, ("2,137", "1,214", "−923")),
        ((17.794, 16.826), None, ("17.79", "16.83", "−0.96")),
        ((344.61, 21.88), None, ("344.6", "21.9", "−322.7")),
        ((5.0, 5.0), 1, ("5.0", "5.0", "0.0")),
        ((np.nan, 12.0), None, ("–", "12.0", "–")),
    ],
)
def test_a_difference_is_that_of_the_printed_numbers(pair, decimals, expected):
    assert change(*pair, decimals) == expected


def surface(evidence, differences):
    """Evidence of these differences in points by ITL bound, each half a point uncertain."""
    rows = [
        {"itl_ms": itl_ms, "difference": points / 100,
         "band_low": (points - 0.5) / 100, "band_high": (points + 0.5) / 100}
        for itl_ms, points in differences.items()
    ]  # fmt: skip
    made_up = comparing(evidence)
    made_up.__dict__["by_itl_bound"] = pd.DataFrame(rows).set_index("itl_ms")
    return made_up


def swept(published, comparison, baseline):
    """A sweep of these good shares by load, each two points uncertain."""
    rows = [
        {"configuration": name, "load": load, "share": share, "low": share - 0.02,
         "high": share + 0.02}
        for name, shares in zip(ARMS, (baseline, comparison), strict=True)
        for load, share in shares.items()
    ]  # fmt: skip
    shares = SimpleNamespace(shares=pd.DataFrame(rows))
    summary = SimpleNamespace(trace=published.manifest.trace)
    layouts = pd.DataFrame(columns=["load", "configuration", "share"])
    return SimpleNamespace(study=published.study, curves=shares, layouts=layouts, summary=summary)


def test_the_first_page_names_the_bounds_at_which_either_arm_leads(published):
    both = surface(published, {10: 0.1, 15: -18, 20: 28, 25: 23, 50: 0.2, 60: 3})
    assert index.by_bounds(both, GREEN).endswith(
        "With TTFT within 2 s **the ITL bound decides who leads**: the comparison is ahead at 20 "
        "to 25, 60 ms (most at 20 ms, +28.0 points), the baseline is ahead at 15 ms (most at 15 "
        "ms, −18.0 points)."
    )
    ahead = index.by_bounds(surface(published, {20: 28, 25: 23}), GREEN)
    assert "no ITL bound turns the answer around: the comparison is ahead" in ahead
    assert "baseline" not in ahead
    even = index.by_bounds(surface(published, {20: 0.1, 25: -0.1}), GREEN)
    assert even.endswith("turns the answer around: neither is ahead at any on the grid.")


def test_the_first_page_says_at_which_load_the_difference_is_least_and_most(published, monkeypatch):
    monkeypatch.setattr(index, "second_headline", lambda *_: "Load.")
    of = swept(published, {0.5: 0.9, 1: 0.8, 2: 0.3}, {0.5: 0.86, 1: 0.6, 2: 0.4})
    assert index.by_load(published, GREEN, of) == (
        "Load. At the same load the difference is −10.0 points (at 2 times the trace's speed) to "
        "+20.0 (at 1 times)."
    )
    assert index.by_load(published, GREEN, None) == ""
    trace = published.manifest.trace.model_copy(update={"sha256": "0" * 64})
    other = SimpleNamespace(manifest=SimpleNamespace(trace=trace))
    assert index.by_load(other, GREEN, of).endswith("which is not what the runs replayed.")


def test_the_cards_advise_what_the_runs_show(published):
    evidence = surface(published, {15: -18, 20: 28, 25: 23})
    faster = replace(published.comparison.ttft.paired, faster=Estimate(0.3))
    ttft = replace(published.comparison.ttft, paired=faster)
    evidence.__dict__["comparison"] = comparing(published, ttft_ms=ttft).comparison
    of = swept(published, {0.5: 0.87, 1: 0.8, 2: 0.3}, {0.5: 0.86, 1: 0.6, 2: 0.4})
    cards = index.advice(evidence, GREEN, of)
    yes, no, measure = cards.split(":::{grid-item-card}")[1:]
    assert "your ITL bound is 20 to 25 ms (+23.0 to +28.0 points)." in yes
    assert "your load is 1 times the trace's (+20.0 points)." in yes
    assert "your ITL bound is 15 ms (" in no and "your load is 2 times the trace's (−10.0" in no
    assert "30 % get their first token sooner" in no
    assert "no GPU was measured" in measure
    alone = index.advice(surface(published, {20: -3}), GREEN, None)
    assert "your load" not in alone
    assert index.advice(evidence, SimpleNamespace(green=False), of) == ""


def test_the_source_of_the_question_is_linked_where_there_is_one(published):
    assert f"]({published.study.source.url})" in index.question(published)
    study = published.study.model_copy(update={"source": None, "about": ""})
    said = index.question(replace(published, study=study))
    assert "at most 25 ms. Below, the **baseline** is aggregated workers" in said


def test_pairs_are_called_pairs_and_medians_medians(published):
    result = published.comparison
    lost = result.good_table.only_baseline
    assert f"{lost:,} of {result.pairs:,} pairs" in outcome.losses(published)
    paired = replace(
        result.ttft.paired, median=Estimate(3.0), hodges_lehmann=Estimate(-20.0)
    )  # fmt: skip
    made_up = comparing(published, ttft_ms=replace(result.ttft, paired=paired))
    assert "the median paired difference is +3.00 ms" in outcome.counterpoint(made_up)


def test_noise_is_told_of_the_repeats_at_hand_and_is_no_bound(published):
    for answers, said in (
        (published.answers, "Of 20 replays of the baseline, each in another order, the two that"),
        (None, "Of 3 replays of the baseline, the two that differ most are 0.6 points"),
    ):
        evidence = replace(published)
        evidence.__dict__.update(answers=answers, comparison=published.comparison)
        text = outcome.variation(evidence)
        assert text.startswith(said)
        assert "at most" not in text
    once = published_once(published)
    once.__dict__.update(comparison=published.comparison, answers=None)
    assert outcome.variation(once).startswith("With one repeat")


def verdicts_on(choices):
    """Verdicts under some choices: metric -> verdict, as `kvab.stats.robustness` has them."""
    numbers = {"baseline": 0.6, "comparison": 0.8, "difference": 0.2, "ci_low": 0.1, "ci_high": 0.3}
    return pd.DataFrame(
        {"choice": choice, "metric": key, "verdict": verdict, **numbers}
        for choice, metrics in choices.items()
        for key, verdict in metrics.items()
    )


def test_a_choice_counts_for_the_metrics_that_it_can_affect(published):
    made_up = replace(published)
    made_up.__dict__["robustness"] = verdicts_on({
        "as declared": {"ttft_ms": "better", "good_share": "better"},
        "other blocks": {"ttft_ms": "better", "good_share": "better"},
        "other bounds": {"good_share": "better"},
        "the median": {"ttft_ms": "no difference"},
    })  # fmt: skip
    assert robustness.lesson(made_up, GREEN, None).startswith(
        "- 3 of 4 verdicts under other choices are as declared. What changes: with the median, "
        "time to first token from better to no difference."
    )
    frame = robustness.choices_table(made_up, GREEN).frame.set_index("choice")
    assert frame.loc["other bounds", "TTFT [ms]"] == "–"
    assert frame.loc["the median", "TTFT [ms]"].startswith("CHANGED: no difference")
    assert frame.loc["other blocks", "TTFT [ms]"].startswith("+")  # the verdict as declared


@pytest.mark.parametrize(
    ("verdict", "faster", "said"),
    [
        ("better", 0.8, " ms. 80 % get"),
        ("better", 0.3, " The gain is in the tail: only 30 % get"),
        ("worse", 0.3, " ms. 30 % get"),
        ("worse", 0.8, " The loss is in the tail: 80 % get"),
        ("inconclusive", 0.3, " ms. 30 % get"),
        ("no difference", 0.8, " ms. 80 % get"),
    ],
)
def test_yet_stands_only_where_the_typical_request_contradicts_the_verdict(
    published, verdict, faster, said
):
    good, ttft = published.comparison.good, published.comparison.ttft
    evidence = comparing(
        published,
        good_share=replace(good, judgement=replace(good.judgement, verdict=verdict)),
        ttft_ms=replace(ttft, paired=replace(ttft.paired, faster=Estimate(faster))),
    )
    assert said in outcome.counterpoint(evidence)


def opened(evidence, **basis):
    """Leave the verdict on the good share open, on these numbers."""
    known = {"verdict": "inconclusive", "difference": Estimate(0.02, 0.001, 0.039)}
    known |= {"p": 0.04, "p_holm": 0.12, "margin": 0.01, **basis}
    good = replace(evidence.comparison.good, judgement=Judgement(**known))
    return comparing(evidence, good_share=good)


def test_an_open_verdict_beside_an_interval_without_zero_gives_the_reason(published):
    evidence = opened(published)
    reason = (
        " The interval excludes zero, but it is one of 4 tested together: adjusted for that "
        "(Holm), p is 0.120."
    )
    assert outcome.headline(evidence, GREEN).startswith("These runs cannot tell, in simulation")
    assert outcome.headline(evidence, GREEN).endswith(reason)
    label = METRICS["good_share"].label
    assert f"{label}:{reason}" in outcome.verdicts_table(evidence, GREEN).caption
    small = opened(published, difference=Estimate(0.005, 0.001, 0.011), p_holm=0.01)
    assert outcome.headline(small, GREEN).endswith("within the practical margin.")


@pytest.mark.parametrize(
    "basis",
    [
        {"difference": Estimate(0.02, -0.001, 0.039)},
        {"verdict": "better"},
        {"difference": Estimate(0.02)},
    ],
    ids=["includes zero", "decided", "no interval"],
)
def test_no_reason_is_given_where_none_is_needed(published, basis):
    assert outcome.headline(opened(published, **basis), GREEN).endswith(").")


def test_single_runs_replays_and_checks_are_singular(published):
    one = replaying(published, requests(range(40)))
    assert "simulated-h200, 1 replay of 40 requests for each" in theme.source(one)
    assert (
        "run to run over 1 repeat,"
        in outcome.verdicts_table(published_once(published), GREEN).caption
    )
    alone = SimpleNamespace(reference=one, others={}, known="published", left_out={})
    assert "(1 repeat)" in reproduce.whose(alone)
    assert "1 of 3 repeats" in setup.exclusions(one)


def published_once(published):
    return replace(published, runs={name: found[:1] for name, found in published.runs.items()})


def test_commands_name_a_study_that_is_not_the_published_one(published):
    told = SimpleNamespace(reference=published)
    assert "make report" in reproduce.commands(told)
    study = published.study.model_copy(
        update={"name": "mine", "folder": root() / "recipes" / "mine"}
    )
    said = reproduce.commands(SimpleNamespace(reference=replace(published, study=study)))
    assert "kvab report --study recipes/mine/study.yaml --cluster simulated-h200\n" in said
    assert "make" not in said


def test_the_level_is_the_studys(published):
    study = published.study
    settings = study.statistics.model_copy(update={"level": 0.9})
    ninety = replace(published, study=study.model_copy(update={"statistics": settings}))
    for name in ("comparison", "quantile_differences", "groups"):
        ninety.__dict__[name] = getattr(published, name)  # numbers matter not here
    for said in (
        outcome.headline(ninety, GREEN),
        index.short_answer(ninety, GREEN),
        outcome.quantile_differences_figure(ninety).caption,
        outcome.effects_by_group_figure(ninety).caption,
        outcome.statistics_table(ninety).caption,
        outcome.verdicts_table(ninety, GREEN).caption,
    ):
        assert "90 %" in said and "95 %" not in said


def test_nothing_to_say_leaves_no_box():
    assert markdown("") is None
    assert markdown("said").data == "said"


# What stands in notebooks and book as it is must hold for every study.
ONLY_THE_PUBLISHED = re.compile(
    r"\bhour\b|\b(two|four|eight) (configurations|things)|two by two|\b512\b|Mooncake|"
    r"Qwen|\bconversations\b|requests come in bursts|Prompts are long|H200 on",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", sorted((root() / "notebooks").glob("*.ipynb")),
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_prose_of_notebooks_fits_every_study(path):
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert ONLY_THE_PUBLISHED.findall(prose) == []
    assert not [cell for cell in cells if "Markdown(" in cell.source]  # an empty one shows a box


def test_the_prose_of_the_book_fits_every_study():
    text = (root() / "book" / "methods.md").read_text()
    terms = re.compile(r"GPU-hours|hour[- ]to[- ]hour|made hour|`kvab\.[\w.]+`", re.IGNORECASE)
    assert ONLY_THE_PUBLISHED.findall(terms.sub("", text)) == []


def test_the_best_layout_of_the_other_configurations_stands_beside_the_comparison(published):
    swept = load_sweep(published.study, published.cluster, "book/published")
    rows = swept.layouts.loc[1.0].drop(published.study.comparison, level=0)
    best = rows["share"].idxmax()
    ends = interval(*rows.loc[best, ["difference_low", "difference_high"]], 100)
    said = index.by_load(published, GREEN, swept)
    assert f"chosen after the fact, is {published.arms[best[0]].label} as {best[1]}: " in said
    assert f"{signed(100 * rows.loc[best, 'difference'], 1)} ({ends}) points against" in said
