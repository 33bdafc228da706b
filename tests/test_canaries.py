"""Secrets stay where they are, and texts of others stay texts.

Canaries are planted where secrets live, and everything that a run leaves is searched for them.
Hostile texts are planted where servers and users write, and the pages are opened in a browser.
"""

import ast
import base64
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
STUDY = "recipes/qwen3-32b/study.yaml"
PUBLISHED = ROOT / "book" / "published" / "qwen3-32b"
KV = "disagg-kv-router"


# --- secrets -----------------------------------------------------------------------------------


@pytest.fixture
def emulated(tmp_path, checkout, monkeypatch):
    """The emulated cluster, see tests/cluster/conftest.py."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "cluster"))
    pytest.importorskip("kubernetes", reason="the Kubernetes client (extra `cluster`) is missing")
    pytest.importorskip("aiohttp", reason="aiohttp is missing")
    import importlib.util

    place = ROOT / "tests" / "cluster" / "conftest.py"
    spec = importlib.util.spec_from_file_location("emulated_cluster", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Emulated(tmp_path, checkout)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
    yield made
    made.stop()


def planted(emulated):
    """Put a canary wherever a secret lives; return them by place."""
    found = {place: f"canary{secrets.token_hex(12)}" for place in
             ("environment", "password", "client key", "server log")}  # fmt: skip
    found["token"] = f"hf_{secrets.token_hex(16)}"
    config = yaml.safe_load(emulated.kubeconfig.read_text())
    user = config["users"][0]["user"]
    found["kubeconfig token"] = user["token"]
    key = base64.b64encode(found["client key"].encode()).decode()
    user |= {"password": found["password"], "client-key-data": key}
    emulated.kubeconfig.write_text(yaml.safe_dump(config))
    held = emulated.store.get("secrets", "dynamo-study", "hf-token-secret")
    data = {"HF_TOKEN": base64.b64encode(found["token"].encode()).decode()}
    emulated.server.do(lambda: emulated.store.change("secrets", held, data=data))
    said = f"HF_TOKEN={found['token']}\nAuthorization: Bearer {found['server log']}\n"
    for pod in ("frontend-0", "vllmprefillworker-0", "vllmdecodeworker-1"):
        emulated.node.logs[f"disagg-router-6p-2d-{pod}"] = said
    return found


def canaries_in(content, canaries):
    """Return the places whose canary stands in some bytes, plain or as base64."""
    forms = {place: (text.encode(), base64.b64encode(text.encode()))
             for place, text in canaries.items()}  # fmt: skip
    return [place for place, form in forms.items() if any(each in content for each in form)]


@pytest.mark.slow
def test_no_secret_is_in_anything_that_runs_leave(emulated, small_trace, tmp_path, monkeypatch):
    """One run that fails and keeps its diagnostics, one that succeeds, and a bundle of both."""
    from kvab.book.publish import bundle, unpacked

    canaries = planted(emulated)
    cache, packed = tmp_path / "cache", tmp_path / "mine.tar.zst"
    told = {"KVAB_CACHE": str(cache), "HF_TOKEN": canaries["token"],
            "AWS_SECRET_ACCESS_KEY": canaries["environment"]}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    screen = b""
    for repeat, code in ((1, "7"), (2, "")):
        emulated.node.environment["AIPERF_EXIT"] = code
        words = ["run", "--cluster", "emulated", "--configuration", KV, "--repeat", str(repeat),
                 "--trace", str(small_trace), "--runs", str(emulated.runs)]  # fmt: skip
        ended = subprocess.run([sys.executable, "-m", "kvab", *words], capture_output=True)
        screen += ended.stdout + ended.stderr
        assert ended.returncode == (3 if code else 0), ended.stderr[-2000:]
    shutil.copyfile(ROOT / "requirements.lock", emulated.checkout / "requirements.lock")
    study = emulated.checkout / STUDY
    bundle(study, [emulated.runs], packed, hosts=True)
    written = [path for folder in (emulated.runs, cache) for path in folder.rglob("*")
               if path.is_file()]  # fmt: skip
    names = {path.name for path in written}
    assert {"run.json", "r1.replay.ipynb", "r2.replay.ipynb"} <= names
    logs = [path for path in written if "logs" in path.parts]
    assert sum("HF_TOKEN=***\nAuthorization: Bearer ***" in path.read_text() for path in logs) == 3
    assert {str(path): found for path in written
            if (found := canaries_in(path.read_bytes(), canaries))} == {}  # fmt: skip
    assert screen and canaries_in(screen, canaries) == []
    with unpacked(packed) as (folder, contents):
        assert len(contents.files) > 10
        assert [name for name in contents.files
                if canaries_in((folder / name).read_bytes(), canaries)] == []  # fmt: skip


def test_a_canary_would_be_found():
    assert canaries_in(b"x=" + base64.b64encode(b"abc"), {"key": "abc", "other": "d"}) == ["key"]


# --- hostile texts -----------------------------------------------------------------------------

IMAGE, LINK = "![x](http://evil.example/x.png)", "[x](javascript:alert(1))"
HOSTILE = [
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "$(touch pwned)",
    "!!python/object/apply:os.system [touch pwned]",
    "../../etc/passwd",
    "{{ 7*7 }}",
    IMAGE,
    LINK,
    "`touch pwned`",
    "```{include} /etc/passwd\n```",
    "{download}`/etc/passwd`",
    "<http://evil.example>",
    "**loud** | cell | $x^2$ &lt;b&gt;",
]
ALL = " ".join(HOSTILE)
SHOWN = " ".join(ALL.split())


def as_html(markdown):
    """Return Markdown as the pages render it."""
    from myst_parser.config.main import MdParserConfig
    from myst_parser.mdit_to_docutils.base import DocutilsRenderer
    from myst_parser.parsers.mdit import create_md_parser

    extensions = {"colon_fence", "deflist"}
    parser = create_md_parser(MdParserConfig(enable_extensions=extensions), DocutilsRenderer)
    return parser.parse(markdown)


def leaves(tokens):
    """Return the kinds of all tokens of a parsed text, and what stands there as text."""
    kinds, text = [], ""
    for token in tokens:
        for each in (token, *(token.children or ())):
            kinds.append(each.type)
            text += each.content if each.type in ("text", "text_special") else ""
    return kinds, text


@pytest.mark.parametrize("text", [*HOSTILE, ALL])
def test_a_text_of_others_stands_in_markdown_as_it_is(text):
    from kvab.console import plain

    kinds, shown = leaves(as_html(f"They said {plain(text)}, and no more."))
    assert set(kinds) <= {"paragraph_open", "inline", "text", "paragraph_close", "text_special"}
    assert shown == f"They said {' '.join(text.split())}, and no more."


def test_a_table_escapes_cells_headers_and_caption():
    import pandas as pd

    from kvab.pages.printed import Table

    frame = pd.DataFrame({ALL: [ALL]})
    page = Table(frame, ALL, (ALL,))._repr_html_()
    assert "<script>" not in page and "<img" not in page
    # The caption also names the region; each of the other two stands once.
    assert page.count("&lt;script&gt;") == 4


def hostile_runs(folder):
    """A copy of live runs in which every text of others is hostile."""
    from kvab.runs import folder as runs

    for source in (ROOT / "tests/data/live-cpu", PUBLISHED / "workloads"):
        shutil.copytree(source, folder / "qwen3-32b" / source.name)
    for path in (folder / "qwen3-32b" / "live-cpu").glob("*/r1"):
        run = runs.read_run(path)
        told = run.manifest.model_dump(by_alias=True, exclude={"files"})
        told["trace"]["name"] = told["cluster"]["description"] = ALL
        told["cluster"]["hardware"] = told["versions"]["ai-dynamo"] = ALL
        table = run.requests.copy()
        if run.manifest.configuration == KV:
            told |= {"status": "partial", "reason": ALL}
            table.loc[:20, "error"] = ALL
            told["counts"] = {"expected": 600, "received": 579, "errors": 21}
        files = {name: (path / name).read_bytes() for name in run.manifest.files}
        files["requests.parquet"] = runs.requests_bytes(table)
        shutil.rmtree(path)
        runs.write_run(path, told, files)
    return folder


def test_no_sentence_of_hostile_runs_is_more_than_text(tmp_path):
    from kvab.pages import index, setup
    from kvab.pages.evidence import load_evidence
    from kvab.pages.gate import gate
    from kvab.pages.theme import banner

    evidence = load_evidence(STUDY, "live-cpu", hostile_runs(tmp_path))
    judged = gate(evidence)
    for said in (
        banner(evidence), index.answer(evidence, judged), index.how_known(evidence),
        setup.exclusions(evidence), setup.finding(evidence, judged),
    ):  # fmt: skip
        inside = said.strip(":").partition("\n")[2].rpartition("\n")[0] if ":::" in said else said
        kinds, _ = leaves(as_html(inside))
        assert not {"html_inline", "html_block", "image", "code_inline", "fence"} & set(kinds)
        assert "http://evil.example" not in re.findall(r"\]\((.*?)\)", said)
    assert judged.reasons and any("the replay ended" in why for why in judged.reasons)


@pytest.mark.slow
def test_a_book_of_hostile_runs_runs_nothing_and_states_no_verdict(tmp_path, chromium):
    from playwright.sync_api import sync_playwright

    from kvab.book.build import report
    from kvab.errors import GateError
    from kvab.pages.outcome import RED, VERDICTS

    folder = hostile_runs(tmp_path / "hostile")
    with pytest.raises(GateError) as raised:
        report(Path(STUDY), "live-cpu", out=tmp_path / "book", published=folder)
    assert len(str(raised.value).splitlines()) == 1
    asked, texts = [], {}
    with sync_playwright() as playwright:
        options = {"executable_path": chromium, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options)
        for path in sorted((tmp_path / "book" / "html").glob("*.html")):
            page = browser.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(path.as_uri(), wait_until="load")
            assert page.evaluate("window.pwned") is None, path.name
            assert page.evaluate(
                "[...document.querySelectorAll('a')].filter(a => a.protocol == 'javascript:')"
                ".length") == 0, path.name  # fmt: skip
            texts[path.stem] = page.inner_text("main")
            page.close()
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    quoted = [text.replace("“", '"').replace("”", '"') for text in texts.values()]
    assert sum(HOSTILE[0] in text and IMAGE in text for text in quoted) >= 5
    assert not list(ROOT.glob("pwned")) and not list(tmp_path.rglob("pwned"))
    stated = re.compile(rf"({'|'.join(VERDICTS.values())}), (in simulation|on live|measured)")
    saying = {name for name, text in texts.items() if stated.search(text)}
    assert all(name.endswith("-published") for name in saying)  # of sound runs, beside these
    assert all(RED in texts[name] for name in ("index", "05_outcome", "07_robustness"))


# --- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["title", "about"])
@pytest.mark.parametrize("text", [HOSTILE[0], LINK, "{{ 7*7 }}", "`touch pwned`", "$(touch pwned)"])
def test_a_study_says_plain_texts(checkout, field, text):
    from kvab.errors import InputError
    from kvab.study import load_study

    path = checkout / STUDY
    told = yaml.safe_load(path.read_text()) | {field: text}
    path.write_text(yaml.safe_dump(told))
    with pytest.raises(InputError, match=f"{field}: expected a plain text"):
        load_study(path)


@pytest.mark.parametrize(
    "file",
    [STUDY, "recipes/clusters/simulated-h200.yaml", f"recipes/qwen3-32b/vllm/{KV}/deploy.yaml",
     f"recipes/qwen3-32b/vllm/{KV}/perf.yaml"],
)  # fmt: skip
def test_objects_of_python_in_yaml_are_refused_in_one_line(checkout, tmp_path, file):
    path = checkout / file
    path.write_text(f"x: !!python/object/apply:os.system ['touch {tmp_path}/pwned']\n"
                    + path.read_text())  # fmt: skip
    told = {**os.environ, "KVAB_ROOT": str(checkout)}
    command = [sys.executable, "-m", "kvab", "run", "--configuration", KV, "--rows", "5",
               "--study", str(checkout / STUDY), "--runs", str(tmp_path / "runs")]  # fmt: skip
    ended = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert file in line and "python/object" in line
    assert not (tmp_path / "pwned").exists()


# --- what the source never does ----------------------------------------------------------------


def calls(tree):
    """Yield the dotted name and the call for every call in a source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_the_source_runs_no_text():
    found = []
    for path in sorted((ROOT / "kvab").rglob("*.py")):
        tree, where = ast.parse(path.read_text()), path.relative_to(ROOT)
        for name, call in calls(tree):
            shell = any(word.arg == "shell" for word in call.keywords)
            loads = name in ("yaml.load", "yaml.load_all") and "_UniqueKeys" not in ast.unparse(
                call
            )
            unsafe = name in ("eval", "exec", "os.system", "os.popen", "yaml.unsafe_load",
                              "yaml.full_load", "compile", "__import__")  # fmt: skip
            if shell or loads or unsafe:
                found.append(f"{where}:{call.lineno}: {ast.unparse(call):.80}")
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
                    for alias in node.names}  # fmt: skip
        if imported & {"pickle", "marshal", "shelve"} and where.name != "cache.py":
            found.append(f"{where}: {sorted(imported)}")
    assert found == []


def test_the_loader_of_yaml_is_the_safe_one():
    from kvab import declarations as declare

    assert issubclass(declare._UniqueKeys, yaml.SafeLoader)
    assert not issubclass(declare._UniqueKeys, yaml.UnsafeLoader)
    assert json.dumps(yaml.load("a: 1", Loader=declare._UniqueKeys)) == '{"a": 1}'
