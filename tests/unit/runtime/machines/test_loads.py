from __future__ import annotations

import random

from mpipar.runtime.machines.loads import WorkerLoads


def test_ranks_come_by_what_they_have_whatever_happened_before():
    dice = random.Random(1)
    loads = WorkerLoads(range(1, 9))
    for step in range(2000):
        rank = dice.choice(list(loads))
        if dice.random() < 0.55:
            loads.add_tasks(rank, range(step, step + dice.randint(1, 3)))
        else:
            some = list(loads[rank].placed)
            loads.remove_tasks(rank, some[: dice.randint(0, 5)])
        if step % 400 == 399:
            loads.rank_lost(rank)
        elif step % 600 == 599:
            loads.rank_joined(step)
        found = list(loads.least_loaded_first())
        assert sorted(found) == sorted(loads)
        counts = [len(loads[rank].placed) for rank in found]
        assert counts == sorted(counts)
        assert loads.running == sum(count > 0 for count in counts)


def test_tasks_that_are_placed_already_change_nothing():
    loads = WorkerLoads([1, 2])
    loads.add_tasks(1, [5])
    loads.add_tasks(1, [5])
    assert (list(loads.least_loaded_first()), len(loads[1].placed)) == ([2, 1], 1)


def test_nobody_is_left_to_need_anything():
    loads = WorkerLoads([1])
    loads.rank_lost(1)
    assert list(loads.least_loaded_first()) == []


def test_mean_counts_those_that_are_lost_too():
    loads = WorkerLoads([1, 2])
    assert loads.mean_seconds() == 0
    loads.count_done(1, 3, 0.3)
    loads.count_done(2, 1, 0.5)
    loads.rank_lost(1)
    assert loads.mean_seconds() == 0.2


def test_results_that_wait_at_a_worker_are_taken_off_what_it_has():
    loads = WorkerLoads([1], report_delay=5.0)
    loads.count_done(1, 4, 4.0)
    loads.add_tasks(1, range(9))
    assert (loads.not_started(1), loads.task_seconds(1)) == (8, 1.0)
    loads.now = 3.0
    assert (loads.not_started(1), loads.task_seconds(1)) == (5, 1.0)
    loads.now = 7.0  # it would have reported what it had done, so it is slow
    assert (loads.not_started(1), loads.task_seconds(1)) == (8, 2.0)


def test_pace_is_what_was_measured_or_a_silence_that_is_longer():
    loads = WorkerLoads([1, 2])
    loads.count_done(1, 2, 1.0)
    assert (loads.task_seconds(1), loads.task_seconds(2)) == (
        0.5,
        0.5,
    )  # of 2 only the mean is known
    loads.now = 3.0
    assert loads.task_seconds(1) == 0.5  # it has nothing to be silent about
    loads.add_tasks(1, [7])
    assert loads.task_seconds(1) == 3.0
