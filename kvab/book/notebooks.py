"""Notebooks executed by papermill.

Input: a source notebook and its parameters. Output: the executed copy, as a page shows it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from kvab.console import tell_kernels
from kvab.errors import DependencyError, InputError, KvabError
from kvab.study import root

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
    tidy(target)
    return target


def _raise_cause(error: Any, target: Path) -> None:
    """Raise a cell's expected failure under its own exit code, any other as a dependency's."""
    import kvab.errors

    kind = getattr(kvab.errors, error.ename.rsplit(".", 1)[-1], DependencyError)
    where = "" if issubclass(kind, KvabError) and kind is not DependencyError else f" (in {target})"
    raise kind(kvab.errors.lacking(error.evalue) or f"{error.evalue}{where}") from None


def tidy(path: Path) -> None:
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
