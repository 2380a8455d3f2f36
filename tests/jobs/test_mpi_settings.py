"""What is set in the environment when mpi4py is loaded, on each kind of rank of a real job."""

from __future__ import annotations

import sys

import pytest

from tests.support.installed import MPIRUN, mpirun, tolerates_faults
from tests.support.jobs import run

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from mpipar import Executor

def settings():
    import mpi4py
    return os.environ["OMPI_MCA_mpi_add_procs_cutoff"], mpi4py.rc.finalize, mpi4py.rc.thread_level

def here(_):
    return os.getpid(), settings()

def die_once(marker):
    if Path(marker).exists():
        Path(marker).unlink()
        os.kill(os.getpid(), signal.SIGKILL)

def on_workers(executor, wanted):
    found = dict(executor.map(here, range(50)))
    while len(found) < wanted:
        found |= dict(executor.map(here, range(50)))
    return found

if __name__ == "__main__":
    with Executor() as executor:
        found = {os.getpid(): settings()} | on_workers(executor, 2)
        if len(sys.argv) > 1:
            Path(sys.argv[1]).touch()
            executor.submit(die_once, sys.argv[1]).result()
            found |= on_workers(executor, 2)  # one of which was spawned
        print(len(found), *sorted(set(found.values())))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def execute(script, *words, options=(), flags=(), env=None):
    line = [*mpirun(), *options, "-n", 3, sys.executable, "-m", "mpipar", "exec", *flags]
    return run(line=[*line, script, *words], env=env or {})


def test_ranks_of_a_job(script):
    done = execute(script)
    assert done.stdout.splitlines()[-1:] == ["3 ('1024', None, 'multiple')"], done


@pytest.mark.skipif(not tolerates_faults(), reason="this MPI does not go on without a lost rank")
def test_ranks_of_a_job_that_tolerates_faults_and_one_that_was_spawned(script, tmp_path):
    done = execute(
        script,
        tmp_path / "marker",
        options=["--with-ft", "ulfm"],
        flags=["--replace-lost"],
        env={"PRTE_MCA_state_base_recoverable": "1"},
    )
    assert done.stdout.splitlines()[-1:] == ["4 ('1024', False, 'serialized')"], done
