"""Work stealing between real ranks."""

from __future__ import annotations

import pytest

from tests.support.pools import is_right, on_pool, run
from tests.support.stages import Numbers, Occupied, Total, tasks_of

pytestmark = pytest.mark.mpi(min_size=3)


def test_slowed_rank_is_relieved(world, monkeypatch):
    monkeypatch.setenv("MPIPAR_SLOW", "1:4")

    def program(pool):
        pool.serve(Numbers())
        outcome = run(pool, Total(0.02), count=80)
        statistics = outcome.statistics
        # Of the tasks that were placed there, the slow rank is to run about its share.
        share = 80 * 0.25 / (pool.workers - 1 + 0.25)
        slow = statistics.tasks_per_rank[1]
        print(f"share {share:.1f} of {80 // pool.workers}, {statistics.tasks_per_rank}")
        return (
            is_right(outcome, 80)
            and slow <= 1.5 * share + 1
            and statistics.steals > 0
            and statistics.tasks_stolen >= statistics.steals
        )

    on_pool(world, program)


def test_what_was_stolen_stays_with_the_thief(world, monkeypatch):
    monkeypatch.setenv("MPIPAR_SLOW", "1:4")

    def program(pool):
        pool.serve(Numbers())
        first, *later = [run(pool, Total(0.01)) for _ in range(4)]
        # One of them may be disturbed by what else the machine does.
        fewest = min(outcome.statistics.tasks_stolen for outcome in later)
        return all(map(is_right, [first, *later])) and fewest < first.statistics.tasks_stolen

    on_pool(world, program)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_order_gives_the_same(world, monkeypatch, seed):
    monkeypatch.setenv("MPIPAR_SHUFFLE", str(seed))

    def program(pool):
        pool.serve(Numbers())
        return all(is_right(run(pool, Total(0.002))) for _ in range(3))

    on_pool(world, program, threads=2)


@pytest.mark.parametrize("kind", ["kernel", "python"])
def test_steal_is_answered_while_the_victim_computes(world, kind):
    def program(pool):
        outcome = pool.run(Occupied(kind), {}, tasks_of(4 * pool.workers, blocks=False))
        end, process = outcome.results[0][1:]
        stolen = [result for result in outcome.results[1:4] if result[2] != process]
        print(f"ended before the long task by {[end - result[1] for result in stolen]} s")
        return len(stolen) >= 2 and all(result[1] < end for result in stolen)

    on_pool(world, program)
