"""Which workers an executor gets, by what this process is."""

from __future__ import annotations

import os

import pytest

from mpipar.errors import LaunchError, UsageError
from mpipar.interfaces.calls import registry
from mpipar.launch import interface_workers
from mpipar.launch.parallel import Parallel
from mpipar.launch.start import Launch
from mpipar.settings import ExecSettings


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing is installed, and no launcher started us."""
    monkeypatch.setattr(registry, "_opener", None)
    monkeypatch.setattr(registry, "_resolver", None)
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI", "SLURM", "NSLOTS", "MV2_")):
            monkeypatch.delenv(name)


def resolve(text=None, workers=None):
    assert registry._resolver is not None
    return registry._resolver(text, workers)


def test_alone_an_executor_has_as_many_processes_as_it_wants():
    interface_workers.use_own_workers()
    assert resolve() == f"thread:{len(os.sched_getaffinity(0))}"
    assert resolve(workers=5) == "thread:5"
    assert resolve("threads:2", workers=5) == "thread:2"
    assert resolve("serial") == "serial"


def test_what_exec_was_told_wins_over_what_an_executor_wants():
    job = Launch(Parallel("thread", 3))
    interface_workers.use_workers_of(job, ExecSettings(parallel="thread:3"))
    interface_workers.use_own_workers()  # as the first use of mpipar.Executor does
    assert resolve(workers=5) == "thread:3"


def test_exec_in_one_process_without_a_word_leaves_the_choice():
    interface_workers.use_workers_of(Launch(Parallel("serial")), ExecSettings())
    assert resolve(workers=4) == "thread:4"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("five", UsageError, "the types are"),
        ("mpi:4", LaunchError, "mpipar exec --parallel=mpi:4 script.py"),
    ],
)
def test_what_cannot_be_opened_is_refused(text, error, message):
    interface_workers.use_own_workers()
    with pytest.raises(error, match=message):
        resolve(text)


def test_one_of_several_processes_gets_no_workers_of_its_own(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    interface_workers.use_own_workers()
    with pytest.raises(LaunchError, match="mpirun -n N python -m mpipar exec"):
        resolve()


def test_registry_says_so_when_nothing_was_installed():
    with pytest.raises(LaunchError, match="nothing says"):
        registry.open_router()
