"""Whole pools on real ranks: rank 0 is the program, the others serve."""

from __future__ import annotations

import os

import numpy as np
import pytest

from mpipar.errors import InputError, TaskFailedError
from tests.support.pools import COUNT, is_right, on_pool, run
from tests.support.ranks import assert_on_all_ranks
from tests.support.stages import Fails, Numbers, Truncated, Where, Wide, tasks_of

pytestmark = pytest.mark.mpi(min_size=2)


@pytest.mark.parametrize("threads", [1, 2])
def test_results_and_sums_are_right_run_after_run(world, threads):
    def program(pool):
        pool.serve(Numbers())
        return all(is_right(run(pool)) for _ in range(3))

    on_pool(world, program, threads=threads)


def test_description_names_ranks_nodes_and_mpi(world):
    def program(pool):
        crew = "1 worker" if pool.workers == 1 else f"{pool.workers} workers"
        return pool.description.startswith(f"mpi: 1 master + {crew} on 1 node ") and (
            pool.description.endswith("(MPI 1.0)")
        )

    on_pool(world, program)


def test_rank_0_does_not_compute_and_all_others_do(world):
    def program(pool):
        outcome = pool.run(Where(), {}, tasks_of(COUNT, blocks=False))
        processes = {process for _, process, _ in outcome.results}
        return len(processes) == pool.workers and os.getpid() not in processes

    on_pool(world, program)


def test_large_shared_arrays_reach_every_worker(world):
    def program(pool):
        shared = {"a": np.ones(6_000_000), "b": np.ones((100, 100))[::2]}
        outcome = pool.run(Where(), shared, tasks_of(20, blocks=False))
        return {total for _, _, total in outcome.results} == {6_005_000.0}

    on_pool(world, program)


def test_second_run_is_served_from_the_workers_caches(world):
    def program(pool):
        pool.serve(Numbers())
        first, second = run(pool).statistics, run(pool).statistics
        return (
            first.blocks_served + first.peer_blocks >= COUNT
            and first.bytes_served == 8000 * first.blocks_served
            and second.blocks_served <= COUNT // 4
        )

    on_pool(world, program)


def test_only_rank_0_reads_blocks(world):
    source = Numbers()

    def program(pool):
        pool.serve(source)
        return is_right(run(pool)) and len(source.reads) >= COUNT

    on_pool(world, program)
    assert_on_all_ranks(world, bool(source.reads) == (world.rank == 0))


def test_sums_of_many_chunks_are_added_over_the_tree(world):
    def program(pool):
        pool.serve(Numbers())
        outcome = run(pool, Wide())
        return is_right(outcome) and bool(np.all(outcome.sums["wide"] == sum(range(COUNT))))

    on_pool(world, program)


def test_failing_task_is_tried_again_and_counted_once(world):
    def program(pool):
        pool.serve(Numbers())
        return is_right(run(pool, Fails(everywhere=False)))

    on_pool(world, program)


def test_errors_reach_the_program_and_the_pool_lives_on(world):
    def program(pool):
        pool.serve(Truncated())
        with pytest.raises(InputError, match="4096 bytes expected"):
            run(pool)
        with pytest.raises(TaskFailedError, match="does not want to"):
            run(pool, Fails(everywhere=True), count=5)
        return is_right(run(pool, count=5), count=5)

    on_pool(world, program)


def test_pool_is_closed_without_a_run(world):
    on_pool(world, lambda pool: pool.workers == world.size - 1)
