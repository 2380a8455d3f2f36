"""A small refinement that has ended well, for all tests of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.refine_input import make_input
from tests.support.refine_runs import run_here

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.refine_input import Input


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Input:
    return make_input(tmp_path_factory.mktemp("input"), 80, 24)


@pytest.fixture(scope="session")
def finished(made, tmp_path_factory) -> Path:
    """A run that has ended well; its images hold the particle."""
    path: Path = tmp_path_factory.mktemp("runs") / "refine_01"
    done = run_here(made.words("--path", path, iterations=4), path.parent)
    assert done.returncode == 0, done.stderr
    return path
