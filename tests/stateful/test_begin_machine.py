"""Begin reaches every live worker: any hosts, any order of delivery, deaths at any moment.

No task is ever computed, so a run cannot end before all have heard of it.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpipar.runtime.machines.messages import MASTER, Begin, NeedArrays, Place
from mpipar.runtime.stage import Task
from tests.support.loopback import Cluster, Ledger

TASKS = [Task(0, None, None)]


def play(cluster, dice, deaths):
    """Deliver messages in any order, and let workers die and be missed in between."""
    begins = Counter()
    while cluster.busy_wires() or deaths or cluster.unnoticed:
        choices = ["deliver"] * 4 * bool(cluster.busy_wires())
        choices += ["die"] * bool(deaths) + ["notice"] * bool(cluster.unnoticed)
        match dice.choice(choices):
            case "deliver":
                wire = dice.choice(cluster.busy_wires())
                if isinstance(cluster.wires[wire][0], Begin):
                    begins[wire] += 1
                cluster.deliver(wire)
            case "die":
                cluster.die(deaths.pop(), dice)
            case _:
                cluster.notice()
    return begins


@given(
    workers=st.integers(1, 14),
    hosts=st.integers(1, 5),
    blind=st.sets(st.integers(1, 14)),
    deaths=st.lists(st.integers(1, 14), unique=True),
    seed=st.integers(0, 10**6),
)
def test_every_live_worker_hears_of_the_run(workers, hosts, blind, deaths, seed):
    cluster = Cluster(workers, hosts=hosts, blind=blind)
    cluster.begin(Ledger(1), TASKS)
    play(cluster, random.Random(seed), [rank for rank in deaths if rank <= workers])
    assert all(worker.run.begun for worker in cluster.workers.values())


@given(st.integers(1, 14), st.integers(1, 5), st.integers(0, 10**6))
def test_without_losses_each_hears_once_and_each_host_from_outside_once(workers, hosts, seed):
    cluster = Cluster(workers, hosts=hosts)
    cluster.begin(Ledger(1), TASKS)
    begins = play(cluster, random.Random(seed), [])
    assert Counter(rank for _, rank in begins) == Counter(range(1, workers + 1))
    outside = [(a, b) for a, b in begins if a % hosts != b % hosts]
    assert len(outside) == min(hosts, workers + 1) - 1


@given(st.integers(2, 14), st.sets(st.integers(1, 14), min_size=1), st.integers(0, 10**6))
def test_who_is_blind_asks_once_and_is_sent_arrays_from_then_on(workers, blind, seed):
    cluster = Cluster(workers, blind=blind)
    asked = []
    plain = cluster.master.handle
    cluster.master.handle = lambda source, message: (
        (asked.append(source) if isinstance(message, NeedArrays) else None)
        or plain(source, message)
    )
    for _ in range(3):
        run = cluster.begin(Ledger(1), TASKS)
        play(cluster, random.Random(seed), [])
        assert all(worker.run.begun for worker in cluster.workers.values())
        assert not run.over
        cluster.end()
        play(cluster, random.Random(seed), [])
    assert max(Counter(asked).values(), default=0) <= 1
    assert set(asked) <= blind
    first = min(blind)
    if first == 1 <= workers:  # a child of rank 0, which lends
        assert 1 in asked


@pytest.mark.parametrize("known_first", [False, True])
def test_nobody_is_blind_for_not_having_found_what_a_dead_rank_had_lent(known_first):
    cluster = Cluster(5, blind={4})
    cluster.begin(Ledger(1), TASKS)
    cluster.deliver((MASTER, 1))
    assert isinstance(cluster.wires[1, 4][0], Begin)
    cluster.deliver((1, 4))
    if known_first:
        cluster.lose(1)
        cluster.deliver((4, MASTER))
    else:
        cluster.deliver((4, MASTER))
        cluster.lose(1)
    cluster.end()
    run = cluster.begin(Ledger(1), TASKS)
    assert run.begin.tree == ((0, 2, 3, 4, 5),)
    assert Place in {type(message) for message in cluster.wires[MASTER, 4]}
