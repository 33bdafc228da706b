"""Notebooks executed by papermill in this process, which starting a kernel would delay by seconds.

Input: a source notebook and its parameters. Output: the executed copy, as a page shows it.
"""

from __future__ import annotations

import contextlib
import io
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from IPython.core.display_trap import DisplayTrap
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from traitlets.config import Config

from kvab.errors import DependencyError, InputError, KvabError
from kvab.study import root

HERE = "here"  # the name of the engine below


class Here(Engine):
    """Executes a notebook in this process, which a kernel's start and end would delay by seconds.

    Kept of a cell are what it prints to standard output and its last value. What it prints to
    standard error goes there, and Ctrl-C reaches it as any other code.
    """

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: NotebookExecutionManager, kernel_name: str, **_: Any
    ) -> None:
        """Execute the cells in turn, to the first that fails."""
        settings = Config()
        settings.HistoryManager.enabled = False
        cells = types.ModuleType("notebook_cells")
        shell = _Shell(config=settings, user_module=cells)  # type: ignore[no-untyped-call]
        for n, cell in enumerate(nb_man.nb.cells):
            if cell.cell_type != "code":
                continue
            nb_man.cell_start(cell, n)
            try:
                cell.outputs, error = shell.outputs(cell.source)
                cell.execution_count = shell.execution_count - 1
                if isinstance(error, Exception):
                    nb_man.cell_exception(cell, n)
                    return
                if error:  # Ctrl-C
                    raise error
            finally:
                nb_man.cell_complete(cell, n)


papermill_engines.register(HERE, Here)


class _Shell(InteractiveShell):
    """IPython without a terminal."""

    def outputs(self, source: str) -> tuple[list[Any], BaseException | None]:
        """Run a cell; return what a notebook keeps of it, and the error that it raised if any."""
        shown: list[dict[str, Any]] = []
        hook = CapturingDisplayHook(self, shown)  # type: ignore[no-untyped-call]
        self.display_trap = DisplayTrap(hook=hook)  # type: ignore[no-untyped-call]
        self.failure: list[Any] = []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result = self.run_cell(source, store_history=True)  # type: ignore[no-untyped-call]
        text, count = printed.getvalue(), result.execution_count
        outputs = [new_output("stream", name="stdout", text=text)] if text else []
        outputs += [new_output("execute_result", execution_count=count, **each) for each in shown]
        return outputs + self.failure, result.error_before_exec or result.error_in_exec

    def _showtraceback(self, kind: type[BaseException], error: object, lines: list[str]) -> None:
        known = (one.__name__ for one in kind.__mro__ if one.__module__ == "kvab.errors")
        name = next(known, kind.__name__)
        self.failure = [new_output("error", ename=name, evalue=str(error), traceback=lines)]


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
                engine_name=HERE,
                kernel_name="python3",
                cwd=str(root()),
                progress_bar=False,
            )
        except papermill.PapermillExecutionError as error:
            _raise_cause(error, target)
    tidy(target)
    return target


def _raise_cause(error: Any, target: Path) -> None:
    """Raise a cell's expected failure under its own exit code, any other as a dependency's."""
    import kvab.errors

    name = error.ename.rsplit(".", 1)[-1]
    kind = getattr(kvab.errors, name, DependencyError)
    text = error.evalue if hasattr(kvab.errors, name) else f"{name}: {error.evalue}"
    where = "" if issubclass(kind, KvabError) and kind is not DependencyError else f" (in {target})"
    raise kind(kvab.errors.lacking(error.evalue) or f"{text}{where}") from None


def tidy(path: Path) -> None:
    """Remove the traces of a run from a notebook, and the parameters from its page."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
        tags = set(cell.metadata.get("tags", []))
        if tags & {"injected-parameters", "parameters"}:
            cell.metadata.tags = sorted(tags | {"remove-cell"})
    nbformat.write(notebook, path)
