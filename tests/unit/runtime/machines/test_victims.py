from __future__ import annotations

import random

import pytest

from mpipar.runtime.machines.loads import WorkerLoads
from mpipar.runtime.machines.victims import ALIKE, RAIDS, Victims


def market_of(*placed, done=1, seconds=1.0):
    """Rank 1 has placed[0] tasks and so on; all have done some already."""
    loads = WorkerLoads(range(1, len(placed) + 1))
    market = Victims(loads, threads=1)
    for rank, count in enumerate(placed, 1):
        loads.count(rank, done, seconds)
        give(loads, market, rank, count)
    return loads, market


def give(loads, market, rank, count):
    first = 1000 * rank + len(loads[rank].placed)
    loads.book(rank, range(first, first + count))
    market.note(rank, heard=True)


def take(loads, market, rank, count, seconds=1.0):
    loads.unbook(rank, list(loads[rank].placed)[:count])
    loads.count(rank, count, seconds)
    market.note(rank, heard=True)


def weight(loads, rank):
    load = loads[rank]
    return (len(load.placed) - 1) * loads.pace(rank) / (1 + load.raids)


def test_heaviest_victim_is_found_whatever_happened_before():
    dice = random.Random(2)
    loads, market = market_of(*[5] * 30, 0, seconds=1.0)
    loads.count(31, 10**6, 1.0)  # the thief is fast, so that every victim pays
    for _ in range(500):
        rank = dice.randint(1, 30)
        if len(loads[rank].placed) < 3 or dice.random() < 0.5:
            give(loads, market, rank, dice.randint(1, 4))
        else:
            take(loads, market, rank, 2, dice.random())
        market.ask(31)
        ((thief, victim),) = market.match()
        market.raid(31, None)
        assert thief == 31
        best = max(range(1, 31), key=lambda rank: weight(loads, rank))
        assert weight(loads, victim) >= ALIKE * weight(loads, best)


def test_few_thieves_are_sent_to_one_victim_and_the_next_when_one_is_back():
    _, market = market_of(100, *[0] * 50)
    for rank in range(2, 52):
        market.ask(rank)
    pairs = market.match()
    assert [victim for _, victim in pairs] == [1] * RAIDS
    assert market.match() == []
    market.raid(pairs[0][0], None)
    assert [victim for _, victim in market.match()] == [1]
    assert len(market.hungry) == 50 - RAIDS - 1


def test_no_more_thieves_go_than_there_is_to_take():
    _, market = market_of(3, 0, 0, 0)
    for rank in (2, 3, 4):
        market.ask(rank)
    assert len(market.match()) == 2


def test_fast_thief_is_served_first():
    loads, market = market_of(3, 0, 0)
    loads.count(3, 9, 0.1)
    market.ask(2)
    market.ask(3)
    loads[1].raids = 1
    assert market.match() == [(3, 1)]


def test_thief_that_is_lost_or_fed_frees_its_place():
    loads, market = market_of(2, 0, 0)
    market.ask(2)
    market.ask(3)
    assert market.match() == [(2, 1)]
    market.lose(2)
    loads.lose(2)
    market.feed(3)
    assert market.match() == []
    market.ask(3)
    assert market.match() == [(3, 1)]


def test_victim_that_is_lost_is_nobodys_victim():
    loads, market = market_of(9, 9, 0)
    market.lose(1)
    loads.lose(1)
    market.ask(3)
    assert market.match() == [(3, 2)]


@pytest.mark.parametrize("ranks", [50, 5000])
def test_a_message_is_as_much_work_with_many_ranks_as_with_few(ranks, monkeypatch):
    dice = random.Random(3)
    loads, market = market_of(*[dice.randint(2, 40) for _ in range(ranks)])
    looks = 0
    pace = WorkerLoads.pace

    def counted(self, rank):
        nonlocal looks
        looks += 1
        return pace(self, rank)

    monkeypatch.setattr(WorkerLoads, "pace", counted)
    for thief in dice.sample(range(1, ranks + 1), 40):
        take(loads, market, thief, len(loads[thief].placed))
        market.ask(thief)
        assert len(market.match()) == 1
    assert looks < 40 * 60


def test_what_is_remembered_does_not_grow_with_the_length_of_a_stream():
    loads, market = market_of(5, 0)
    for _ in range(1000):
        market.ask(2)
        market.feed(2)
        give(loads, market, 1, 1)
        take(loads, market, 1, 1)
    assert len(market._thieves) < 20
    assert len(market._heap) < 20
