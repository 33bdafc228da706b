"""The rules of the house, where a program can see them: sizes, directions, tests that test."""

import ast
import doctest
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "kvab").rglob("*.py"))
FUNCTION_LINES = 45  # functions aim at 40


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def functions(tree):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_functions_are_small():
    large = []
    for path in MODULES:
        for node in functions(ast.parse(path.read_text())):
            said = ast.get_docstring(node, clean=False) or ""
            count = node.end_lineno - node.lineno + 1 - len(said.splitlines())
            if count > FUNCTION_LINES:
                large.append(f"{path}: {node.name}: {count} lines")
    assert large == []


def imported(path):
    """Modules of kvab that a module imports anywhere: in functions too, and for types alone."""
    names, found = {name_of(each) for each in MODULES}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an import by its full name"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & names | ({node.module} if below - names else set())
    return found & names - {name_of(path)}


def circles(arrows):
    """The sets of names that reach each other along arrows."""

    def reached(name):
        found, open_ = set(), [name]
        while open_:
            new = arrows.get(open_.pop(), set()) - found
            found |= new
            open_ += new
        return found

    reach = {name: reached(name) for name in arrows}
    return {
        frozenset(other for other in found if name in reach.get(other, ()))
        for name, found in reach.items() if name in found
    }  # fmt: skip


def among(circle, arrows):
    return sorted(f"{name} -> {to}" for name in circle for to in arrows[name] & circle)


BASE = {"errors", "declarations", "console", "cache"}
BELOW = {
    "trace": {},
    "study": {"trace"},
    "requests": {"trace", "study"},
    "stats": {"requests"},
    "clusters": {"trace", "study", "requests"},
    "runs": {"trace", "study", "requests", "clusters", "stats"},
    "pages": {"trace", "study", "requests", "clusters", "stats", "runs"},
    "book": {"trace", "study", "requests", "clusters", "stats", "runs", "pages"},
    "cli": {"trace", "study", "requests", "clusters", "stats", "runs", "pages", "book"},
}
"""Each room, and the rooms that it may import beside the base files."""


def room_of(name):
    return name.split(".")[1] if "." in name else "kvab"


def test_modules_import_in_one_direction():
    """No circle, whatever it hides behind, and no room imports one above it."""
    modules = {name_of(path): imported(path) for path in MODULES}
    assert [among(circle, modules) for circle in circles(modules)] == []
    wrong = [
        f"{name} -> {to}"
        for name, found in modules.items() if room_of(name) in BELOW
        for to in sorted(found)
        if room_of(to) not in {*BASE, *BELOW[room_of(name)], room_of(name), "kvab"}
    ]  # fmt: skip
    assert wrong == []
    above = {to for name in modules if room_of(name) in BASE for to in modules[name]}
    assert {room_of(name) for name in above} <= {*BASE, "kvab"}
    assert {room_of(name) for name in modules} == {*BASE, *BELOW, "kvab", "__main__"}
    assert not any(re.search(r"util|helper|common|misc|manager", name) for name in modules)


def test_a_circle_is_found():
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(arrows) == {frozenset("bc"), frozenset("e")}


def test_every_public_name_says_what_it_is_for():
    silent = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        public = [tree, *(node for node in tree.body
                          if isinstance(node, ast.ClassDef | ast.FunctionDef)
                          and not node.name.startswith("_"))]  # fmt: skip
        silent += [
            f"{path}: {getattr(node, 'name', '')}" for node in public if not ast.get_docstring(node)
        ]
    assert silent == []


def test_examples_in_docstrings_hold():
    tried = 0
    for path in MODULES:
        if ">>>" in path.read_text():
            found = doctest.testmod(importlib.import_module(name_of(path)))
            assert found.failed == 0, path
            tried += found.attempted
    assert tried > 0


def test_every_test_can_fail():
    """A test asserts, expects an error, or calls a helper of its own file that does."""
    idle = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        checks = {
            node.name
            for node in functions(tree)
            if re.search(r"\bassert|raises\(|\.fail\(", ast.unparse(node))
        }
        for node in functions(tree):
            calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
            called = {each.id for each in calls if isinstance(each, ast.Name)}
            if node.name.startswith("test_") and node.name not in checks and not called & checks:
                idle.append(f"{path}: {node.name}")
    assert idle == []
