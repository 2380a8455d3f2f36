"""What all tests of jobs have: a folder for mpirun; which note the lines that they run."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import pytest

from mpipar.runtime.process.launcher_variables import SESSION_BASE

if TYPE_CHECKING:
    from collections.abc import Iterator

# They take long, or are suites of others, which behave otherwise where they meet coverage.
UNCOVERED = ("test_executor_", "test_huge_", "test_node_memory", "test_refine_", "test_signals")

OWN_VARIABLES = ("test_launch", "test_launcher_variables")  # they test what mpirun is told


@pytest.fixture(autouse=True, scope="module")
def _coverage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes that these tests start take no notes; the test itself does."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name.startswith(UNCOVERED):
            patch.delenv("COVERAGE_PROCESS_START", raising=False)
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(autouse=True)
def _mpirun_folder(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """A killed mpirun leaves a folder that stops a later one which is given the same number."""
    if request.path.stem in OWN_VARIABLES:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="job-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv(SESSION_BASE, folder)
        yield
