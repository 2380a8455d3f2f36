"""Libraries that take a pool or an executor find the same on the ranks of a job as in one process.

Their arguments and results are arrays, and calls of uneven length are stolen: what no test with
numbers for arguments sees.
"""

from __future__ import annotations

import sys

import pytest

from tests.support.installed import MPIRUN
from tests.support.jobs import run
from tests.support.libraries import PROGRAMS

EXEC = [sys.executable, "-m", "mpipar", "exec"]
SCRIPT = ["-m", "tests.support.libraries", *PROGRAMS]

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")


@pytest.fixture(scope="module")
def expected():
    """What they find without workers."""
    done = run(line=[*EXEC, "--parallel=serial", *SCRIPT])
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PROGRAMS)
    return done.stdout


@pytest.mark.parametrize("parallel", ["mpi:4", "thread:2"])
def test_libraries_find_the_same(expected, parallel):
    done = run(line=[*EXEC, f"--parallel={parallel}", *SCRIPT])
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
