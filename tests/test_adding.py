"""The recipes of CONTRIBUTING.md, followed in a copy of the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from kvab.trace.reading import read_trace

ROOT = Path(__file__).parents[1]
STUDY = "recipes/qwen3-32b"
RUN = "book/published/qwen3-32b/simulated-h200/disagg-kv-router/r1"


@pytest.fixture
def copy(tmp_path):
    """Every file of this checkout that git would keep."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / "copy" / name)
    return tmp_path / "copy"


def python(place, *words):
    """Run Python with the copy's own modules."""
    told = {name: value for name, value in os.environ.items() if name != "KVAB_ROOT"}
    told |= {"PYTHONPATH": str(place), "KVAB_CACHE": str(place.parent / "cache")}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=place, env=told, capture_output=True, text=True)


def kvab(place, *words):
    """Run the copy's own kvab."""
    return python(place, "-m", "kvab", *words)


def done(place, *words):
    ended = kvab(place, *words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def edit(place, name, old, new):
    text = (place / name).read_text()
    assert old in text, (name, old)
    (place / name).write_text(text.replace(old, new, 1))


def named(what):
    """Return the files that a recipe of CONTRIBUTING.md names."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (recipe,) = re.findall(rf"\n\*\*{what}\*\*(.*?)\n(?=\n\*\*|\n##)", text, re.DOTALL)
    return {name for name in re.findall(r"`([^`]+)`", recipe) if "/" in name or ".md" in name}


def test_no_recipe_has_more_than_eight_steps():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.findall(r"^(\d+)\. ", text, re.MULTILINE)
    assert max(map(int, steps)) <= 8


def test_a_metric(copy):
    assert named("A metric") == {
        "kvab/requests/metrics.py", "kvab/pages/printed.py", "tests/unit/test_metrics.py",
        "book/methods.md", "CHANGELOG.md",
    }  # fmt: skip
    line = '"longest_latency_ms": float(rows["latency_ms"].max()),'
    edit(
        copy,
        "kvab/requests/metrics.py",
        '"duration_s": seconds,',
        f'{line}\n        "duration_s": seconds,',
    )
    edit(
        copy, "kvab/pages/printed.py", "    return lines\n\n\ndef header_lines",
        '    lines.append(("longest [ms]", number(summary["longest_latency_ms"])))\n'
        "    return lines\n\n\ndef header_lines",
    )  # fmt: skip
    summary = json.loads(done(copy, "summarize", RUN, "--json"))
    assert summary["longest_latency_ms"] >= summary["latency_ms"]["p99"]
    assert re.search(r"^longest \[ms\] +[\d,]+", done(copy, "summarize", RUN), re.MULTILINE)


def test_a_configuration(copy):
    assert named("A configuration") == {
        "recipes/<study>/vllm/<name>/deploy.yaml", "recipes/<study>/study.yaml",
    }  # fmt: skip
    nearest, new = (copy / STUDY / "vllm" / name for name in ("disagg-kv-router", "disagg-5p3d"))
    shutil.copytree(nearest, new)
    edit(new, "deploy.yaml", "replicas: 6", "replicas: 5")
    edit(new, "deploy.yaml", "replicas: 2", "replicas: 3")
    assert "5 prefill" not in done(copy, "check")
    path = copy / STUDY / "study.yaml"
    declared = yaml.safe_load(path.read_text())
    entry = dict(declared["configurations"]["disagg-round-robin"], path="vllm/disagg-5p4d")
    declared["configurations"]["disagg-5p3d"] = entry
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    ended = kvab(copy, "check")
    assert ended.returncode == 2
    assert "vllm/disagg-5p4d" in ended.stderr
    assert ended.stderr.count("\n") == 1
    entry.update(path="vllm/disagg-5p3d", label="Disaggregated 5P + 3D, KV router", short="B53")
    entry["factors"] = {"split": "disaggregated", "routing": "kv"}
    path.write_text(yaml.safe_dump(declared, sort_keys=False))
    ended = kvab(copy, "check")
    assert ended.returncode == 2
    assert "deploy.v1beta1.yaml: not what deploy.yaml says; run `kvab check --fix`" in ended.stderr
    assert "5 prefill" in done(copy, "check", "--fix")
    assert "5 prefill" in done(copy, "check")


def test_a_cluster_profile(copy):
    assert named("A cluster profile") == {"recipes/clusters/<name>.yaml"}
    profiles = copy / "recipes/clusters"
    shutil.copy(profiles / "example-h200.yaml", profiles / "ours.yaml")
    ended = kvab(copy, "check")
    assert ended.returncode == 2
    assert "name: expected ours as the file is called" in ended.stderr
    edit(profiles, "ours.yaml", "name: example-h200", "name: ours")
    assert "ours" in done(copy, "check")


def test_a_workload(copy, small_trace, monkeypatch):
    assert named("A workload") == {"recipes/<study>/study.yaml", "CHANGELOG.md"}
    monkeypatch.setenv("KVAB_TRACES", str(copy / "traces"))
    (copy / "traces").mkdir()
    (copy / "traces" / "ours.jsonl").write_bytes(small_trace.read_bytes())
    trace = read_trace(small_trace)
    edit(
        copy, f"{STUDY}/study.yaml", "  toolagent:\n",
        "  ours:\n    name: Ours\n    url: http://127.0.0.1:1/ours.jsonl\n"
        f"    sha256: {trace.sha256}\n    rows: {len(trace)}\n    block_tokens: 512\n"
        "  toolagent:\n",
    )  # fmt: skip
    done(copy, "check")
    said = done(copy, "doctor", "--cluster", "simulated-h200", "--workload", "ours")
    assert f"ours.jsonl, {len(trace)} rows, sha256 as declared" in said


def test_a_hardware_scenario(copy):
    assert named("A hardware scenario") == {
        "recipes/hardware/<name>/scenario.yaml", "recipes/hardware/<name>/measured.csv",
        "book/published/hardware", "CHANGELOG.md",
    }  # fmt: skip
    nearest, new = (copy / "recipes/hardware" / name for name in ("idle-prefill-qwen3-32b", "ours"))
    shutil.copytree(nearest, new)
    edit(new, "scenario.yaml", "name: idle-prefill-qwen3-32b", "name: ours")
    edit(new, "scenario.yaml", "input_tokens: [8192]", "input_tokens: [2048]")
    ended = kvab(copy, "check")
    assert ended.returncode == 2
    assert "measured.csv:3: cell: expected one of 2048x1, got 8192x1" in ended.stderr
    figures = [
        "arm,cell,metric,measured",
        *(f"{arm},2048x1,ttft_ms_mean,{value}" for arm, value in (("h100", 140), ("h200", 130))),
    ]
    (new / "measured.csv").write_text("\n".join(figures))
    assert "ours" in done(copy, "check")
    document = json.loads(done(copy, "hardware", "ours", "--json"))
    rows = document["scenarios"]["ours"]["rows"]
    assert [(row["arm"], row["measured"]) for row in rows] == [("h100", [140]), ("h200", [130])]
    assert all(0.5 < row["ratio"] < 2 for row in rows)


PROFILE = """class Fixed(Declared):
    \"\"\"Answers each request after one time.\"\"\"

    kind: Literal["fixed"]
    name: str
    description: str
    hardware: str
    latency_ms: Positive


Profile = Annotated[Fixed | """
FIXED = '''"""A cluster that answers each request after the time that its profile names."""

from kvab.clusters.base import Cluster, ClusterRun, Collected, Finding
from kvab.requests.table import typed


class FixedCluster(Cluster):
    """Nothing to look at."""

    def __init__(self, profile):
        self.profile = profile

    def identity(self):
        return {"latency_ms": f"{self.profile.latency_ms:g}"}

    def check(self, study):
        return [Finding(True, f"cluster: {self.profile.name}")]

    def start(self, job, *, take_over=False):
        return FixedRun(self.profile, job)


class FixedRun(ClusterRun):
    """Nothing to start, and nothing to stop."""

    def __init__(self, profile, job):
        self.profile, self.job = profile, job

    def prepare(self):
        return {"fixed": "1.0"}

    def deploy(self):
        pass

    def replay(self, on_progress=None):
        trace, rows, latency_ms = self.job.trace, self.job.rows, self.profile.latency_ms
        columns = {
            "row": range(rows),
            "arrival_ms": trace.arrival_ms[:rows],
            "input_tokens": trace.input_tokens[:rows],
            "output_tokens": trace.output_tokens[:rows],
            "requested_output_tokens": trace.output_tokens[:rows],
        }
        times_ms = {"ttft_ms": latency_ms / 2, "latency_ms": latency_ms, "send_lag_ms": 0.0}
        self.requests = typed(columns | {name: [ms] * rows for name, ms in times_ms.items()})
        on_progress(rows)

    def collect(self):
        return Collected(requests=self.requests, files={"fixed.log": b"done"})

    def diagnostics(self):
        return Collected(requests=None)

    def teardown(self, *, keep_answers):
        return ""
'''
REPLAYED = """from kvab.runs.replay import Replay, plan_job
from kvab.study import load_study

replay = Replay(plan_job(load_study(), "ours", "agg-kv-router", repeat=2, rows=9))
replay.run(print)
print(Replay(replay.job).prepare())
"""


def test_a_kind_of_cluster(copy, small_trace, monkeypatch):
    assert named("A kind of cluster") == {
        "kvab/study/__init__.py", "kvab/clusters/<kind>.py", "kvab/clusters/base.py",
        "kvab/clusters/__init__.py", "kvab/runs/folder.py", "kvab/pages/theme.py",
        "recipes/clusters/<name>.yaml", "tests/unit/test_<kind>.py", "CHANGELOG.md",
    }  # fmt: skip
    edit(copy, "kvab/study/__init__.py", "Profile = Annotated[", PROFILE)
    (copy / "kvab/clusters/fixed.py").write_text(FIXED)
    edit(
        copy, "kvab/clusters/__init__.py", "    if isinstance(profile, Live):",
        '    if profile.kind == "fixed":\n'
        "        from kvab.clusters.fixed import FixedCluster\n\n"
        "        return FixedCluster(profile)\n"
        "    if isinstance(profile, Live):",
    )  # fmt: skip
    edit(
        copy,
        "kvab/runs/folder.py",
        'kind: Literal["simulated"',
        'kind: Literal["fixed", "simulated"',
    )
    edit(copy, "kvab/pages/theme.py", "KINDS = {", 'KINDS = {\n    "fixed": "made up",')
    (copy / "recipes/clusters/ours.yaml").write_text(
        "kind: fixed\nname: ours\ndescription: one time\nhardware: h200\nlatency_ms: 500\n"
    )
    trace = read_trace(small_trace)  # in place of the study's
    monkeypatch.setenv("KVAB_TRACE", str(small_trace))
    edit(copy, f"{STUDY}/study.yaml", "sha256: ", f"sha256: {trace.sha256}  # ")
    edit(copy, f"{STUDY}/study.yaml", "  rows: ", f"  rows: {len(trace)}  # ")
    assert "ours" in done(copy, "check")
    assert "ok    cluster: ours" in done(copy, "doctor", "--cluster", "ours")
    ended = python(copy, "-c", REPLAYED)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("9\n") and "is complete" in ended.stdout
    path = copy / "runs/qwen3-32b/ours/agg-kv-router/r2"
    manifest = json.loads((path / "run.json").read_text())
    assert (manifest["kind"], manifest["status"]) == ("fixed", "complete")
    assert manifest["versions"]["fixed"] == "1.0"
    assert {"artifacts/fixed.log", "requests.parquet"} <= set(manifest["files"])
    summary = json.loads(done(copy, "summarize", path, "--json"))
    assert summary["latency_ms"]["p99"] == 500


def test_a_study(copy):
    done(copy, "new", "llama-70b", "--like", f"{STUDY}/study.yaml")
    assert "llama-70b" in done(copy, "check")


@pytest.mark.slow
def test_a_figure_and_a_page(copy):
    assert named("A figure") == {"kvab/pages/<page>.py", "notebooks/<nn>_<page>.ipynb"}
    assert named("A page") == {
        "kvab/pages/<page>.py", "notebooks/<nn>_<page>.ipynb", "book/_toc.yml",
        "notebooks/index.ipynb",
    }  # fmt: skip
    (copy / "kvab/pages/slowest.py").write_text(
        '"""Page 11: how long the slowest requests wait."""\n\n'
        "from __future__ import annotations\n\n"
        "import matplotlib.pyplot as plt\n\n"
        "from kvab.pages.evidence import Evidence\n"
        "from kvab.pages.theme import WIDTH_IN, Drawing, drawn\n\n\n"
        '@drawn("slowest-ttft", lambda e: e.requests[["row", "ttft_ms"]])\n'
        "def ttft_figure(evidence: Evidence) -> Drawing:\n"
        '    """Draw TTFT along the trace."""\n'
        "    figure, axes = plt.subplots(figsize=(WIDTH_IN, 2))\n"
        '    axes.plot(evidence.requests["ttft_ms"].to_numpy()[:500])\n'
        '    axes.set_ylabel("TTFT [ms]")\n'
        '    slowest_ms = evidence.requests["ttft_ms"].max()\n'
        '    caption = f"The slowest first token took {slowest_ms:.0f} ms."\n'
        '    return figure, caption, "TTFT along the trace."\n'
    )
    page = nbformat.read(copy / "notebooks/05_outcome.ipynb", nbformat.NO_CONVERT)
    parameters = next(c for c in page.cells if "parameters" in c.metadata.get("tags", ()))
    page.cells = [
        nbformat.v4.new_markdown_cell("# How long does the slowest wait?"),
        parameters,
        nbformat.v4.new_code_cell(
            "from kvab.pages import slowest\nfrom kvab.pages.evidence import load_evidence\n\n"
            "slowest.ttft_figure(load_evidence(study, cluster, runs))"
        ),
    ]
    nbformat.write(page, copy / "notebooks/11_slowest.ipynb")
    edit(
        copy,
        "book/_toc.yml",
        "      - file: reproduce\n",
        "      - file: 11_slowest\n      - file: reproduce\n",
    )
    link = " · [](reproduce)"
    edit(copy, "notebooks/index.ipynb", link, f" · [](11_slowest){link}")
    done(copy, "report", "--from", "book/published", "--out", copy.parent / "out")
    html = (copy.parent / "out/html/11_slowest.html").read_text()
    assert "How long does the slowest wait?" in html
    assert re.search(r"The slowest first token took \d+\sms\.", html)
    assert "11_slowest.html" in (copy.parent / "out/html/index.html").read_text()
