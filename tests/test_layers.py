"""The plan of the package: who imports whom, what is named how, how long a module may be."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import grimp
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mpipar"
TESTS = ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]

LONGEST_MODULE = 480
LONGEST_FUNCTION = 40
LONGEST_KERNEL = 60


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and length of every function; its docstring and decorators are not counted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            first = node.body[0]
            if ast.get_docstring(node) is not None and len(node.body) > 1:
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, lines


def test_imports_keep_to_the_layers():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_import_goes_in_a_circle():
    """Neither do the imports that are there for types alone."""
    graph = grimp.build_graph("mpipar")
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(list(graphlib.TopologicalSorter(imports).static_order())) == len(MODULES)


def test_one_name_for_one_thing():
    """No file name and no name of a type stands twice; an underscore does not make another one."""
    places = defaultdict(list)
    for path in MODULES:
        if path.name != "__init__.py":
            places[path.name].append(str(path.relative_to(ROOT)))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.stmt) and (name := defined_type(node)):
                places[name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def defined_type(node: ast.AST) -> str:
    """The name, without underscores, of a class or of an alias of a type; else nothing."""
    if isinstance(node, ast.ClassDef):
        return node.name.strip("_")
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return ast.unparse(node.target).strip("_")
    return ""


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_module_is_short_and_opens_with_a_sentence(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_functions_are_short(path):
    longest = LONGEST_KERNEL if "kernels" in path.parts else LONGEST_FUNCTION
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [(name, n) for name, n in functions(tree) if n > longest] == []


def test_package_parses_as_the_oldest_python_it_promises():
    for path in MODULES:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


HELPER_OF_A_TEST = re.compile(r"from tests\.[\w.]*\btest_\w+ import|import tests\.[\w.]*\btest_\w+")


def test_no_test_imports_from_another():
    """What several tests need has a home in tests/support, or beside them under a plain name."""
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in TESTS.rglob("*.py")}
    assert [name for name, text in texts.items() if HELPER_OF_A_TEST.search(text)] == []


def test_serial_start_loads_no_mpi():
    code = "import sys, mpipar.cli.main; sys.exit(any(m.startswith('mpi4py') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
