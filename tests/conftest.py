"""Fixtures and rules for all tests; under mpirun every rank runs this file."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from mpipar.launch import prepare_process
from mpipar.runtime.process import signals
from mpipar.runtime.process.mpi_settings import prepare_mpi

if TYPE_CHECKING:
    from collections.abc import Iterator

prepare_process()  # compiled kernels go to the node's disk, also when the home is not writable
prepare_mpi()

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci",
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(  # on the other Pythons: the same examples each time, but fewer
    "brief", settings.get_profile("ci"), max_examples=50
)
settings.register_profile("long", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

MPI_WORDS = {"min_size", "max_size"}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A test that plays a worker here would leave pytest, and the tests after it, deaf to ^C."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def harness() -> Any:
    """The tests' own communicator: no message of a test can stray into it."""
    from mpi4py import MPI

    return MPI.COMM_WORLD.Dup()


@pytest.fixture
def world(harness: Any) -> Iterator[Any]:
    """A communicator of all ranks, fresh for each test."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD.Dup()
    yield comm
    gc.collect(0)  # destructors may be collective; a full collection would take seconds a test
    harness.Barrier()
    comm.Free()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that can run here; tests that cannot are not collected rather than skipped."""
    in_world = config.getoption("--only-mpi") or config.getoption("--with-mpi")
    size = _world_size() if in_world else 1
    kept, left = [], []
    for item in items:
        mark = item.get_closest_marker("mpi")
        unknown = set(mark.kwargs) - MPI_WORDS if mark else set()
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: the mpi marker has no {', '.join(unknown)}")
        fits = _fits(mark, size) if in_world else mark is None
        (kept if fits else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def _fits(mark: pytest.Mark | None, size: int) -> bool:
    if mark is None:
        return False
    return bool(mark.kwargs.get("min_size", 1) <= size <= mark.kwargs.get("max_size", sys.maxsize))


def _world_size() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.size)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed on which rank: pytest itself would only after the others' timeout."""
    rank = os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK"))
    if rank is not None and report.failed:
        sys.__stderr__.write(f"rank {rank}: {report.nodeid} ({report.when})\n{report.longrepr}\n")
        sys.__stderr__.flush()
