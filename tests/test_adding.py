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


def kvab(place, *words):
    """Run the copy's own kvab."""
    told = {name: value for name, value in os.environ.items() if name != "KVAB_ROOT"}
    told |= {"PYTHONPATH": str(place), "KVAB_CACHE": str(place.parent / "cache")}
    command = [sys.executable, "-m", "kvab", *map(str, words)]
    return subprocess.run(command, cwd=place, env=told, capture_output=True, text=True)


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
    row = "| how your numbers compare with these | [](reproduce) |"
    edit(
        copy,
        "notebooks/index.ipynb",
        row,
        f"| how long the slowest waits | [](11_slowest) |\\n{row}",
    )
    done(copy, "report", "--from", "book/published", "--out", copy.parent / "out")
    html = (copy.parent / "out/html/11_slowest.html").read_text()
    assert "How long does the slowest wait?" in html
    assert re.search(r"The slowest first token took \d+ ms\.", html)
    assert "11_slowest.html" in (copy.parent / "out/html/index.html").read_text()
