"""Functions and classes wherever a program defines them: calls find them as forked processes do."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.installed import MPIRUN, mpirun
from tests.support.jobs import complaints, environment, run

if TYPE_CHECKING:
    from collections.abc import Sequence

EXEC = [sys.executable, "-m", "mpipar", "exec"]
WAYS: dict[str, Sequence[object]] = {
    "python": [sys.executable],
    "serial": [*EXEC, "--parallel=serial"],
    "thread": [*EXEC, "--parallel=thread:2"],
    "ranks": [*mpirun(), "-n", 3, *EXEC],
}

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")

BELOW_THE_GUARD = """
import argparse, collections, dataclasses, enum, functools, os
import numpy as np
if os.environ["WHOSE"] == "standard library":
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    fork = multiprocessing.get_context("fork")
    Executor = functools.partial(ProcessPoolExecutor, mp_context=fork)
else:
    from mpipar import Executor

FACTOR = 1
options = {"power": 1}
_state = None
_store = {}

def scaled(x): return x * FACTOR
def to_power(x): return x ** options["power"]
def by_arguments(x): return x * arguments.factor
def of_table(i): return float(table[i])
def of_lower(x): return lower(x)
def failing(x): raise Mine(x)
def keep(value):
    global _state
    _state = value
def kept(x): return _state, x
def store(value): _store["value"] = value
def stored(x): return _store["value"], x
@functools.cache
def cached(x): return x * FACTOR
def marked(function):
    @functools.wraps(function)
    def wrapper(*values): return "marked", function(*values)
    return wrapper

if __name__ == "__main__":
    import math as mm
    FACTOR = 7
    options["power"] = 3
    arguments = argparse.Namespace(factor=5)
    table = np.arange(300000.0)
    class Mine(Exception): pass
    class Base:
        def __init__(self, x): self.x = x
        def who(self): return type(self).__name__, self.x
    class Derived(Base):
        def who(self): return (*super().who(), 1)
        @classmethod
        def made(cls, x): return cls(x)
    @dataclasses.dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2
    class Color(enum.Enum):
        RED = 1
    Pair = collections.namedtuple("Pair", "a b")
    def lower(x): return mm.sqrt(x) + FACTOR
    def even(n): return n == 0 or odd(n - 1)
    def odd(n): return n != 0 and even(n - 1)
    @marked
    def decorated(x): return x + FACTOR
    @functools.lru_cache(maxsize=3)
    def lower_cached(x): return x + FACTOR
    def several(x): return Color.RED, Pair(x, 1), Point(x)
    def is_derived(thing): return type(thing) is Derived, thing.who()
    def keep_more(value):
        global _state
        _state = value + FACTOR
    calls = [(scaled, 2), (to_power, 2), (by_arguments, 2), (of_table, 100), (of_lower, 16)]
    calls += [(cached, 3), (lower_cached, 3), (even, 4), (decorated, 1), (several, 3)]
    calls += [(is_derived, Derived(3)), (Derived(2).who,), (functools.partial(lower, 4),)]
    with Executor(2) as executor:
        for call in calls:
            print(executor.submit(*call).result())
        print(type(executor.submit(failing, 3).exception()) is Mine)
        print(type(executor.submit(Derived.made, 3).result()) is Derived)
        print(executor.submit(several, 3).result()[0] is Color.RED)
        print(sum(executor.map(of_table, range(1000))), sum(executor.map(lower, range(5))))
    for begin, call in [(keep, kept), (store, stored), (keep_more, kept)]:
        with Executor(2, initializer=begin, initargs=(5,)) as executor:
            print(list(executor.map(call, range(3))))
    FACTOR = 9
    options["power"] = 4
    with Executor(2) as executor:
        print([executor.submit(*call).result() for call in calls[:2]])
"""


def output(folder, text, way, *, whose="mpipar"):
    script = folder / "script.py"
    script.write_text(text)
    return run(line=[*WAYS[way], script], cwd=folder, env={"WHOSE": whose}, limit=50)


@pytest.mark.parametrize("way", WAYS)
def test_calls_find_what_is_below_the_guard_as_forked_processes_do(tmp_path, way):
    right = output(tmp_path, BELOW_THE_GUARD, "python", whose="standard library")
    assert (right.returncode, len(right.stdout.splitlines())) == (0, 21), right.stderr
    done = output(tmp_path, BELOW_THE_GUARD, way)
    assert done.stdout == right.stdout, done.stderr


ON_THE_WAY = """
import functools, threading
from mpipar import Executor

step = 3

def shift(x):
    return x + step

def adder(n):
    def add(x):
        return x + n
    return add

if __name__ == "__main__":
    with Executor(2) as executor:
        def results(function):
            return list(executor.map(function, range(3))), executor.submit(function, 5).result()
        print(results(lambda x: x + step), results(adder(10)), results(functools.partial(shift)))
        class Inner:
            def __call__(self, x): return -x
        print(results(Inner()), executor.submit(adder, 4).result()(1))
        def shift(x): return x - step
        print(results(shift))
        step = 30
        def shift(x): return 2 * x - step
        print(results(shift), results(lambda x: shift(x)))
        handle = threading.Lock()
        def reads(x): return handle.locked()
        print(executor.submit(reads, 1).exception())
        print(executor.submit(lambda: executor.submit(abs, 1)).exception())
"""
EXPECTED = """\
([3, 4, 5], 8) ([10, 11, 12], 15) ([3, 4, 5], 8)
([0, -1, -2], -5) 5
([-3, -2, -1], 2)
([-30, -28, -26], -20) ([-30, -28, -26], -20)
"""


def checked(done, *, is_here=False):
    """That a program printed what it should, and two errors of one line that say what to do."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(EXPECTED), done.stderr
    reads, nested = done.stdout.removeprefix(EXPECTED).splitlines()
    if is_here:
        assert (reads, "a call cannot use an executor" in nested) == ("None", True)
    else:
        assert "what the script calls handle cannot be sent to workers" in reads
        assert "an Executor cannot be sent to a call" in nested


@pytest.mark.parametrize("way", WAYS)
def test_lambdas_closures_and_names_bound_anew_are_sent_by_value(tmp_path, way):
    checked(output(tmp_path, ON_THE_WAY, way), is_here=way == "serial")


@pytest.mark.parametrize(
    "start", [[sys.executable], [*WAYS["thread"], "-"], [sys.executable, "-c", ON_THE_WAY]]
)
def test_program_that_is_no_file(tmp_path, start):
    done = subprocess.run(
        list(map(str, start)),
        input=ON_THE_WAY,
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    checked(done)


@pytest.mark.parametrize("form", ["package", "zip file"])
def test_program_of_a_package_or_zip_file(tmp_path, form):
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "__main__.py").write_text(ON_THE_WAY)
    (folder / "__init__.py").touch()
    start = [sys.executable, "-m", "program"]
    if form == "zip file":
        run(line=[sys.executable, "-m", "zipapp", folder, "-o", tmp_path / "program.pyz"])
        start = [sys.executable, tmp_path / "program.pyz"]
    checked(run(line=start, cwd=tmp_path, limit=50))


def test_script_on_stdin_under_mpirun_is_refused():
    done = run(line=[*WAYS["ranks"], "-"])
    (line,) = complaints(done)
    assert (done.returncode, "write it into a file" in line) == (64, True)
