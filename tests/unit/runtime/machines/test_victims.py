from __future__ import annotations

import random

import pytest

from mpipar.runtime.machines.loads import WorkerLoads
from mpipar.runtime.machines.victims import MOST_THIEVES, SIMILAR, Victims


def victims_of(*placed, done=1, seconds=1.0):
    """Rank 1 has placed[0] tasks and so on; all have done some already."""
    loads = WorkerLoads(range(1, len(placed) + 1))
    victims = Victims(loads, threads=1)
    for rank, count in enumerate(placed, 1):
        loads.count_done(rank, done, seconds)
        give(loads, victims, rank, count)
    return loads, victims


def give(loads, victims, rank, count):
    first = 1000 * rank + len(loads[rank].placed)
    loads.add_tasks(rank, range(first, first + count))
    victims.update(rank, heard=True)


def take(loads, victims, rank, count, seconds=1.0):
    loads.remove_tasks(rank, list(loads[rank].placed)[:count])
    loads.count_done(rank, count, seconds)
    victims.update(rank, heard=True)


def weight(loads, rank):
    load = loads[rank]
    return (len(load.placed) - 1) * loads.task_seconds(rank) / (1 + load.thieves)


def test_heaviest_victim_is_found_whatever_happened_before():
    dice = random.Random(2)
    loads, victims = victims_of(*[5] * 30, 0, seconds=1.0)
    loads.count_done(31, 10**6, 1.0)  # the thief is fast, so that every victim pays
    for _ in range(500):
        rank = dice.randint(1, 30)
        if len(loads[rank].placed) < 3 or dice.random() < 0.5:
            give(loads, victims, rank, dice.randint(1, 4))
        else:
            take(loads, victims, rank, 2, dice.random())
        victims.add_request(31)
        ((thief, victim),) = victims.match()
        victims.end_steal(31)
        assert thief == 31
        best = max(range(1, 31), key=lambda rank: weight(loads, rank))
        assert weight(loads, victim) >= SIMILAR * weight(loads, best)


def test_few_thieves_are_sent_to_one_victim_and_the_next_when_one_is_back():
    _, victims = victims_of(100, *[0] * 50)
    for rank in range(2, 52):
        victims.add_request(rank)
    pairs = victims.match()
    assert [victim for _, victim in pairs] == [1] * MOST_THIEVES
    assert victims.match() == []
    victims.end_steal(pairs[0][0])
    assert [victim for _, victim in victims.match()] == [1]
    assert len(victims.requests) == 50 - MOST_THIEVES - 1


def test_no_more_thieves_go_than_there_is_to_take():
    _, victims = victims_of(3, 0, 0, 0)
    for rank in (2, 3, 4):
        victims.add_request(rank)
    assert len(victims.match()) == 2


def test_fast_thief_is_served_first():
    loads, victims = victims_of(3, 0, 0)
    loads.count_done(3, 9, 0.1)
    victims.add_request(2)
    victims.add_request(3)
    loads[1].thieves = 1
    assert victims.match() == [(3, 1)]


def test_thief_that_is_lost_or_has_tasks_frees_its_place():
    loads, victims = victims_of(2, 0, 0)
    victims.add_request(2)
    victims.add_request(3)
    assert victims.match() == [(2, 1)]
    victims.rank_lost(2)
    loads.rank_lost(2)
    victims.remove_request(3)
    assert victims.match() == []
    victims.add_request(3)
    assert victims.match() == [(3, 1)]


def test_victim_that_is_lost_is_nobodys_victim():
    loads, victims = victims_of(9, 9, 0)
    victims.rank_lost(1)
    loads.rank_lost(1)
    victims.add_request(3)
    assert victims.match() == [(3, 2)]


@pytest.mark.parametrize("ranks", [50, 5000])
def test_a_message_is_as_much_work_with_many_ranks_as_with_few(ranks, monkeypatch):
    dice = random.Random(3)
    loads, victims = victims_of(*[dice.randint(2, 40) for _ in range(ranks)])
    looks = 0
    task_seconds = WorkerLoads.task_seconds

    def counted(self, rank):
        nonlocal looks
        looks += 1
        return task_seconds(self, rank)

    monkeypatch.setattr(WorkerLoads, "task_seconds", counted)
    for thief in dice.sample(range(1, ranks + 1), 40):
        take(loads, victims, thief, len(loads[thief].placed))
        victims.add_request(thief)
        assert len(victims.match()) == 1
    assert looks < 40 * 60


def test_what_is_remembered_does_not_grow_with_the_length_of_a_stream():
    loads, victims = victims_of(5, 0)
    for _ in range(1000):
        victims.add_request(2)
        victims.remove_request(2)
        give(loads, victims, 1, 1)
        take(loads, victims, 1, 1)
    assert len(victims._queue) < 20
    assert len(victims._by_weight) < 20
