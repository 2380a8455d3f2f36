"""CPython's and mpi4py's own tests of executors, on mpipar.Executor; see tests/support/suites.py.

All jobs of this file run at once: they mostly sleep.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest

from tests.support.installed import MPIRUN, mpirun
from tests.support.jobs import ROOT, environment
from tests.support.suites import CPYTHON, MPI4PY, find

# The `--parallel` (none: mpirun), the suite, and its classes: those that only wait for futures run
# once. The test waits for the slowest job last.
JOBS = {
    "mpi-mpi4py": ("", "mpi4py"),
    "mpi-waits": ("", "cpython", "Waits", "Completions"),
    "serial-calls": ("--parallel=serial", "cpython", "Executors", "Shutdowns", "Initializers"),
    "thread-calls": ("--parallel=thread:3", "cpython", "Executors", "Shutdowns", "Initializers"),
    "mpi-calls": ("", "cpython", "Executors", "Shutdowns", "Initializers"),
}
PATIENCE = 55

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment brings no MPI")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """All of them under way, each with a file for its output."""
    folder = tmp_path_factory.mktemp("suites")
    cache = ROOT / ".suites"
    find(cache)
    started = {}
    for name, (parallel, suite, *only) in JOBS.items():
        start = [] if parallel else [*mpirun(), "-n", "4"]
        command = [*start, sys.executable, "-m", "mpipar", "exec", parallel or "--parallel=mpi"]
        command += ["-m", "tests.support.suites", suite, str(cache), *only]
        if list(cache.glob(f"{CPYTHON if suite == 'cpython' else MPI4PY}*")):
            with (folder / name).open("w") as output:
                started[name] = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment(),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
    yield folder, started
    for job in started.values():
        job.terminate()
        job.wait(20)


@pytest.mark.parametrize("name", JOBS)
def test_suite_passes(jobs, name):
    folder, started = jobs
    if name not in started:
        pytest.skip("that suite comes with no Python here, and could not be downloaded")
    with suppress(subprocess.TimeoutExpired):
        started[name].wait(PATIENCE)
    output = (folder / name).read_text()
    assert started[name].poll() == 0, output
    assert int(output.rpartition("\nRan ")[2].split()[0]) > 10
