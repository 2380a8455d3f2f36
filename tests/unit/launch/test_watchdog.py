from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from mpipar.launch.watchdog import bounded_start

NEVER_STARTS = """
import os, time
from mpipar.launch.watchdog import bounded_start
launcher = os.getppid()
with bounded_start(0):
    while os.getppid() == launcher:
        time.sleep(0.01)
"""


@pytest.fixture
def tolerant(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1")
    monkeypatch.setenv("MPIPAR_PATIENCE", "0.5")


@pytest.mark.usefixtures("tolerant")
def test_launcher_of_a_start_that_takes_too_long_is_ended_with_a_word():
    # A shell stands in for mpirun: the parent of the rank.
    launcher = ["sh", "-c", f"{sys.executable} -c '{NEVER_STARTS}' & wait"]
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "MPI has not started on all ranks within" in done.stderr


@pytest.mark.usefixtures("tolerant")
def test_start_in_time_is_not_disturbed(capfd):
    with bounded_start(0):
        pass  # its end waits for the end of the watcher, which can say nothing later
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rank", [0, 7])
def test_only_the_first_ranks_watch_and_only_with_fault_tolerance(monkeypatch, rank):
    monkeypatch.setenv("OMPI_MCA_mpi_ft_enable", "1" if rank else "0")
    monkeypatch.setattr(subprocess, "Popen", None)
    with bounded_start(rank):
        pass
