from __future__ import annotations

import pytest

from mpipar.runtime.machines.messages import (
    BlockRequest,
    Forget,
    Knobs,
    NeedArrays,
    Place,
    Send,
    StealFrom,
    Unreachable,
    Welcome,
)
from mpipar.runtime.machines.peer_timeouts import PeerTimeouts, who_leaves
from mpipar.runtime.machines.worker import WorkerMachine


@pytest.fixture
def worker():
    return WorkerMachine(4, Welcome(1, 1 << 20, Knobs(), 1.0))


def times(waits, worker, seconds):
    """When something is sent, and what."""
    sent = [(at, send) for at in range(1, seconds + 1) for send in waits.pass_time(worker, 1.0)]
    return [at for at, _ in sent], [send for _, send in sent]


def begin(worker, serial):
    """Open a run, as if Begin had come."""
    worker.handle(0, Place(serial, ()))
    worker.run.begun = worker.run.prepared = True


def test_begin_that_does_not_come_is_asked_for_again_and_again(worker):
    worker.handle(0, Place(1, ()))
    at, sent = times(PeerTimeouts(4.0), worker, 30)
    assert at == [10, 19, 28]
    assert sent == 3 * [Send(0, NeedArrays(1, 4))]


def test_short_runs_without_begin_add_up(worker):
    waits = PeerTimeouts(4.0)
    for serial in range(1, 10):
        worker.handle(0, Place(serial, ()))
        assert not waits.pass_time(worker, 1.0)
        worker.handle(0, Forget(serial))
    worker.handle(0, Place(10, ()))
    assert waits.pass_time(worker, 1.0) == [Send(0, NeedArrays(10, 4))]


def test_begin_that_comes_ends_the_wait(worker):
    waits = PeerTimeouts(4.0)
    for serial in range(1, 30):
        worker.handle(0, Place(serial, ()))
        assert not waits.pass_time(worker, 1.0)
        begin(worker, serial)
        assert not waits.pass_time(worker, 1.0)
        worker.handle(0, Forget(serial))


def test_victim_that_does_not_answer_is_told_of(worker):
    begin(worker, 1)
    worker.run.deque.want()
    worker.handle(0, StealFrom(1, 7, 0.5))
    at, sent = times(PeerTimeouts(4.0), worker, 12)
    assert (at, sent) == ([10], [Send(0, Unreachable(1, 7))])


def test_many_steals_are_not_one_long_wait(worker):
    begin(worker, 1)
    waits, deque = PeerTimeouts(4.0), worker.run.deque
    for _ in range(30):
        deque.thief = type(deque.thief).HUNGRY
        worker.handle(0, StealFrom(1, 7, 0.5))
        assert not waits.pass_time(worker, 1.0)


def test_block_that_does_not_come_is_asked_of_rank_0_instead(worker):
    begin(worker, 1)
    worker.fetching = {3: 7, 5: 0}
    at, sent = times(PeerTimeouts(4.0), worker, 40)
    assert (at, sent) == ([10], [Send(0, BlockRequest(0, 3))])
    assert worker.fetching == {3: 0, 5: 0}


HOSTS = {1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}


def test_who_has_fewer_neighbours_leaves():
    assert who_leaves(1, 5, HOSTS) == who_leaves(5, 1, HOSTS) == 5


def test_of_equal_hosts_it_is_always_the_same_one():
    assert [who_leaves(a, b, HOSTS) for a in (1, 2) for b in (3, 4)] == [3, 4, 3, 4]
    assert who_leaves(1, 2, HOSTS) == 2
