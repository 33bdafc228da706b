"""The whole study in one call: plan, replay what is missing, judge, build the book.

Input: a study and a cluster. Output: the headline and the path of the built HTML.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import nbformat
import yaml
from jinja2 import Template
from plotly.offline import get_plotlyjs

import kvab
from kvab.book.notebooks import execute
from kvab.book.publish import unpacked
from kvab.cache import remember, source_digest
from kvab.clusters.base import Progress
from kvab.console import counted, plain
from kvab.declarations import digest
from kvab.errors import DependencyError, GateError, InputError
from kvab.pages.bounds import PLOTLY
from kvab.pages.evidence import Evidence, load_evidence
from kvab.pages.gate import Gate, gate
from kvab.pages.index import short_answer, social_card
from kvab.pages.model_check import load_check
from kvab.pages.outcome import headline
from kvab.pages.reproduce import Clusters, load_clusters
from kvab.pages.theme import alone
from kvab.pages.workloads import load_workloads
from kvab.runs import folder as runs
from kvab.runs.campaign import Scope, replay_study, side_by_side
from kvab.runs.hardware import load_hardware
from kvab.runs.importing import is_imported
from kvab.runs.sensitivity import load_sensitivity
from kvab.runs.sweep import load_sweep
from kvab.runs.twins import make_twins
from kvab.study import load_study, root

OUTCOME, CLUSTERS, REPLAY = "05_outcome", "reproduce", "03_replay.ipynb"
SOURCE = ":::{container} kvab-source\nThe code of this page is its notebook: {download}`%s`.\n:::"
FIGURE = (
    '(<svg class="kvab-wide".*?</svg>)(.*?)<a class="kvab-data" '
    'download="([^"]+).csv" href="data:text/csv;base64,([^"]*)">Data .CSV.</a>'
)
CARD, REQUESTS = "_static/social-card.png", "data/requests.parquet"


def report(
    study: Path,
    cluster: str,
    rows: int | None = None,
    repeats: int | None = None,
    trace: Path | None = None,
    out: Path = Path("book/_build"),
    runs: Path = Path("runs"),
    published: Path | None = None,
    on: str | None = None,
    take_over: bool = False,
) -> tuple[str, Path]:
    """Make the book of one cluster and return its headline and index.html.

    Parameters
    ----------
    study : Path
        The study file.
    cluster : str
        Name of the cluster profile.
    rows : int, optional
        Only the first rows of the trace.
    repeats : int, optional
        Only the first repeats of each configuration.
    trace : Path, optional
        Another trace, on purpose.
    out : Path
        Where the book is built; relative paths count from the checkout.
    runs : Path
        The folder of runs.
    published : Path, optional
        Build from these runs instead, without cluster, simulator or trace.
    on : str, optional
        A Kubernetes profile that replays what is missing, instead of this machine.
    take_over : bool
        Take runs from clients of somebody else that are alive.

    Raises
    ------
    GateError
        If the runs do not support a verdict; the book is built all the same and says why.
    """
    checkout = root()
    path, folder = checkout / study, checkout / (published or runs)
    declared = load_study(path)
    scope = None
    if published is None and not is_imported(declared, cluster, folder):
        declared.seed(repeats or 1)
        scope = Scope.of(declared, cluster, rows, trace, folder, on, any_kind=True)
        replay_study(scope, repeats, take_over)
    evidence = load_evidence(declared, cluster, folder)
    for name in (declared.baseline, declared.comparison):
        evidence.tables(name)  # no page can do without these two
    if scope and evidence.manifest.kind == "live":
        make_twins(evidence.runs, declared, scope.trace, folder / declared.name / cluster)
    judged = gate(evidence)
    index = build(path, evidence, judged, checkout / out)
    if not judged.green:
        raise GateError(
            f"the validity gate is red, {counted(len(judged.reasons), 'check')} failed; first: "
            f"{judged.reasons[0]}; the book says the rest: {index}"
        )
    return headline(evidence, judged), index


def report_bundle(path: Path, cluster: str | None, out: Path) -> tuple[str, Path]:
    """Make the book of a bundle, of the named cluster or of the only one in it.

    Raises
    ------
    InputError
        If it is no whole bundle, or holds several clusters and not the named one.
    GateError
        As `report`.
    """
    with unpacked(path) as (folder, contents):
        held = contents.clusters
        chosen = cluster or (held[0] if len(held) == 1 else "simulated-h200")
        if chosen not in held:
            raise InputError(
                f"{path}: holds {', '.join(held)}, not {chosen}; name one of them with --cluster"
            )
        return report(folder / contents.study, chosen, out=out, published=folder / "runs")


def build(study: Path, evidence: Evidence, judged: Gate, out: Path) -> Path:
    """Execute the pages' notebooks side by side, build the book and return its index.html.

    ``out`` gets ``source/`` (what was built) and ``html/``.

    Raises
    ------
    DependencyError
        If a page fails or the book has a warning; the message names it.
    """
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root() / "book", source, ignore=shutil.ignore_patterns("_build", "published"))
    clusters = load_clusters(evidence.study, evidence.folder)
    for line in clusters.left_out.values():
        print(line, file=sys.stderr)
    key = _key(evidence, clusters)
    pages = _pages(study, evidence, clusters, key, source)
    further = [page.target.stem for page in pages if page.target.stem != page.notebook.stem]
    _add_pages(source / "_toc.yml", further)
    side_by_side(pages, _execute, "page", "left")
    _add_files(source, evidence, judged, key)
    index = _sphinx(source, out, evidence, judged)
    (index.parent / PLOTLY).write_text(get_plotlyjs(), encoding="utf-8")
    for page in index.parent.glob("*.html"):
        _edit(page, FIGURE, partial(_beside, page))
    for name in further:  # what can be launched is the notebook that they were made from
        _edit(index.with_name(f"{name}.html"), rf"notebooks/{name}\.", f"notebooks/{OUTCOME}.")
    if url := os.environ.get("KVAB_BOOK_URL", "").rstrip("/"):  # it is shown at any depth
        _edit(index.with_name("404.html"), r'\b(href|src|action)="(?!#|[a-z]+:)', rf'\1="{url}/')
    return index


def _key(evidence: Evidence, clusters: Clusters) -> str:
    """Return the digest of all that the book shows, and of the code.

    A page whose notebook, parameters and this did not change is taken from the user's cache.
    """
    where = evidence.study, evidence.cluster, evidence.folder
    swept = load_sweep(*where), load_sensitivity(*where), load_hardware(evidence.folder)
    beside = load_workloads(*where).places.values()
    every = evidence, evidence.made_hours, *swept, load_check(*where), *clusters.places.values()
    shown = [part and part.key for part in (*every, *beside)]
    lock = (root() / "requirements.lock").read_text(encoding="utf-8")
    return digest([shown, source_digest(), lock])


def _pages(
    study: Path, evidence: Evidence, clusters: Clusters, key: str, source: Path
) -> list[Page]:
    """Return every page; of a further cluster that replayed the whole trace, its outcome."""
    notebooks, title = root() / "notebooks", evidence.study.title

    def page(notebook: str, name: str, of: Evidence) -> Page:
        given = {"study": str(study), "cluster": of.cluster, "runs": str(of.folder)}
        return Page(notebooks / f"{notebook}.ipynb", source / f"{name}.ipynb", given, title, key)

    names = sorted(path.stem for path in notebooks.glob("*.ipynb") if path.name != REPLAY)
    return [page(name, name, evidence) for name in names] + [
        page(OUTCOME, f"{OUTCOME}-{re.sub('[^a-z0-9]+', '-', name).strip('-')}", other)
        for name, other in clusters.places.items()
        if (other.cluster, other.folder) != (evidence.cluster, evidence.folder)
        and other.manifest.trace.rows == other.manifest.trace.total_rows
    ]


def _beside(page: Path, figure: re.Match[str]) -> str:
    """Return a figure whose table and picture are files beside its page, each at an address."""
    svg, between, key, table = figure.groups()
    folder = page.parent / "data" / page.stem
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key}.csv").write_bytes(base64.b64decode(table))
    (folder / f"{key}.svg").write_text(alone(svg), encoding="utf-8")
    csv, picture = (f'<a class="kvab-data" download href="data/{page.stem}/{key}.{kind}">'
                    for kind in ("csv", "svg"))  # fmt: skip
    return f"{svg}{between}{csv}Data (CSV)</a> {picture}Picture (SVG)</a>"


def _edit(page: Path, pattern: str, instead: str | Callable[[re.Match[str]], str]) -> None:
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(pattern, instead, text, flags=re.DOTALL), encoding="utf-8")


def _add_files(source: Path, evidence: Evidence, judged: Gate, key: str) -> None:
    """Add the table of all requests, the card, and the notebook that makes a run, to download."""

    def made() -> dict[str, bytes]:
        table = runs.parquet_bytes(evidence.requests, level=runs.QUICK)
        return {REQUESTS: table, CARD: social_card(evidence, judged)}

    for name, content in remember(key, "publication", made).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    shutil.copy(root() / "notebooks" / REPLAY, (source / REQUESTS).parent)


def _add_pages(toc: Path, names: list[str]) -> None:
    """Put pages below the one that shows all clusters."""
    document = yaml.safe_load(toc.read_text(encoding="utf-8"))
    chapters = [chapter for part in document["parts"] for chapter in part["chapters"]]
    overview = next(chapter for chapter in chapters if chapter["file"] == CLUSTERS)
    if names:
        overview["sections"] = [{"file": name} for name in names]
    toc.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


@dataclass(frozen=True)
class Page:
    """A page to write: from which notebook, where, with what; ``key`` is that of its book."""

    notebook: Path
    target: Path
    parameters: Mapping[str, object]
    title: str
    key: str
    rows: ClassVar = 1  # how much of the bar it is


def _execute(page: Page, _on_progress: Progress) -> None:
    """Write a page: executed, or taken from the cache."""
    notebook = nbformat.read(page.notebook, as_version=4)
    heading, declared = notebook.cells[:2]
    texts = {**page.parameters, "title": page.title}
    heading.source = Template(heading.source).render({k: plain(v) for k, v in texts.items()})
    title, _, about = re.sub(r"[\\`]", "", heading.source).partition("\n")
    meta = {"property=og:title": title.removeprefix("# ")}
    if about.strip():
        described = about.strip().split("\n\n")[0]
        meta |= dict.fromkeys(("description", "property=og:description"), described)
    notebook.metadata["myst"] = {"html_meta": meta}
    # An id of its own would be another one each time, and no page would come from the cache.
    source = SOURCE % page.target.name
    notebook.cells.append(nbformat.v4.new_markdown_cell(source, id="source"))
    names = {line.split(":")[0].strip() for line in declared.source.splitlines()}
    given = {name: value for name, value in page.parameters.items() if name in names}

    def executed() -> bytes:
        nbformat.write(notebook, page.target)
        return execute(page.target, page.target, given).read_bytes()

    key = digest([nbformat.writes(notebook), given, page.key])
    page.target.write_bytes(remember(key, page.notebook.stem, executed))


def _sphinx(source: Path, out: Path, evidence: Evidence, judged: Gate) -> Path:
    program = Path(sys.executable).with_name("jupyter-book")
    _call([str(program), "config", "sphinx", str(source)], source)
    with (source / "conf.py").open("a", encoding="utf-8") as file:
        file.write(sphinx_settings(evidence, judged))
    options = "-b html -W --keep-going -q".split()
    folders = ["-d", str(out / "doctrees"), str(source), str(out / "html")]
    _call([sys.executable, "-m", "sphinx", *options, *folders], source)
    return out / "html" / "index.html"


def _call(command: list[str], source: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise DependencyError(f"the book did not build from {source}: {'; '.join(lines[-8:])}")


def sphinx_settings(evidence: Evidence, judged: Gate) -> str:
    """Return lines for ``conf.py``: what the book says of itself, and where it can be launched.

    ``KVAB_BOOK_URL`` is the address at which the book is published, ``KVAB_REPOSITORY`` that of its
    source; without them the card's address is relative and nothing offers to launch.
    """
    answer = short_answer(evidence, judged)
    url, repository = (os.environ.get(f"KVAB_{name}", "") for name in ("BOOK_URL", "REPOSITORY"))
    meta = {
        "description": answer,
        "property=og:title": evidence.study.title,
        "property=og:description": answer,
        "property=og:type": "article",
        "property=og:image": f"{url.rstrip('/')}/{CARD}" if url else CARD,
        "name=twitter:card": "summary_large_image",
    }
    launch = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
    source = {"repository_url": repository, "use_repository_button": True,
              "repository_branch": "main", "path_to_docs": "notebooks",
              "launch_buttons": launch}  # fmt: skip
    made = f"kvab {kvab.__version__}, runs of {evidence.manifest.end:%Y-%m-%d}."
    footer = f'<p>{made} <a href="index.html#data-code-and-citation">How to cite</a></p>'
    lines = [
        f"html_baseurl = {url!r}",
        f"myst_html_meta = {meta!r}",
        f"html_theme_options['extra_footer'] = {footer!r}",
        f"html_theme_options.update({source if repository else {'launch_buttons': {}}!r})",
        "extensions.remove('sphinx_thebe')  # it would load scripts from the network",
    ]
    return "\n".join(["", *lines, ""])
