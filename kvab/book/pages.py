"""The book: its pages executed side by side, and built as HTML.

Input: notebooks and run folders. Output: HTML that opens from disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from jinja2 import Template
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from kvab.book.notebooks import execute, tidy
from kvab.cache import remember, source_digest
from kvab.console import plain
from kvab.declarations import digest
from kvab.errors import DependencyError
from kvab.study import root

OUTCOME, CLUSTERS = "05_outcome", "10_clusters"
NOT_EXECUTED = (
    "```{note}\nThis page was not executed for this build: the book was made from published "
    "runs, without a cluster. `kvab run` executes it.\n```"
)


@dataclass(frozen=True)
class Book:
    """What a book is built from.

    Attributes
    ----------
    parameters : mapping
        For all notebooks; each takes those that it has.
    others : mapping of str to mapping
        Parameters of the further clusters, by name; each gets an outcome page of its own.
    title : str
        Stands where a page's heading says ``{{ title }}``.
    key : str
        Digest of the runs; a page whose notebook, parameters, runs and code did not change is
        taken from the user's cache.
    replays : bool
        False leaves the replay page unexecuted, where there is no cluster to show.
    files : callable
        Returns further files, by path in the book; called beside the pages.
    configuration : callable
        Returns lines for Sphinx's ``conf.py``; called last.
    """

    parameters: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]]
    title: str
    key: str
    replays: bool
    files: Callable[[], Mapping[str, bytes]]
    configuration: Callable[[], str]


def build(out: Path, book: Book) -> Path:
    """Execute the pages' notebooks side by side, build the book and return its index.html.

    ``out`` gets ``source/`` (what was built) and ``html/``.

    Raises
    ------
    DependencyError
        If a page fails or the book has a warning; the message names it.
    """
    # Threads that import these at once can see them half made, as matplotlib did of IPython.
    import IPython  # noqa: F401
    import papermill  # noqa: F401

    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root() / "book", source, ignore=shutil.ignore_patterns("_build", "published"))
    sources = sorted((root() / "notebooks").glob("*.ipynb"))
    jobs = [(path, source / path.name, book.parameters) for path in sources]
    outcome = next(path for path in sources if path.stem == OUTCOME)
    further = {f"{OUTCOME}-{re.sub('[^a-z0-9]+', '-', name).strip('-')}": given
               for name, given in book.others.items()}  # fmt: skip
    jobs += [(outcome, source / f"{name}.ipynb", given) for name, given in further.items()]
    _add_pages(source / "_toc.yml", list(further))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pages"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(1 + min(4, 2 * (os.cpu_count() or 1))) as pool,
    ):
        task = bar.add_task("executing", total=len(jobs))
        beside = pool.submit(_add_files, source, book)
        pending = [pool.submit(_page, *job, book) for job in jobs]
        for future in as_completed(pending):
            future.result()
            bar.advance(task)
        beside.result()
    index = _sphinx(source, out, book.configuration())
    for name in further:  # what can be launched is the notebook that they were made from
        page = index.with_name(f"{name}.html")
        text = page.read_text(encoding="utf-8").replace(f"/{name}.ipynb", f"/{OUTCOME}.ipynb", 1)
        page.write_text(text, encoding="utf-8")
    return index


def _add_files(source: Path, book: Book) -> None:
    for name, content in book.files().items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)


def _add_pages(toc: Path, names: list[str]) -> None:
    """Put pages below the one that shows all clusters."""
    document = yaml.safe_load(toc.read_text(encoding="utf-8"))
    chapters = [chapter for part in document["parts"] for chapter in part["chapters"]]
    overview = next(chapter for chapter in chapters if chapter["file"] == CLUSTERS)
    if names:
        overview["sections"] = [{"file": name} for name in names]
    toc.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _page(path: Path, target: Path, parameters: Mapping[str, Any], book: Book) -> None:
    notebook = nbformat.read(path, as_version=4)
    heading = notebook.cells[0]
    told = {name: plain(value) for name, value in {**parameters, "title": book.title}.items()}
    heading.source = Template(heading.source).render(told)
    if path.name == "03_replay.ipynb" and not book.replays:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_EXECUTED))
        nbformat.write(notebook, target)
        tidy(target)
        return
    declared = next(
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    names = {line.split(":")[0].strip() for line in declared.splitlines()}
    given = {name: value for name, value in parameters.items() if name in names}
    lock = (root() / "requirements.lock").read_text(encoding="utf-8")
    inputs = [nbformat.writes(notebook), given, book.key, source_digest(), lock]

    def executed() -> bytes:
        nbformat.write(notebook, target)
        return execute(target, target, given).read_bytes()

    target.write_bytes(remember(digest(inputs), path.stem, executed))


def _sphinx(source: Path, out: Path, configuration: str) -> Path:
    book = Path(sys.executable).with_name("jupyter-book")
    _call([str(book), "config", "sphinx", str(source)], source)
    with (source / "conf.py").open("a", encoding="utf-8") as file:
        file.write(configuration)
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
