"""Source notebooks are thin: they call, show and explain."""

import ast
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 15


def code_cells(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_every_notebook_but_that_of_a_run_stands_in_the_contents():
    contents = (ROOT / "book" / "_toc.yml").read_text()
    assert [path.stem for path in NOTEBOOKS if path.stem not in contents] == ["03_replay"]
    assert contents.count("- file:") + 1 <= 12  # with the index


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_without_outputs_and_counters(path):
    cells = code_cells(path)
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_one_cell_of_typed_and_explained_parameters(path):
    (cell,) = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert cell.id == "1"  # where the book's build looks for them
    for line in cell.source.splitlines():
        assert ":" in line.split("=")[0], f"no type: {line}"
        assert "  # " in line, f"no comment: {line}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_define_nothing(path):
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= LONGEST_CELL
        kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try, ast.Lambda)
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_a_title_and_holds_no_typed_result(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    prose = " ".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert " ms" not in prose
    assert "%" not in prose
