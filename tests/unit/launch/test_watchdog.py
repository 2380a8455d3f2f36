from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mpipar.launch.watchdog import bounded_start

SLOW = """
import time
from mpipar.launch.watchdog import bounded_start
with bounded_start(0):
    time.sleep(3)
"""


@pytest.fixture
def tolerant(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.5")


@pytest.mark.usefixtures("tolerant")
def test_launcher_of_a_start_that_takes_too_long_is_ended_with_a_word():
    # A shell stands in for mpirun: the parent of the rank.
    launcher = ["sh", "-c", f"{sys.executable} -c '{SLOW}' & wait"]
    begin = time.monotonic()
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert "MPI has not started on all ranks within" in done.stderr
    assert time.monotonic() - begin < 15


@pytest.mark.usefixtures("tolerant")
def test_start_in_time_is_not_disturbed(capfd):
    with bounded_start(0):
        pass
    time.sleep(0.7)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rank", [0, 7])
def test_only_the_first_ranks_watch_and_only_with_fault_tolerance(monkeypatch, rank):
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1" if rank else "0")
    monkeypatch.setattr(subprocess, "Popen", None)
    with bounded_start(rank):
        pass
