"""A small refinement that has ended well, for all tests of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.finished_run import finished_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.refine_input import Input


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Input:
    return finished_run(tmp_path_factory.getbasetemp())[0]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    return finished_run(tmp_path_factory.getbasetemp())[1]
