"""The user's main module on a worker that is another process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mpipar.interfaces.calls import user_main
from mpipar.interfaces.calls.surroundings import Surroundings
from mpipar.interfaces.calls.user_main import UserMain

ROOT = Path(__file__).parents[4]
SCRIPT = """
import dataclasses, sys
runs = globals().get("runs", 0) + 1

@dataclasses.dataclass
class Point:
    x: int

def double(x):
    return 2 * x

if __name__ == "__main__":
    raise SystemExit("a worker must not get here")
"""


@pytest.fixture
def worker(monkeypatch):
    """This process as if it were a worker: what it does to `__main__` is undone."""
    for variable in ("A", "B"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.chdir(Path.cwd())
    for name in ("__main__", user_main.NAME):
        monkeypatch.setitem(sys.modules, name, sys.modules["__main__"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(user_main, "_loaded", [])


def remote(**fields):
    main = UserMain(process=-1, search=(), module=None, path=None, source=None)
    return replace(main, **fields)


def test_script_is_run_once_from_its_source_and_is_then_main(worker):
    main = remote(path="/not/here/script.py", source=SCRIPT.encode())
    main.load()
    loaded = sys.modules["__main__"]
    main.load()
    assert sys.modules["__main__"] is loaded is sys.modules["__mp_main__"]
    assert (loaded.double(4), loaded.Point(3).x, loaded.__file__) == (8, 3, "/not/here/script.py")


def test_module_is_imported_by_name(worker, tmp_path, monkeypatch):
    (tmp_path / "squares.py").write_text("def square(x):\n    return x * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    remote(module="squares").load()
    assert sys.modules["__main__"].square(3) == 9


def test_script_that_fails_is_tried_again_by_the_next_call(worker):
    main = remote(path="script.py", source=b"1 / 0")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            main.load()
    assert sys.modules[user_main.NAME] is sys.modules["__main__"]
    assert not user_main.is_loading()


def test_nothing_is_done_in_the_process_that_it_comes_from(worker):
    before = sys.modules["__main__"]
    UserMain.here().load()
    assert sys.modules["__main__"] is before


def test_search_path_is_that_of_rank_0_behind_our_own(worker):
    mine = list(sys.path)
    remote(search=("/a", mine[0], "/b")).extend_search()
    assert sys.path == [*mine, "/a", "/b"]


def test_annotations_of_a_script_are_what_it_says_they_are(worker):
    remote(path="script.py", source=b"def f(x: int): pass").load()
    assert sys.modules["__main__"].f.__annotations__ == {"x": int}


def test_what_the_script_defines_is_of_main_as_in_a_forked_process(worker):
    source = b"""
import functools
def plain(): pass
@functools.cache
def cached(): pass
class Outer:
    class Inner: pass
    def method(self): pass
    @staticmethod
    def static(): pass
    @property
    def value(self): pass
"""
    remote(path="script.py", source=source).load()
    main = sys.modules["__main__"]
    outer = main.Outer
    found = [main.plain, main.cached, main.cached.__wrapped__, outer, outer.Inner, outer.method]
    found += [outer.static, outer.value.fget]
    assert {each.__module__ for each in found} == {main.__name__} == {"__main__"}


def test_module_level_runs_where_the_program_began_and_first_searches_the_script_s_folder(
    worker, tmp_path
):
    begin = Surroundings(("script.py", "--flag"), str(tmp_path), sys.getrecursionlimit())
    source = b"import os, sys\nseen = sys.argv, os.getcwd(), sys.path[0]"
    remote(path="script.py", source=source, begin=begin, search=("/scripts",)).load()
    assert sys.modules["__main__"].seen == (["script.py", "--flag"], str(tmp_path), "/scripts")


def test_surroundings_are_entered_and_left_for_others(worker, tmp_path, monkeypatch):
    limit = sys.getrecursionlimit()
    monkeypatch.setenv("B", "own")
    Surroundings(("a",), str(tmp_path), limit, (("A", "1"), ("B", None)), moved=True).enter()
    assert (sys.argv, Path.cwd()) == (["a"], tmp_path)
    assert os.environ["A"] == "1"
    assert "B" not in os.environ
    Surroundings(("b",), str(ROOT), limit).enter()
    assert (sys.argv, Path.cwd()) == (["b"], ROOT)
    assert "A" not in os.environ
    assert os.environ["B"] == "own"


def test_folder_that_a_worker_cannot_enter_is_an_error_if_the_script_chose_it(worker, tmp_path):
    limit, there = sys.getrecursionlimit(), str(tmp_path / "not-there")
    with pytest.raises(FileNotFoundError, match=r"not-there, which .* cannot enter"):
        Surroundings((), there, limit, moved=True).enter()
    Surroundings((), there, limit).enter()


def test_an_executor_made_while_a_worker_reads_the_script_says_what_to_do(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from mpipar import Executor\n"
        "def f(x):\n    return x\n"
        "with Executor(2) as executor:\n    print(executor.submit(f, 1).exception())\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 'below `if __name__ == "__main__":`' in done.stdout + done.stderr
