from __future__ import annotations

import pytest

from mpipar.runtime.machines.messages import (
    Beat,
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
from mpipar.runtime.machines.peer_timeouts import LONG, PeerTimeouts, PeerWait
from mpipar.runtime.machines.worker import WorkerMachine


@pytest.fixture
def worker():
    return WorkerMachine(4, Welcome(1, 1 << 20, Knobs(), 1.0), patience=4.0)


def tick(worker):
    """Let a second pass in which rank 0 is heard; return what is sent, but for Beats."""
    worker.handle(0, Beat(0))
    return [send for send in worker.tick(1.0) if not isinstance(send.message, Beat)]


def times(worker, seconds):
    """When something is sent, and what."""
    sent = [(at, send) for at in range(1, seconds + 1) for send in tick(worker)]
    return [at for at, _ in sent], [send for _, send in sent]


def begin(worker, serial):
    """Open a run, as if Begin had come."""
    worker.handle(0, Place(serial, ()))
    worker.run.begun = worker.run.prepared = True


def test_begin_that_does_not_come_is_asked_for_again_and_again(worker):
    worker.handle(0, Place(1, ()))
    at, sent = times(worker, 30)
    assert at == [10, 19, 28]
    assert sent == 3 * [Send(0, NeedArrays(1, 4))]


def test_short_runs_without_begin_add_up(worker):
    for serial in range(1, 10):
        worker.handle(0, Place(serial, ()))
        assert not tick(worker)
        worker.handle(0, Forget(serial))
    worker.handle(0, Place(10, ()))
    assert tick(worker) == [Send(0, NeedArrays(10, 4))]


def test_begin_that_comes_ends_the_wait(worker):
    for serial in range(1, 30):
        worker.handle(0, Place(serial, ()))
        assert not tick(worker)
        begin(worker, serial)
        assert not tick(worker)
        worker.handle(0, Forget(serial))


def test_victim_that_does_not_answer_is_told_of(worker):
    begin(worker, 1)
    worker.run.deque.report_idle()
    worker.handle(0, StealFrom(1, 7, 0.5))
    at, sent = times(worker, 12)
    assert (at, sent) == ([10], [Send(0, Unreachable(1, 7))])


def test_many_steals_are_not_one_long_wait(worker):
    begin(worker, 1)
    deque = worker.run.deque
    for _ in range(30):
        deque.steal_state = type(deque.steal_state).IDLE
        worker.handle(0, StealFrom(1, 7, 0.5))
        assert not tick(worker)


def test_block_that_does_not_come_is_asked_of_rank_0_instead(worker):
    begin(worker, 1)
    worker.blocks.fetching = {3: 7, 5: 0}
    at, sent = times(worker, 40)
    assert (at, sent) == ([10], [Send(0, BlockRequest(0, 3))])
    assert worker.blocks.fetching == {3: 0, 5: 0}


def test_what_is_late_is_told_once_and_then_awaited_anew():
    timeouts, wait = PeerTimeouts(2.0), PeerWait("block", 7, (3,))
    late = [at for at in range(1, 60) if timeouts.tick([wait], 0.25)]
    assert late == [18, 35, 52]
    assert late[0] * 0.25 > 2.0 * LONG
