"""Notebooks executed by papermill, and the book built from them.

Input: notebooks and run folders. Output: HTML that opens from disk.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
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

from kvab.declare import digest
from kvab.errors import DependencyError, InputError, KvabError
from kvab.results import remember, source_digest
from kvab.study import root
from kvab.watching import tell_kernels

OUTCOME, CLUSTERS = "05_outcome", "10_clusters"
NOT_EXECUTED = (
    "```{note}\nThis page was not executed for this build: the book was made from published "
    "runs, without a cluster. `kvab run` executes it.\n```"
)

# A kernel that ends while it still answers logs a traceback of its own sockets.
QUIET = "import logging; logging.getLogger('tornado.general').setLevel('CRITICAL')"


def execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook with papermill and write the executed copy.

    Parameters
    ----------
    source, target : Path
        The source notebook, which is not changed, and the executed one.
    parameters : mapping
        Values for names of its parameters cell.

    Raises
    ------
    InputError
        If the notebook has no parameter of a given name.
    DependencyError
        If a cell failed; the partly executed notebook is kept and named.
    """
    import papermill

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # papermill's own pydantic and datetime deprecations
        known = papermill.inspect_notebook(str(source))
        unknown = [name for name in parameters if name not in known]
        if unknown:
            raise InputError(
                f"{source}: no parameter named {', '.join(unknown)}; it has {', '.join(known)}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            papermill.execute_notebook(
                str(source),
                str(target),
                parameters=dict(parameters),
                kernel_name="python3",
                cwd=str(root()),
                progress_bar=False,
                extra_arguments=["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={QUIET}"],
                stderr_file=sys.stderr,  # progress of long steps; not part of the page
            )
        except papermill.PapermillExecutionError as error:
            _raise_cause(error, target)
    _tidy_notebook(target)
    return target


def _raise_cause(error: Any, target: Path) -> None:
    """Raise a cell's expected failure under its own exit code, any other as a dependency's."""
    import kvab.errors

    kind = getattr(kvab.errors, error.ename.rsplit(".", 1)[-1], DependencyError)
    where = "" if issubclass(kind, KvabError) and kind is not DependencyError else f" (in {target})"
    raise kind(f"{error.evalue}{where}") from None


def _tidy_notebook(path: Path) -> None:
    """Collapse the injected parameters, or remove them where the source removes its own."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    removed = False
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell.metadata.tags = [*tags, "remove-cell" if removed else "hide-input"]
        elif "parameters" in tags:
            removed = "remove-cell" in tags
            cell.metadata.tags = sorted({*tags, "remove-cell"})
    nbformat.write(notebook, path)


def run_replay_notebook(parameters: Mapping[str, Any], target: Path) -> Path:
    """Execute notebooks/03_replay.ipynb for one run and return the executed notebook."""
    tell_kernels()
    given = {name: value for name, value in parameters.items() if value is not None}
    return execute(root() / "notebooks" / "03_replay.ipynb", target, given)


def build(
    out: Path,
    parameters: Mapping[str, Any],
    key: str,
    title: str,
    others: Mapping[str, Mapping[str, Any]],
    *,
    replays: bool = True,
) -> Path:
    """Execute the pages' notebooks side by side, build the book and return its index.html.

    Parameters
    ----------
    out : Path
        Gets ``source/`` (what was built) and ``html/``.
    parameters : mapping
        For all notebooks; each takes those that it has.
    key : str
        Digest of the runs; a page whose notebook, parameters, runs and code did not change is
        taken from the user's cache.
    title : str
        Stands where a page's heading says ``{{ title }}``.
    others : mapping of str to mapping
        Parameters of the further clusters, by name; each gets an outcome page of its own.
    replays : bool
        False leaves the replay page unexecuted, where there is no cluster to show.

    Raises
    ------
    DependencyError
        If a page fails or the book has a warning; the message names it.
    """
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root() / "book", source, ignore=shutil.ignore_patterns("_build", "published"))
    sources = sorted((root() / "notebooks").glob("*.ipynb"))
    jobs = [(path, source / path.name, parameters) for path in sources]
    names = {f"{OUTCOME}-{re.sub('[^a-z0-9]+', '-', name).strip('-')}": name for name in others}
    outcome = next(path for path in sources if path.stem == OUTCOME)
    jobs += [(outcome, source / f"{file}.ipynb", others[name]) for file, name in names.items()]
    _add_pages(source / "_toc.yml", list(names))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pages"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(min(4, 2 * (os.cpu_count() or 1))) as pool,
    ):
        task = bar.add_task("executing", total=len(jobs))
        pending = [pool.submit(_page, *job, key, title, replays) for job in jobs]
        for future in as_completed(pending):
            future.result()
            bar.advance(task)
    return _sphinx(source, out)


def _add_pages(toc: Path, names: list[str]) -> None:
    """Put pages below the one that shows all clusters."""
    document = yaml.safe_load(toc.read_text(encoding="utf-8"))
    chapters = [chapter for part in document["parts"] for chapter in part["chapters"]]
    overview = next(chapter for chapter in chapters if chapter["file"] == CLUSTERS)
    if names:
        overview["sections"] = [{"file": name} for name in names]
    toc.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def _page(
    path: Path, target: Path, parameters: Mapping[str, Any], key: str, title: str, replays: bool
) -> None:
    notebook = nbformat.read(path, as_version=4)
    heading = notebook.cells[0]
    heading.source = Template(heading.source).render({**parameters, "title": title})
    if path.name == "03_replay.ipynb" and not replays:
        notebook.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_EXECUTED))
        nbformat.write(notebook, target)
        _tidy_notebook(target)
        return
    declared = next(
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    names = {line.split(":")[0].strip() for line in declared.splitlines()}
    given = {name: value for name, value in parameters.items() if name in names}
    lock = (root() / "requirements.lock").read_text(encoding="utf-8")
    inputs = [nbformat.writes(notebook), given, key, source_digest(), lock]

    def executed() -> bytes:
        nbformat.write(notebook, target)
        return execute(target, target, given).read_bytes()

    target.write_bytes(remember(digest(inputs), path.stem, executed))


def _sphinx(source: Path, out: Path) -> Path:
    book = Path(sys.executable).with_name("jupyter-book")
    _call([str(book), "config", "sphinx", str(source)], source)
    with (source / "conf.py").open("a", encoding="utf-8") as file:
        file.write('extensions.remove("sphinx_thebe")  # it would load scripts from the network\n')
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
