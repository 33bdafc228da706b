"""The gate as one who distrusts it would try it: runs that did not test what they claim.

Published runs are doctored in one way each, with checksums that hold.
"""

import ast
import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from IPython.display import Markdown

from kvab.book import build
from kvab.console import plain
from kvab.errors import InputError
from kvab.pages import attribution, index, outcome, robustness, theme
from kvab.pages.evidence import load_evidence
from kvab.pages.gate import gate
from kvab.pages.outcome import NO_VERDICT, RED, VERDICTS
from kvab.pages.reproduce import WITHHELD, load_clusters
from kvab.runs import folder as runs
from kvab.study import root

STUDY = "recipes/qwen3-32b/study.yaml"
ARMS = ("agg-round-robin", "agg-kv-router", "disagg-round-robin", "disagg-kv-router")
BASELINE, AGG_KV, DISAGG, KV = ARMS
PUBLISHED = root() / "book" / "published" / "qwen3-32b"
LIVE = root() / "tests" / "data"  # 600 requests of every configuration


class Runs:
    """A copy of a cluster's runs, and what a test may do to them."""

    def __init__(self, folder, cluster):
        self.folder, self.cluster = folder, cluster
        shutil.copytree(PUBLISHED / "workloads", folder / "qwen3-32b" / "workloads")
        source = LIVE if cluster == "live-cpu" else PUBLISHED
        for arm in ARMS:
            shutil.copytree(source / cluster / arm / "r1", self.path(arm))

    def path(self, arm, repeat=1):
        return self.folder / "qwen3-32b" / self.cluster / arm / f"r{repeat}"

    def doctor(self, arm, change, repeat=1):
        """Write an arm's run anew after ``change(table, manifest, files)``, as ``repeat``."""
        run = runs.read_run(self.path(arm))
        manifest = run.manifest.model_dump(by_alias=True, exclude={"files"})
        files = {name: (run.path / name).read_bytes() for name in run.manifest.files}
        table = run.requests.copy()
        changed = change(table, manifest, files)
        files["requests.parquet"] = runs.requests_bytes(table if changed is None else changed)
        path = self.path(arm, repeat)
        shutil.rmtree(path, ignore_errors=True)
        runs.write_run(path, manifest, files)

    def evidence(self):
        return load_evidence(STUDY, self.cluster, self.folder)


@pytest.fixture
def live(tmp_path):
    return Runs(tmp_path / "runs", "live-cpu")


@pytest.fixture
def simulated(tmp_path):
    return Runs(tmp_path / "runs", "simulated-h200")


def test_sound_runs_are_green(live, tmp_path):
    assert gate(live.evidence()).reasons == []
    assert gate(Runs(tmp_path / "simulated", "simulated-h200").evidence()).reasons == []


def test_a_chat_template_on_every_prompt_is_no_other_workload(live):
    live.doctor(BASELINE, column("input_tokens", lambda n: n + 14))
    evidence = live.evidence()
    assert gate(evidence).reasons == []
    assert evidence.comparison.pairs == 600


# --- one way each ------------------------------------------------------------------------------


def told(**fields):
    """Change fields of run.json; those of a mapping are merged into it."""

    def change(table, manifest, files):
        for name, value in fields.items():
            merged = isinstance(value, dict) and value
            manifest[name] = {**manifest[name], **value} if merged else value

    return change


def column(name, value, rows=slice(None)):
    """Set a column of the requests in some rows, or change it there."""

    def change(table, manifest, files):
        new = value(table.loc[rows, name]) if callable(value) else value
        table.loc[rows, name] = new

    return change


def shorter(table, manifest, files):
    """Lose ten rows and say nothing of it."""
    manifest["counts"] = {"expected": 590, "received": 590, "errors": 0}
    return table.iloc[:590]


def short_and_unasked(table, manifest, files):
    table.loc[3, ["output_tokens", "requested_output_tokens"]] -= 1


def like_round_robin(table, manifest, files):
    table["cached_tokens"] = runs.read_run(LIVE / "live-cpu" / BASELINE / "r1").requests[
        "cached_tokens"
    ]


def warm_at_the_start(table, manifest, files):
    first = table["arrival_ms"] == table["arrival_ms"].min()
    table.loc[first, "cached_tokens"] = table.loc[first, "input_tokens"] - 1


def warm_behind_the_router(table, manifest, files):
    reused = int(0.6 * table["input_tokens"].sum())
    manifest["host"] = {**manifest["host"], "router": {"cached_prefix_tokens": reused,
                                                       "kv_events": 1310}}  # fmt: skip


def deployed_as(arm):
    def change(table, manifest, files):
        path = LIVE / "live-cpu" / arm / "r1" / "manifests"
        files |= {f"manifests/{each.name}": each.read_bytes() for each in path.iterdir()}

    return change


def with_image(digest):
    def change(table, manifest, files):
        manifest["versions"] = {**manifest["versions"], "image Frontend": f"vllm@{digest}"}

    return change


WAYS = {
    "partial": (KV, told(status="partial", reason="cut off"), "the replay ended.*found partial"),
    "failed": (KV, told(status="failed", reason="crashed"), "the replay ended.*found failed"),
    "rows missing": (DISAGG, shorter, "one row a request: expected 600, found 590"),
    "a row of another place": (
        DISAGG, column("row", 700, 599),
        "one row a request.*599 are rows of|as (asked|in the trace): expected all rows, found 1 ",
    ),
    "errors": (KV, column("error", "HTTP 500", slice(0, 6)), "failed requests.*found 1.17 %"),
    "overload": (
        DISAGG, column("error", "529 Overloaded", slice(0, 1)),
        r"rejected for overload \(HTTP 503, 529\): expected <= 0\.1 %, found 0\.33 %",
    ),
    "short answers": (BASELINE, column("output_tokens", lambda n: n - 1, [3]), "answer tokens as"),
    "other answers asked for": (BASELINE, short_and_unasked, "answer tokens as asked"),
    "other prompts": (BASELINE, column("input_tokens", lambda n: 2 * n + 65, [3]), "prompt tokens"),
    "a slower clock": (
        AGG_KV, column("arrival_ms", lambda ms: 1.1 * ms), "arrivals as in the trace",
    ),
    "sent late": (AGG_KV, column("send_lag_ms", 110.0, slice(0, 7)), "send lag p99"),
    "not known when sent": (AGG_KV, column("send_lag_ms", float("nan")), "send lag p99"),
    "a worker that never served": (
        KV, told(host={"workers_served": {"prefill": 5, "decode": 2}}),
        "prefill workers that served: expected 6, found 5",
    ),
    "workers not counted": (
        BASELINE, told(host={"workers_served": {}}), "aggregated workers that served.*found 0",
    ),
    "no KV events": (
        AGG_KV, told(host={"router": {"cached_prefix_tokens": 980800}}),
        "KV events that the router applied: expected > 0, found 0",
    ),
    "a router that finds nothing": (
        KV, told(host={"router": {"cached_prefix_tokens": 0, "kv_events": 1310}}),
        "KV routing finds more of the cache",
    ),
    "no more reuse than round-robin": (
        AGG_KV, like_round_robin, "finds more of the cache.*expected > 6.1 %, found 6.1 %",
    ),
    "warm caches": (BASELINE, warm_at_the_start, "caches cold at the start"),
    "warm caches behind a router": (KV, warm_behind_the_router, "reuse within an unlimited"),
    "another topology": (
        KV, deployed_as(DISAGG),
        "deployed as declared: expected disaggregated, kv.*found disaggregated, round-robin",
    ),
    "another version": (
        KV, told(versions={"ai-dynamo": "1.5.0"}),
        "same versions: expected one, found 2, disagg-kv-router r1 unlike the others",
    ),
    "another cluster": (KV, told(cluster={"hardware": "b200_sxm"}), "same cluster"),
    "another study": (KV, told(study_version=2), "same study version"),
}  # fmt: skip


@pytest.mark.parametrize(("arm", "change", "reason"), WAYS.values(), ids=WAYS)
def test_a_run_doctored_in_one_way_turns_the_gate_red_and_is_named(live, arm, change, reason):
    live.doctor(arm, change)
    judged = gate(live.evidence())
    assert not judged.green
    assert [why for why in judged.reasons if re.search(reason, why)] == judged.reasons
    assert judged.reasons and all(arm in why or "all runs" in why for why in judged.reasons)
    withheld_in_sentences(live.evidence(), judged)


def withheld_in_sentences(evidence, judged):
    """Everything that states a verdict or rests on one, said without computing any."""
    for say in (outcome.headline, outcome.lesson, attribution.lesson):
        assert say(evidence, judged) == NO_VERDICT
    assert robustness.lesson(evidence, judged, None) == f"- {NO_VERDICT}"
    assert index.short_answer(evidence, judged) == RED
    answer = index.answer(evidence, judged)
    assert RED in answer and plain(judged.reasons[0]) in answer
    assert RED in build.sphinx_settings(evidence, judged)


def test_errors_up_to_the_limit_are_no_failure(live):
    live.doctor(KV, column("error", "HTTP 500", slice(0, 5)))
    assert gate(live.evidence()).green


def test_what_no_result_depends_on_may_differ(live):
    live.doctor(KV, told(versions={"kvab": "9.9", "python": "3.14"}))
    live.doctor(BASELINE, told(cluster={"description": "said in other words"}))
    assert gate(live.evidence()).reasons == []


def test_images_may_not_differ_between_arms(live):
    for arm in ARMS:
        live.doctor(arm, with_image("sha256:aa"))
    assert gate(live.evidence()).green
    live.doctor(KV, with_image("sha256:bb"))
    (why,) = gate(live.evidence()).reasons
    assert "same images" in why


def test_a_run_copied_as_a_further_repeat_is_seen(live):
    live.doctor(KV, told(), repeat=2)
    (why,) = gate(live.evidence()).reasons
    assert why == f"{KV}: each repeat once: expected no number twice, found 1, 1"


def test_repeats_of_one_configuration_have_the_same_manifests(live):
    def change(table, manifest, files):
        manifest["repeat"] = 2
        text = files["manifests/deploy.yaml"].decode()
        files["manifests/deploy.yaml"] = text.replace(
            "metadata:", "metadata:\n  labels: {tried: other-flags}", 1
        ).encode()

    live.doctor(KV, change, repeat=2)
    (why,) = gate(live.evidence()).reasons
    assert why.startswith(f"{KV}: same manifests in all repeats")


def of_gpus(prefill):
    """Deploy other numbers of prefill workers, all of which served."""

    def change(table, manifest, files):
        text = files["manifests/deploy.yaml"].decode()
        text = text.replace("replicas: 6", f"replicas: {prefill}")
        files["manifests/deploy.yaml"] = text.encode()
        manifest["host"]["workers_served"] = {"prefill": prefill, "decode": 2}

    return change


def test_unequal_hardware_turns_the_gate_red_unless_it_is_declared(live):
    live.doctor(KV, of_gpus(8))
    (why,) = gate(live.evidence()).reasons
    assert why == (
        "all runs: same GPUs: expected one number, found agg-round-robin 16, agg-kv-router 16, "
        "disagg-round-robin 16, disagg-kv-router 20"
    )
    evidence = live.evidence()
    gpus = evidence.study.gpus.model_copy(update={"count": 20, "differ": True})
    declared = replace(evidence, study=evidence.study.model_copy(update={"gpus": gpus}))
    assert gate(declared).green
    said = "Unequal hardware: the configurations fill different numbers of GPUs (Aggregated, round"
    assert said in theme.banner(declared)
    assert said in index.answer(declared, gate(declared))
    assert "fills 16 to 20 GPUs" in index.how_known(declared)
    shown = outcome.configurations_table(declared).frame.set_index("configuration")
    told = shown.loc["Disaggregated, KV router"]
    per_gpu = float(told["good per s"]) / 20
    assert float(told["good per s and GPU"]) == pytest.approx(per_gpu, abs=6e-4)


def test_equal_hardware_is_said_by_its_number(live):
    assert "fills the same 16 GPUs" in index.how_known(live.evidence())
    assert "GPU" not in theme.banner(live.evidence()).replace("no GPU", "")
    assert "GPUs" not in outcome.configurations_table(live.evidence()).frame


# --- refused before any check ------------------------------------------------------------------


def test_a_row_that_stands_twice_is_refused(live):
    live.doctor(KV, column("row", 3, 4))
    with pytest.raises(InputError, match="row 3 stands twice"):
        live.evidence()


@pytest.mark.parametrize("field", [{"sha256": 64 * "0"}, {"rows": 599}])
def test_arms_that_replayed_different_traces_are_refused(live, field):
    live.doctor(KV, told(trace=field))
    with pytest.raises(InputError, match="compare runs of one workload"):
        live.evidence()


def test_another_trace_on_purpose_is_judged_like_any_and_named(live):
    for arm in ARMS:
        live.doctor(arm, told(trace={"sha256": 64 * "0", "name": "mine"}))
    for old in (live.folder / "qwen3-32b" / "workloads").iterdir():
        old.rename(old.with_stem(12 * "0"))
    evidence = live.evidence()
    assert gate(evidence).green
    assert "mine" in theme.banner(evidence)
    assert "This is not the study's own trace" in theme.banner(evidence)


# --- other kinds -------------------------------------------------------------------------------


def test_a_simulated_worker_that_never_served_is_seen(simulated):
    simulated.doctor(KV, column("prefill_worker", lambda worker: worker.replace(5, 4)))
    (why,) = gate(simulated.evidence()).reasons
    assert "prefill workers that served: expected 6, found 5" in why


def on_kubernetes(restarts=0, lost=0, events=100):
    """Turn a live run into one on GPUs: pods, restarts, and counters of the router."""

    def change(table, manifest, files):
        services = yaml.safe_load(files["manifests/deploy.yaml"])["spec"]["services"]
        names = [(name, n) for name in sorted(services) for n in range(services[name]["replicas"])]
        pods = {f"{name}-{n}": {"component": name, "node": "gpu-1"} for name, n in names}
        for n in range(lost):
            del pods[f"VllmPrefillWorker-{n}"]
        grown = {"before": {"events": 5.0, "hits": 0.0}, "after": {"events": 5.0 + events}}
        router = manifest["host"]["router"] | grown
        manifest["host"] = {"pods": pods, "router": router,
                            "restarts": dict.fromkeys(pods, 0)}  # fmt: skip
        manifest["host"]["restarts"][next(iter(pods))] = restarts
        manifest["kind"] = "kubernetes"

    return change


@pytest.mark.parametrize(
    ("doctored", "reason"),
    [
        ({}, None),
        ({"restarts": 1}, "restarts of serving pods: expected 0, found 1"),
        ({"lost": 1}, "prefill workers that ran: expected 6, found 5"),
        ({"events": 0}, "KV events that the router applied: expected > 0, found 0"),
    ],
    ids=["sound", "restarted", "a worker missing", "no KV events"],
)
def test_pods_of_a_cluster_are_looked_at(live, doctored, reason):
    for arm in ARMS:
        live.doctor(arm, on_kubernetes(**(doctored if arm == KV else {})))
    reasons = gate(live.evidence()).reasons
    assert reasons == [f"{KV} r1: {reason}"] * bool(reason)


def test_restarts_that_nobody_counted_are_not_taken_for_none(live):
    def change(table, manifest, files):
        on_kubernetes()(table, manifest, files)
        del manifest["host"]["restarts"]

    for arm in ARMS:
        live.doctor(arm, change if arm == KV else on_kubernetes())
    (why,) = gate(live.evidence()).reasons
    assert "restarts of serving pods: expected 0, found not counted" in why


# --- pages -------------------------------------------------------------------------------------

PAGES = ["index", "05_outcome", "06_attribution", "07_robustness", "09_model_check"]
STATED = re.compile(
    rf"\b(better|worse|no difference|inconclusive)\b|({'|'.join(VERDICTS.values())}), "
)


def shown(page, **parameters):
    """Return the text of everything that a page's cells show, executed with these parameters."""
    names, texts = {}, []
    for cell in json.loads((root() / "notebooks" / f"{page}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        *before, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(before, []), page, "exec"), names)
        if not isinstance(last, ast.Expr):
            exec(compile(ast.Module([last], []), page, "exec"), names)
            names |= parameters
            continue
        value = eval(compile(ast.Expression(last.value), page, "eval"), names)
        if value is not None:  # what there is nothing to say of leaves no box
            texts.append(value.data if isinstance(value, Markdown) else value._repr_html_())
    return "\n".join(texts)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_states_a_verdict_while_the_gate_is_red(live, page):
    shutil.copytree(LIVE / "live-cpu" / "model-check",
                    live.folder / "qwen3-32b" / "live-cpu" / "model-check")  # fmt: skip
    sound = shown(page, study=STUDY, cluster="live-cpu", runs=str(live.folder))
    live.doctor(KV, column("send_lag_ms", 110.0))
    red = shown(page, study=STUDY, cluster="live-cpu", runs=str(live.folder))
    said = RED if page != "09_model_check" else WITHHELD
    assert said in red and said not in sound
    assert STATED.findall(red) == []


def test_clusters_say_nothing_of_a_red_one(live):
    live.doctor(KV, column("send_lag_ms", 110.0))
    assert load_clusters(STUDY, live.folder).verdicts["live-cpu"] == WITHHELD
