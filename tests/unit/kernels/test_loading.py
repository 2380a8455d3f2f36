"""Kernels are loaded when one is used, and the process that compiles them says so."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpipar import kernels
from mpipar.kernels.compile_lock import one_compiler_per_node
from tests.support.jobs import ROOT


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    return tmp_path


def test_process_that_finds_no_kernels_says_that_it_compiles(cache, capsys):
    with one_compiler_per_node():
        assert "compiling kernels, once on this machine" in capsys.readouterr().err


def test_process_that_finds_kernels_says_nothing(cache, capsys):
    (cache / "kernels_0").mkdir()
    (cache / "kernels_0" / "interpolation.columns_of-16.py311.nbi").touch()
    with one_compiler_per_node():
        assert capsys.readouterr().err == ""


USE_AT_ONCE = """
import gc, sys, threading
from mpipar import kernels
from mpipar.kernels import scores
assert "numba" not in sys.modules
kernels.begin_to_load()
found = []
threads = [threading.Thread(target=lambda: found.append(scores.pick_distinct)) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 4 and len(set(map(id, found))) == 1
assert "numba" in sys.modules and gc.isenabled()
"""


def test_several_threads_get_a_kernel_while_all_are_loaded():
    subprocess.run([sys.executable, "-c", USE_AT_ONCE], cwd=ROOT, check=True)


def test_all_modules_with_kernels_are_loaded_together():
    files = {path.stem for path in (ROOT / "mpipar" / "kernels").glob("*.py")}
    assert set(kernels.NAMES) == files - {"__init__", "compile_lock", "interpolation", "jit"}
