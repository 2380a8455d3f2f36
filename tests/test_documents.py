"""The documents: as wide as a terminal, and true where a program can tell.

A file, a link, a command, a variable, a message that a document names is there. So a move or a
renaming cannot leave a document behind.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from mpipar.cli.main import COMMANDS
from mpipar.cli.parser import command_parser
from mpipar.runtime.machines.messages import ToMaster, ToWorker
from mpipar.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mpipar"
FOLDERS = ("docs", "jobs", "mpipar", "slurm", "tests")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
PAGES = [path for path in DOCUMENTS if path.is_relative_to(PACKAGE)]
"""What developers read: a bare name of a file is one of ours there, not a user's."""

COLUMNS = 100
ROW_COLUMNS = 160  # a row of a table cannot be broken
ARCHITECTURE_LINES = 130
PLACEHOLDER = "NAME"
FOREIGN_CALLS = {"image", "map", "exp"}  # formulas
PAGE_WORDS = 1500  # ten minutes in a foreign language

FILE = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*\.(?:py|md|sh|sbatch|sge)\b")
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:python -m |^ *)mpipar ([a-z]+)\b(.*)")
MODULE = re.compile(r"python -m ((?:mpipar|tests)[\w.]*)")
MEMBER = re.compile(r"`([A-Z][a-z]\w+)\.(\w+)\b[^`\n]*`")
CALL = re.compile(r"`([a-z]\w+)\([^`\n]*\)`")
VARIABLE = re.compile(r"\bMPIPAR_[A-Z_]+\b")
PLACE = re.compile(r"`(\w+(?:/\w+)+\.py)::(\w+)`(?: =\s+(\d+(?:\.\d+)?))?")
"""`folder/file.py::name`, and the value of a constant."""

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)


@each_document
def test_lines_fit(path: Path) -> None:
    wide = [
        (number, len(line))
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if len(line) > (ROW_COLUMNS if line.startswith("|") else COLUMNS) and "://" not in line
    ]
    assert wide == []


@each_document
def test_files_and_folders_that_are_named_exist(path: Path) -> None:
    text = text_of(path)
    named = [*FILE.findall(re.sub(r"\S*://\S*", "", text)), *FOLDER.findall(text)]
    assert [name for name in named if not is_there(name, path)] == []


def is_there(name: str, document: Path) -> bool:
    """Whether a name leads to something, from any of the places that documents count from.

    A name that can be a user's (squares.py, segments/) is not ours to look for; nor is one that
    the reader is to choose.
    """
    if PLACEHOLDER in name:
        return True
    bases = (document.parent, ROOT, PACKAGE, PACKAGE / "runtime")
    first, slash, _ = name.partition("/")
    if not slash and document not in PAGES:
        return True
    if name.endswith("/") and not any((base / first).is_dir() for base in bases):
        return True
    places = [base for base in bases if not slash or (base / first).exists()]
    if not slash:
        folders = (document.parent, PACKAGE, ROOT / "tests")
        return (ROOT / name).exists() or any(list(folder.rglob(name)) for folder in folders)
    return any(list(base.glob(name.rstrip("/"))) or (base / name).exists() for base in places)


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    lost = []
    for target in LINK.findall(text_of(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(target)
    assert lost == []


def anchors(path: Path) -> set[str]:
    """The names of a document's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_commands_and_their_options_exist(path: Path) -> None:
    lost = []
    for name, words in commands_in(path):
        if name not in COMMANDS:
            lost.append(name)
            continue
        known = command_parser(COMMANDS[name].settings, "").format_help()
        options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        lost += [f"{name} {word}" for word in options if not re.search(rf"{word}\b", known)]
    assert lost == []


def commands_in(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of mpipar in an example: its name, and its words up to the next command."""
    for line in re.sub(r"\\\n", " ", text_of(path)).splitlines():
        match = COMMAND.search(line) if line.startswith("    ") else None
        if match:
            words = shlex.split(re.sub(r"[;&|].*", "", match[2]), comments=True)
            # exec: what follows the script is the script's
            script = next((n for n, word in enumerate(words) if word.endswith(".py")), len(words))
            yield match[1], words[:script]


def test_readme_names_every_command() -> None:
    named = set(re.findall(r"mpipar ([a-z]+)\b", text_of(ROOT / "README.md")))
    assert set(COMMANDS) <= named


@each_document
def test_modules_to_be_run_exist(path: Path) -> None:
    modules = MODULE.findall(re.sub(r"\n *", " ", text_of(path)))
    lost = [name for name in modules if importlib.util.find_spec(name.rstrip(".")) is None]
    assert lost == []


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(PACKAGE)) for path in PAGES])
def test_members_and_functions_that_are_named_exist(path: Path) -> None:
    """`Pool.run`: some class of that name has it; `check()`: some module has it."""
    code = [module.read_text(encoding="utf-8") for module in PACKAGE.rglob("*.py")]
    text = text_of(path)
    lost = [
        f"{kind}.{member}"
        for kind, member in MEMBER.findall(text)
        if not any(
            re.search(rf"^class {kind}\b", module, re.MULTILINE)
            and re.search(rf"(def |self\.|^    ){member}\b", module, re.MULTILINE)
            for module in code
        )
    ]
    names = [name for name in CALL.findall(text) if name not in FOREIGN_CALLS]
    lost += [name for name in names if not any(f"def {name}(" in module for module in code)]
    assert lost == []


@each_document
def test_names_and_constants_are_where_they_are_said_to_be(path: Path) -> None:
    """`cryoem/ctf.py::contrast_transfer`; `programs/convergence.py::PATIENCE` = 2."""
    wrong = []
    for file, name, said in PLACE.findall(text_of(path)):
        module = PACKAGE / file
        defined = definitions(module) if module.exists() else {}
        if name not in defined or (said and defined[name] != float(said)):
            wrong.append((f"{file}::{name}", said, defined.get(name, "is not there")))
    assert wrong == []


def definitions(path: Path) -> dict[str, object]:
    """What a module defines at its top level by name, and the values of plain constants."""
    found: dict[str, object] = {}
    for node in ast.parse(text_of(path)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = None
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for left, right in pairs:
                found[ast.unparse(left)] = getattr(right, "value", None)  # of a constant
    return found


def test_variables_of_the_environment_are_read() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = {name for path in DOCUMENTS for name in VARIABLE.findall(text_of(path))}
    assert {name for name in named if name not in code} == set()


def test_the_protocol_has_every_message() -> None:
    _, _, section = text_of(PACKAGE / "runtime" / "PROTOCOL.md").partition("## The messages")
    section, _, _ = section.partition("\n## ")
    told = re.findall(r"\*\*(\w+)\*\*", section)
    assert sorted(told) == sorted({kind.__name__ for kind in get_args(ToMaster | ToWorker)})


@pytest.mark.parametrize("path", PAGES, ids=[str(path.relative_to(PACKAGE)) for path in PAGES])
def test_a_page_is_short_and_is_installed_with_its_package(path: Path) -> None:
    assert len(text_of(path).split()) <= PAGE_WORDS or path.name == "ARCHITECTURE.md"
    assert (path.parent / "__init__.py").exists()  # setup.cfg takes *.md of packages


def test_architecture_is_two_pages() -> None:
    assert len(text_of(PACKAGE / "ARCHITECTURE.md").splitlines()) <= ARCHITECTURE_LINES


def test_the_version_stands_in_citation_and_changelog() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [__version__]
    assert f"\n## [{__version__}]" in text_of(ROOT / "CHANGELOG.md")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_rates_of_the_gpu_are_those_that_were_measured() -> None:
    measured = json.loads((ROOT / "docs" / "gpu.json").read_text(encoding="utf-8"))
    rates = {key: item for key, item in measured.items() if isinstance(item, float)}
    rates |= {
        key: item["images_per_s"]
        for key, item in measured.items()
        if "core" in key and isinstance(item, dict)
    }
    rows = re.findall(
        r"^\| (\d+) \| (search|local|soft).*? \| ([\d,]+) \| ([\d,]*) ?\| ([\d,]+) \|",
        text_of(ROOT / "docs" / "gpu.md"),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for box, kind, *numbers in rows:
        blocks = next(key for key in rates if key.startswith(f"{box} {kind} gpu"))
        keys = (blocks, f"{box} {kind} one core", f"{box} {kind} 16 cores")
        for key, number in zip(keys, numbers, strict=True):
            assert number == (f"{rates[key]:,.0f}" if key in rates else "")
