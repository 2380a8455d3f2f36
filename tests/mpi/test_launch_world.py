"""What launch makes of the world that the tests themselves were started in."""

from __future__ import annotations

import pytest

from mpipar.launch import LaunchEnvironment
from tests.support.ranks import assert_on_all_ranks

pytestmark = pytest.mark.mpi


def test_environment_agrees_with_the_library(world):
    around = LaunchEnvironment.read()
    assert_on_all_ranks(world, (around.started or 1) == world.size, f"{around}")
    assert_on_all_ranks(world, around.rank == world.rank, f"{around}")


def test_verdict_is_the_same_on_all_ranks(world):
    last = world.rank == world.size - 1
    try:
        assert_on_all_ranks(world, not last, "on purpose")
    except AssertionError as error:
        heard = str(error)
    else:
        heard = ""
    said = [line.strip() for line in heard.splitlines() if "on purpose" in line]
    assert_on_all_ranks(world, bool(said), heard)
