"""Ranks of one host read the shared arrays from the same memory, or from their own if they must."""

from __future__ import annotations

import numpy as np
import pytest

from mpipar.runtime import pool as pool_module
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.node_memory.shared_arrays import SharedArrays, UnmappableError
from tests.support.pools import on_pool
from tests.support.stages import Seen, tasks_of

pytestmark = pytest.mark.mpi(min_size=2)
SHARED = {"a": np.ones((600, 400)).T, "b": np.arange(3)}
TOTAL = 240_000.0
MOST_RUNS = 50


def memories(pool, runs=1):
    """Inodes of the array's memory by rank, as the tasks of the last run saw it; {} if wrong.

    There are more runs until all ranks take part in one: the tasks of a late rank may be stolen.
    """
    ranks = {hello.process: rank for rank, hello in pool.hosts.items()}
    for number in range(1, MOST_RUNS):
        found = pool.run(Seen(), SHARED, tasks_of(8 * pool.workers, blocks=False)).results
        if {(seen.total, seen.flags) for seen in found} != {(TOTAL, (True, False))}:
            return {}
        seen = {ranks[seen.process]: seen.inode for seen in found}
        if number >= runs and len(seen) == pool.workers:
            return seen
    return {}


def test_all_ranks_read_the_same_memory(world):
    def program(pool):
        seen = set(memories(pool, runs=3).values())
        return len(seen) == 1 and seen != {0}

    on_pool(world, program)


def test_who_cannot_map_reads_its_own(world, monkeypatch):
    def fail(values):
        raise UnmappableError

    if world.rank == 1:
        monkeypatch.setattr(SharedArrays, "attach", fail)

    def program(pool):
        once, again = memories(pool), memories(pool, runs=2)
        others = {again[rank] for rank in again if rank != 1}
        return once[1] == again[1] == 0 and len(others) == (world.size > 2) and 0 not in others

    on_pool(world, program)


def test_each_host_has_its_own_memory(world, monkeypatch):
    for module in (worker_loop, pool_module):
        monkeypatch.setattr(module.socket, "gethostname", lambda: f"node{world.rank % 2}")

    def program(pool):
        seen = memories(pool, runs=2)
        # On two ranks, rank 1 is alone on its node and needs nobody else's memory.
        if world.size == 2:
            return seen == {1: 0}
        nodes = [{seen[rank] for rank in seen if rank % 2 == node} for node in (0, 1)]
        return [len(node) for node in nodes] == [1, 1] and nodes[0] != nodes[1]

    on_pool(world, program)


def test_knob_keeps_memory_apart(world, monkeypatch):
    monkeypatch.setenv("MPIPAR_NODE_MEMORY", "off")
    on_pool(world, lambda pool: set(memories(pool).values()) == {0})
