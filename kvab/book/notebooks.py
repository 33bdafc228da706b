"""Notebooks executed in this process, which starting a kernel would delay by seconds.

Input: a source notebook and its parameters, which papermill puts in. Output: the executed copy, as
a page shows it.
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
from traitlets.config import Config

from kvab.errors import DependencyError, InputError, KvabError, lacking
from kvab.study import root

NO_HISTORY = Config({"HistoryManager": {"enabled": False}})


class _Shell(InteractiveShell):
    """IPython without a terminal.

    Kept of a cell are what it prints to standard output and its last value. What it prints to
    standard error goes there, and Ctrl-C reaches it as any other code.
    """

    def run(self, cell: Any) -> BaseException | None:
        """Run a cell and keep what it gives in it; return the error that it raised, if any."""
        shown: list[dict[str, Any]] = []
        hook = CapturingDisplayHook(self, shown)  # type: ignore[no-untyped-call]
        self.display_trap = DisplayTrap(hook=hook)  # type: ignore[no-untyped-call]
        self.failure: list[Any] = []
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            result = self.run_cell(cell.source, store_history=True)  # type: ignore[no-untyped-call]
        text, count = printed.getvalue(), result.execution_count
        outputs = [new_output("stream", name="stdout", text=text)] if text else []
        outputs += [new_output("execute_result", execution_count=count, **each) for each in shown]
        cell.outputs, cell.execution_count = outputs + self.failure, count
        error: BaseException | None = result.error_before_exec or result.error_in_exec
        return error

    def _showtraceback(self, kind: type[BaseException], error: object, lines: list[str]) -> None:
        text = str(error)
        self.failure = [new_output("error", ename=kind.__name__, evalue=text, traceback=lines)]


def execute(source: Path, target: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook, to the first cell that fails, and write the executed copy.

    Parameters
    ----------
    source, target : Path
        The source notebook, which is not changed, and the executed one.
    parameters : mapping
        Values for names of its parameters cell.

    Raises
    ------
    KvabError
        What a cell raised of these.
    InputError
        If the notebook has no parameter of a given name.
    DependencyError
        If a cell failed in another way; the partly executed notebook is kept and named.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # papermill's own pydantic and datetime deprecations
        notebook = _prepared(source, parameters)
        shell = _Shell(config=NO_HISTORY, user_module=types.ModuleType("notebook_cells"))  # type: ignore[no-untyped-call]
        cells = (cell for cell in notebook.cells if cell.cell_type == "code")
        with contextlib.chdir(root()):
            error = next(filter(None, map(shell.run, cells)), None)
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    if error is None:
        return target
    if not isinstance(error, Exception) or (
        isinstance(error, KvabError) and not isinstance(error, DependencyError)
    ):
        raise error
    text = f"{error}" if isinstance(error, KvabError) else f"{type(error).__name__}: {error}"
    raise DependencyError(lacking(str(error)) or f"{text} (in {target})") from None


def _prepared(source: Path, parameters: Mapping[str, Any]) -> Any:
    """Return a notebook with its parameters put in, which its page does not show."""
    known = papermill.inspect_notebook(str(source))
    if unknown := [name for name in parameters if name not in known]:
        raise InputError(
            f"{source}: no parameter named {', '.join(unknown)}; it has {', '.join(known)}"
        )
    notebook = papermill.execute_notebook(str(source), None, dict(parameters), prepare_only=True)
    for of in (notebook, *notebook.cells):
        of.metadata.pop("papermill", None)
        tags = {*of.metadata.get("tags", [])}
        if tags & {"injected-parameters", "parameters"}:
            of.metadata.tags = sorted(tags | {"remove-cell"})
    return notebook
