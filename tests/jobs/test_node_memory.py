"""Ranks of one host have a shared array once, and not each for itself."""

from __future__ import annotations

import pytest

from tests.bench.node_memory import table
from tests.support.installed import MPIRUN

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="this environment has no MPI")

RANKS, MIB = 4, 64


def test_memory_of_all_ranks_has_the_array_twice_with_the_programs_own() -> None:
    found = table(RANKS, MIB)
    saved = found["off"]["bytes"] - found["on"]["bytes"]
    assert saved == pytest.approx((RANKS - 2) * MIB << 20, rel=0.25)
