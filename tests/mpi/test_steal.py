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
        ideal = 80 * 0.02 / (pool.workers - 1 + 0.25)
        # One slow task at the end, and room for a machine that does other things as well.
        bound = ideal + 0.08 + 0.5
        statistics = outcome.statistics
        print(f"wall {statistics.wall:.2f} s, ideal {ideal:.2f} s, {statistics.tasks_per_rank}")
        return (
            is_right(outcome, 80)
            and statistics.wall < bound
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
        return len(stolen) >= 2 and all(result[1] < end - 0.1 for result in stolen)

    on_pool(world, program)
