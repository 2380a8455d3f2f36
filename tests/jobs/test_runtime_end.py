"""How jobs end: the exit code of mpirun is rank 0's, and nothing hangs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
import os, signal, sys, time, threading
import numpy as np
from mpipar.errors import InputError, MpiparError
from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.stage import Stage, Task

prepare_mpi()
from mpipar.runtime.clusters import mpi_cluster as mpi

class Sleep(Stage):
    def __init__(self, seconds=0.01): self.seconds = seconds
    def run(self, task, block, state):
        time.sleep(self.seconds)
        return task.id
class Spin(Stage):
    def run(self, task, block, state):
        sum(range(10**9))  # holds the interpreter for a long time
class Freeze(Stage):
    def run(self, task, block, state):
        os.kill(os.getpid(), signal.SIGSTOP)
class Unpicklable(Stage):
    def run(self, task, block, state): return threading.Lock()
class Strange(Stage):
    def __reduce__(self): return (Strange.make, (os.getpid(),))
    @staticmethod
    def make(pid):
        if pid != os.getpid(): raise ImportError("not on this node")
    def run(self, task, block, state): ...
class Broken:
    def read(self, block): raise InputError("particles.mrcs is truncated")

TASKS = [Task(i, None, None) for i in range(40)]
world = mpi.world()
if world.rank:
    sys.exit(mpi.serve())
"""

OWN = Path(sys.executable).with_name("mpirun")
MPIRUN = str(OWN) if OWN.exists() else shutil.which("mpirun")

pytestmark = pytest.mark.skipif(MPIRUN is None, reason="needs mpirun")


def mpirun(tmp_path, body, *, head=HEAD, ranks=3, limit=40, **environment):
    """Run a script on ranks; return exit code, output and seconds."""
    script = tmp_path / "script.py"
    script.write_text(head + body)
    command = [str(MPIRUN), "--oversubscribe", "-n", str(ranks), sys.executable, str(script)]
    start = time.monotonic()
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
        cwd=tmp_path,
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - start


def test_good_end_is_zero_and_quiet(tmp_path):
    body = """
with mpi.open_pool() as pool:
    print(pool.description, pool.run(Sleep(), {}, TASKS).results == list(range(40)))
mpi.finish(0)
"""
    code, said, _ = mpirun(tmp_path, body)
    assert code == 0, said
    assert said.startswith("mpi: 1 master + 2 workers on 1 node"), said
    assert said.rstrip().endswith("True"), said
    assert len(said.splitlines()) == 1, said


def test_pool_may_be_closed_without_a_run(tmp_path):
    code, said, _ = mpirun(tmp_path, "mpi.open_pool().close()\nmpi.finish(0)")
    assert (code, said) == (0, "")


def test_error_before_the_pool_is_opened(tmp_path):
    code, said, seconds = mpirun(tmp_path, "mpi.finish(65)\nsys.exit(65)")
    assert code == 65, said
    assert seconds < 20


@pytest.mark.parametrize("where", ["before", "inside"])
def test_uncaught_exception_of_rank_0_ends_the_job(tmp_path, where):
    body = """
def watch(snapshot): raise KeyError("a fault of the program")
if WHERE == "before": raise KeyError("a fault of the program")
pool = mpi.open_pool()
pool.run(Sleep(0.3), {}, TASKS, watch=watch)
"""
    code, said, seconds = mpirun(tmp_path, f"WHERE = {where!r}\n{body}")
    assert code == 1, said
    assert "a fault of the program" in said
    assert seconds < 20


def test_error_inside_a_run_leaves_with_rank_0s_code(tmp_path):
    body = """
code = 0
try:
    with mpi.open_pool() as pool:
        pool.serve(Broken())
        pool.run(Sleep(), {}, [Task(i, i, None) for i in range(40)])
except MpiparError as error:
    print(error)
    code = error.exit_code
mpi.finish(code)
sys.exit(code)
"""
    code, said, seconds = mpirun(tmp_path, body)
    assert code == 65, said
    assert "particles.mrcs is truncated" in said
    assert seconds < 20


@pytest.mark.parametrize("stage", ["Spin()", "Sleep(100)", "Freeze()"])
def test_worker_that_does_not_answer_is_ended_by_force(tmp_path, stage):
    body = f"""
pool = mpi.open_pool()
start = time.monotonic()
def watch(snapshot):
    if snapshot.elapsed > 1: raise InputError("enough")
try:
    pool.run({stage}, {{}}, TASKS[:2], watch=watch)
except InputError:
    pool.close()
    mpi.finish(65)
    sys.exit(65)
"""
    code, said, seconds = mpirun(tmp_path, body)
    assert code == 65, said
    assert seconds < 20


def test_result_that_cannot_be_pickled_is_a_clear_error(tmp_path):
    body = """
with mpi.open_pool() as pool:
    try:
        pool.run(Unpicklable(), {}, TASKS)
    except MpiparError as error:
        print(error)
    print(pool.run(Sleep(), {}, TASKS).results == list(range(40)))
mpi.finish(0)
"""
    code, said, _ = mpirun(tmp_path, body)
    assert code == 0, said
    assert "cannot be sent" in said
    assert "lock" in said
    assert said.rstrip().endswith("True"), said


def test_stage_that_a_worker_cannot_load_ends_the_job(tmp_path):
    body = """
code = 0
try:
    with mpi.open_pool() as pool:
        pool.run(Strange(), {}, TASKS)
except MpiparError as error:
    print(error)
    code = error.exit_code
mpi.finish(code)
sys.exit(code)
"""
    code, said, seconds = mpirun(tmp_path, body)
    assert code == 70, said
    assert "not on this node" in said
    assert seconds < 20


def test_worker_that_falls_silent_during_a_run_is_named(tmp_path):
    body = """
try:
    with mpi.open_pool() as pool:
        pool.run(Freeze(), {}, TASKS[:1])
except MpiparError as error:
    print(error)
    mpi.finish(error.exit_code)
    sys.exit(error.exit_code)
"""
    code, said, seconds = mpirun(tmp_path, body, MPIPAR_PATIENCE="3")
    assert code == 75, said
    assert "and no worker is left; resume the run" in said
    assert "is lost (silent for 3" in said
    assert seconds < 20


def test_silent_ranks_are_named(tmp_path):
    late = HEAD.replace("if world.rank:", "if world.rank:\n    time.sleep(20 * (world.rank == 2))")
    body = """
try:
    mpi.open_pool()
except MpiparError as error:
    print(error)
    mpi.finish(error.exit_code)
    sys.exit(error.exit_code)
"""
    code, said, seconds = mpirun(tmp_path, body, head=late, MPIPAR_PATIENCE="2")
    assert code == 69, said
    assert "ranks 2 have not said hello" in said
    assert seconds < 20


def test_idle_ranks_use_little_of_a_core(tmp_path):
    body = """
def used(process):
    with open(f"/proc/{process}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

with mpi.open_pool() as pool:
    pool.run(Sleep(), {}, TASKS)
    workers = [hello.process for hello in pool.hosts.values()]
    before, begin = list(map(used, workers)), time.monotonic()
    time.sleep(4)
    seconds = time.monotonic() - begin
    print(max((used(w) - b) / seconds for w, b in zip(workers, before)))
mpi.finish(0)
"""
    code, said, _ = mpirun(tmp_path, body)
    assert code == 0, said
    assert float(said) < 0.05, said
