"""A study of one's own: begun with `kvab new`, changed in its declarations alone, and its book."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kvab.trace.synthesize import write_generated

ROOT = Path(__file__).parents[2]
ROWS, KEPT = 300, ("agg-round-robin", "disagg-kv-router")


@pytest.fixture
def elsewhere(tmp_path):
    """A checkout with the code as it is, and a trace that nobody else has."""
    place = tmp_path / "checkout"
    for name in ("recipes", "notebooks", "book"):
        ignored = shutil.ignore_patterns("_build", "published")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    shutil.copyfile(ROOT / "requirements.lock", place / "requirements.lock")
    write_generated(tmp_path / "trace.jsonl", rows=ROWS, seed=5)
    return place


def kvab(place, *words):
    trace, cache = place.parent / "trace.jsonl", place.parent / "cache"
    told = {**os.environ, "KVAB_ROOT": str(place), "KVAB_TRACE": str(trace)}
    told |= {"KVAB_CACHE": str(cache)}
    command = [sys.executable, "-m", "kvab", *map(str, words)]
    return subprocess.run(command, cwd=place, env=told, capture_output=True, text=True)


def rewrite(path, change):
    documents = list(yaml.safe_load_all(path.read_text()))
    change(documents)
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False))


def replaced(path, *pairs):
    text = path.read_text()
    for old, new in pairs:
        assert old in text, (path, old)
        text = text.replace(old, new)
    path.write_text(text)


def declare(place, trace):
    """Another model, four GPUs, two configurations, another trace and other bounds; no sweep."""
    folder = place / "recipes" / "small"

    def study(documents):
        (told,) = documents
        told |= {
            "title": "Is the small one faster when split?",
            "about": "Nobody asked before.",
            "model": {"name": "Qwen/Qwen3-8B", "revision": "0" * 40},
            "gpus": {"product": "H200", "count": 4, "nodes": 1},
            "slo": {"ttft_ms": 900, "itl_ms": 12},
            "other_slos": [],
            "repeats": 2,
            "seeds": [0, 7],
        }
        told["workloads"] = {"hour": {
            **told["workloads"]["conversation"],
            "name": "a made-up hour",
            "rows": ROWS,
            "sha256": hashlib.sha256(trace.read_bytes()).hexdigest(),
        }}  # fmt: skip
        told["configurations"] = {name: told["configurations"][name] for name in KEPT}
        del told["capacity"]

    rewrite(folder / "study.yaml", study)
    for name in KEPT:
        deploy, perf = (folder / "vllm" / name / file for file in ("deploy.yaml", "perf.yaml"))
        replaced(perf, ("Qwen/Qwen3-32B", "Qwen/Qwen3-8B"),
                 ("time_to_first_token:2000 inter_token_latency:25",
                  "time_to_first_token:900 inter_token_latency:12"))  # fmt: skip
        text = deploy.read_text().replace("Qwen/Qwen3-32B", "Qwen/Qwen3-8B")
        text = text.replace('gpu: "2"', 'gpu: "1"')
        text = re.sub(r'(--tensor-parallel-size\n +- )"2"', r'\1"1"', text)
        text = re.sub(r"replicas: (8|6)", lambda m: f"replicas: {4 if m[1] == '8' else 3}", text)
        deploy.write_text(text.replace("replicas: 2", "replicas: 1"))
    for name in ("agg-kv-router", "disagg-round-robin"):
        shutil.rmtree(folder / "vllm" / name)


def words(html):
    """Return the text of a page."""
    body = html[html.index("<main") : html.index("</main>")]
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", body, flags=re.S))


@pytest.mark.slow
def test_another_study_needs_no_change_of_the_code(elsewhere):
    made = kvab(elsewhere, "new", "small")
    assert made.returncode == 0, made.stderr
    assert "recipes/small/study.yaml" in made.stdout
    declare(elsewhere, elsewhere.parent / "trace.jsonl")
    shutil.rmtree(elsewhere / "recipes" / "qwen3-32b")
    looked = kvab(elsewhere, "doctor")
    assert looked.returncode == 0, looked.stdout
    ended = kvab(elsewhere, "report", "--out", elsewhere / "out")
    assert ended.returncode in (0, 4), ended.stderr[-3000:]  # so few rows may leave a worker idle
    pages = sorted((elsewhere / "out" / "html").glob("*.html"))
    assert len(pages) > 12
    said = {page.name: words(page.read_text()) for page in pages if "<main" in page.read_text()}
    assert "Is the small one faster when split?" in said["index.html"]
    assert "No sweep of load" in said["08_capacity.html"]
    assert "GENERATED WORKLOAD" in said["index.html"] + said["05_outcome.html"]
    published = [page for page, text in said.items() if "32B" in text or "qwen3-32b" in text]
    assert not published
    run = elsewhere / "runs" / "small" / "simulated-h200" / KEPT[1] / "r2" / "run.json"
    assert json.loads(run.read_text())["counts"]["expected"] == ROWS


def test_a_new_study_is_whole_and_refuses_a_taken_or_impossible_name(checkout):
    from kvab.errors import InputError
    from kvab.study import load_cluster, load_study, new_study
    from kvab.study.topology import declared_topology

    like = Path("recipes/qwen3-32b/study.yaml")
    said = new_study("mine", like)
    assert "kvab doctor --study recipes/mine/study.yaml --cluster simulated-mine" in said
    assert "recipes/clusters/simulated-mine.yaml\n  where it is replayed" in said
    profile = load_cluster("simulated-mine")
    assert (profile.kind, profile.hardware) == ("simulated", "h200_sxm")
    assert "kubernetes-ours" in new_study("ours", like, "example-h200")
    assert load_cluster("kubernetes-ours").namespace == "dynamo-study"
    with pytest.raises(InputError, match="no cluster 'nowhere'"):
        new_study("third", like, "nowhere")
    study = load_study("recipes/mine/study.yaml")
    assert study.name == "mine"
    for name in study.configurations:
        assert declared_topology(study, name).gpus == study.gpus.count
    for path in (checkout / "recipes" / "mine").rglob("*.yaml"):
        assert "qwen3-32b" not in path.read_text(), path
    for name, said in (("mine", "exists already"), ("Mine!", "lower-case"), ("../x", "lower-case")):
        with pytest.raises(InputError, match=said):
            new_study(name, like)
    assert sorted(path.name for path in (checkout / "recipes").iterdir()) == [
        "campaign.yaml",
        "clusters",
        "hardware",
        "mine",
        "ours",
        "qwen3-32b",
        "rbac.yaml",
    ]
