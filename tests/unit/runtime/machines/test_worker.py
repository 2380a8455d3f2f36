from __future__ import annotations

import numpy as np
import pytest

from mpipar.runtime.machines.caught_error import (
    CaughtError,
)
from mpipar.runtime.machines.messages import (
    MASTER,
    Begin,
    BlockMiss,
    BlockReply,
    BlockRequest,
    Bye,
    Claim,
    Collect,
    Finished,
    Forget,
    Granted,
    Idle,
    Knobs,
    Place,
    RankLost,
    Send,
    StealFrom,
    StealReply,
    StealRequest,
    Stop,
    TaskFailed,
    TaskStarted,
    Welcome,
)
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    Drop,
    Gather,
    Prepare,
    Prepared,
)
from mpipar.runtime.machines.worker import WorkerMachine
from mpipar.runtime.machines.worker_run import BATCH_TASKS
from mpipar.runtime.stage import Stage, Task

NOTHING = frozenset()
ARRAYS = {"x": np.zeros(4)}


class Plain(Stage):
    def run(self, task, block, state):
        return None


STAGE = Plain()
BEGIN = Begin(1, 1, STAGE, {}, ((0, 1),))


def plain(count, first=0):
    return tuple(Task(number, None, None) for number in range(first, first + count))


def blocks(count):
    return tuple(Task(number, number, None) for number in range(count))


def ready(tasks, threads=1, begin=BEGIN, rank=1, size=1):
    """Return a worker that has begun a run and has these tasks, and what it then did."""
    worker = WorkerMachine(rank, Welcome(threads, 1 << 20, Knobs(), 1.0), size=size)
    worker.handle(MASTER, begin)
    worker.handle(MASTER, Place(1, tasks))
    return worker, worker.react(Prepared(1))


def test_begin_is_passed_on_before_the_stage_is_started():
    worker = WorkerMachine(1, Welcome(1, 0, Knobs(), 1.0))
    begin = Begin(1, 1, STAGE, {}, ((0, 1, 2, 3, 4, 5, 6, 7),))
    assert worker.handle(MASTER, begin) == [
        Send(4, begin),
        Send(5, begin),
        Send(6, begin),
        Prepare(1, STAGE, {}),
    ]
    assert worker.handle(2, begin) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_tasks_start_as_there_are_threads(threads):
    _, actions = ready(plain(5), threads)
    assert actions == [Compute(1, ((task, None),)) for task in plain(threads)]


def test_place_may_come_before_begin():
    worker = WorkerMachine(1, Welcome(1, 0, Knobs(), 1.0))
    assert worker.handle(MASTER, Place(1, plain(2))) == []
    worker.handle(2, BEGIN)
    assert worker.react(Prepared(1)) == [Compute(1, ((plain(1)[0], None),))]


def test_finished_tasks_are_reported_together_before_anything_else():
    worker, _ = ready(plain(2), threads=2)
    worker.react(Computed(1, ((0, "a"),), 0.5))
    idle = worker.react(Computed(1, ((1, "b"),), 0.25))
    assert worker.report() == [Finished(1, ((0, "a"), (1, "b")), 0.75)]
    assert worker.report() == []
    assert idle == []  # said already, when the first thread became free


MANY = 20_000
"""Ranks, of which each reports every other second; rank 64 is to wait that long for the first."""


def test_report_that_is_not_due_waits_as_long_as_there_are_tasks():
    worker, _ = ready(plain(3), rank=64, size=MANY)
    worker.react(Computed(1, ((0, "a"),), 0.5))
    assert worker.report() == []
    worker.react(Computed(1, ((1, "b"),), 0.5))
    assert worker.report() == [Finished(1, ((0, "a"), (1, "b")), 1.0)]


def test_report_that_is_due_waits_no_longer():
    worker, _ = ready(plain(9), rank=64, size=MANY)
    worker.react(Computed(1, ((0, "a"),), 0.5))
    worker.tick(1.9)
    assert worker.report() == []
    assert 0 < worker.seconds_to_tick < 0.2
    worker.tick(0.2)
    assert worker.report() == [Finished(1, ((0, "a"),), 0.5)]
    worker.react(Computed(1, ((1, "b"),), 0.5))
    assert worker.report() == []


def test_report_of_much_does_not_wait():
    worker, _ = ready(plain(3), rank=64, size=MANY)
    worker.most_results = 1
    worker.react(Computed(1, ((0, "a"),), 0.5))
    assert worker.report() == [Finished(1, ((0, "a"),), 0.5)]


def test_free_thread_says_idle():
    worker, _ = ready(plain(1))
    assert worker.react(Computed(1, ((0, "a"),), 0.5)) == [Send(MASTER, Idle(1))]


def test_short_tasks_are_started_in_bursts():
    worker, _ = ready(plain(2000))
    first, second = worker.react(Computed(1, ((0, None),), 1e-6))
    assert (len(first.work), len(second.work)) == (BATCH_TASKS, 999)
    slow, _ = ready(plain(200))
    (only,) = slow.react(Computed(1, ((0, None),), 0.1))
    assert len(only.work) == 1


def test_large_results_are_reported_and_computed_a_few_at_a_time():
    worker, _ = ready(plain(50))
    worker.most_results = 2
    first, second = worker.react(Computed(1, ((0, None),), 1e-6))
    assert (len(first.work), len(second.work)) == (2, 2)
    worker.react(Computed(1, ((1, None), (2, None)), 1e-6))
    assert [len(message.results) for message in worker.report()] == [2, 1]


def test_nothing_begins_while_much_waits_to_leave():
    worker, _ = ready(plain(9))
    worker.congest(True)
    assert worker.react(Computed(1, ((0, None),), 0.1)) == []
    (order,) = worker.congest(False)
    assert order.work == ((plain(2)[1], None),)


def test_tasks_that_come_back_run_next():
    worker, _ = ready(plain(5))
    worker.react(Computed(1, ((0, None),), 1e-3))
    left = tuple(plain(3)[1:])
    worker.react(Computed(1, (), 0.1, (), left))
    (order,) = worker.react(Computed(1, ((3, None), (4, None)), 0.1))
    assert order.work == ((left[0], None),)
    assert worker.run.running == {1}


def test_suspect_runs_first_and_alone_and_cannot_be_stolen():
    worker, _ = ready(plain(1))
    suspects = tuple(Task(number, None, None) for number in (7, 8))
    assert worker.handle(MASTER, Place(1, suspects, alone=True)) == []
    (reply,) = worker.handle(2, StealRequest(1, 1.0))
    assert reply.message.tasks == ()
    started, order = worker.react(Computed(1, ((0, None),), 1e-6))
    assert started == Send(MASTER, TaskStarted(1, 7))
    assert order == Compute(1, ((suspects[0], None),))


def test_failed_task_is_reported_as_text():
    worker, _ = ready(plain(1))
    actions = worker.react(Computed(1, (), 0.5, ((0, CaughtError("ValueError", "no", "trace")),)))
    assert actions[0] == Send(MASTER, TaskFailed(1, 0, "ValueError", "no", "trace"))
    assert worker.report() == []


# Blocks


def test_blocks_are_fetched_ahead_and_tasks_wait_for_theirs():
    worker, actions = ready(blocks(9))
    assert actions == [Send(MASTER, BlockRequest(1, block)) for block in range(3)]
    started = worker.handle(MASTER, BlockReply(1, 1, ARRAYS))
    assert started[0] == Compute(1, ((Task(1, 1, None), ARRAYS),))
    assert Send(MASTER, BlockRequest(1, 3)) in started


def test_cached_block_is_not_asked_for_again():
    worker, _ = ready(blocks(1))
    worker.handle(MASTER, BlockReply(1, 0, ARRAYS))
    worker.react(Computed(1, ((0, None),), 0.1))
    worker.handle(MASTER, Begin(2, 1, STAGE, {}, ((0, 1),)))
    worker.handle(MASTER, Place(2, blocks(1)))
    assert worker.react(Prepared(2)) == [Compute(2, ((Task(0, 0, None), ARRAYS),))]


def test_new_generation_voids_the_cache():
    worker, _ = ready(blocks(1))
    worker.handle(MASTER, BlockReply(1, 0, ARRAYS))
    worker.handle(MASTER, Begin(2, 2, STAGE, {}, ((0, 1),)))
    worker.handle(MASTER, Place(2, blocks(1)))
    assert Send(MASTER, BlockRequest(2, 0)) in worker.react(Prepared(2))
    assert worker.handle(MASTER, BlockReply(1, 0, ARRAYS)) == []


def test_peer_gets_a_cached_block_or_hears_that_it_is_gone():
    worker, _ = ready(blocks(1))
    worker.handle(MASTER, BlockReply(1, 0, ARRAYS))
    assert worker.handle(2, BlockRequest(1, 0)) == [Send(2, BlockReply(1, 0, ARRAYS))]
    assert worker.handle(2, BlockRequest(1, 5)) == [Send(2, BlockMiss(1, 5))]
    assert worker.handle(2, BlockRequest(7, 0)) == [Send(2, BlockMiss(7, 0))]


def test_peer_gets_a_block_that_is_on_its_way_from_rank_0_when_it_comes():
    worker, _ = ready(blocks(9))
    given = worker.handle(2, StealRequest(1, 1.0))[0].message
    assert given.cached == {0, 1, 2}, "rank 0 has been asked for these"
    assert worker.handle(2, BlockRequest(1, 1)) == []
    assert worker.handle(2, BlockRequest(1, 1)) == []
    assert worker.handle(3, BlockRequest(1, 1)) == []
    reply = BlockReply(1, 1, ARRAYS)
    assert worker.handle(MASTER, reply) == [Send(2, reply), Send(3, reply)]
    assert worker.handle(MASTER, reply) == []


def test_a_block_is_not_owed_to_a_lost_peer_or_after_the_run():
    worker, _ = ready(blocks(9))
    for peer in (2, 3):
        assert worker.handle(peer, BlockRequest(1, 1)) == []
    worker.handle(MASTER, RankLost(2))
    worker.handle(MASTER, BlockReply(1, 0, ARRAYS))
    assert Send(3, BlockReply(1, 1, ARRAYS)) in worker.handle(MASTER, BlockReply(1, 1, ARRAYS))
    worker.handle(3, BlockRequest(1, 2))
    worker.handle(MASTER, Forget(1))
    assert worker.handle(MASTER, BlockReply(1, 2, ARRAYS)) == []


def test_two_workers_never_await_each_others_blocks():
    worker, _ = ready(())
    worker.handle(MASTER, StealFrom(1, 3, 0.5))
    worker.handle(3, StealReply(1, blocks(1), frozenset({0}), 1))
    assert worker.handle(2, BlockRequest(1, 0)) == [Send(2, BlockMiss(1, 0))]


def test_stolen_blocks_are_fetched_from_the_victim_before_the_claim_is_granted():
    worker, _ = ready(())
    worker.handle(MASTER, StealFrom(1, 3, 0.5))
    reply = StealReply(1, blocks(1), frozenset({0}), 1)
    assert worker.handle(3, reply) == [
        Send(MASTER, Claim(1, 1, 3, (0,))),
        Send(3, BlockRequest(1, 0)),
    ]
    assert worker.handle(3, BlockMiss(1, 0)) == [Send(MASTER, BlockRequest(1, 0))]
    worker.handle(MASTER, BlockReply(1, 0, ARRAYS))
    assert worker.handle(MASTER, Granted(1, 1, (0,))) == [Compute(1, ((blocks(1)[0], ARRAYS),))]


def test_block_from_a_peer_is_counted():
    worker, _ = ready(())
    worker.handle(MASTER, StealFrom(1, 3, 0.5))
    worker.handle(3, StealReply(1, blocks(1), frozenset({0}), 1))
    worker.handle(3, BlockReply(1, 0, ARRAYS))
    worker.handle(MASTER, Granted(1, 1, (0,)))
    worker.react(Computed(1, ((0, None),), 0.1))
    assert worker.report()[0].peer_blocks == 1


def test_block_of_a_lost_peer_is_asked_of_the_master():
    worker, _ = ready(())
    worker.handle(MASTER, StealFrom(1, 3, 0.5))
    worker.handle(3, StealReply(1, blocks(1), frozenset({0}), 1))
    assert Send(MASTER, BlockRequest(1, 0)) in worker.handle(MASTER, RankLost(3))
    assert worker.handle(3, BlockReply(1, 0, ARRAYS)) == []


def test_unanswered_request_of_an_old_run_is_made_again():
    worker, _ = ready(blocks(1))
    worker.handle(MASTER, Forget(1))
    worker.handle(MASTER, Begin(2, 1, STAGE, {}, ((0, 1),)))
    worker.handle(MASTER, Place(2, blocks(1)))
    assert Send(MASTER, BlockRequest(1, 0)) in worker.react(Prepared(2))


# Stealing and the end


def test_running_task_is_never_given_away():
    worker, _ = ready(plain(2))
    (reply,) = worker.handle(2, StealRequest(1, 1.0))
    assert reply.message.tasks == plain(1, first=1)


def test_thief_of_a_run_that_is_over_here_gets_nothing():
    worker, _ = ready(plain(3))
    assert worker.handle(MASTER, Forget(1)) == [Drop(1)]
    assert worker.handle(2, StealRequest(1, 1.0)) == [Send(2, StealReply(1, (), NOTHING, 0))]


def test_message_of_a_run_that_is_over_does_nothing():
    worker, _ = ready(plain(3))
    worker.handle(MASTER, Begin(2, 1, STAGE, {}, ((0, 1),)))
    for late in (Place(1, plain(1)), Granted(1, 1, (0,)), Collect(1, 1), Forget(1), BEGIN):
        assert worker.handle(MASTER, late) == []
    assert worker.react(Computed(1, ((0, None),), 0.1)) == []
    assert worker.react(Prepared(1)) == [Drop(1)]


def test_forget_may_come_before_begin():
    worker = WorkerMachine(1, Welcome(1, 0, Knobs(), 1.0))
    worker.handle(MASTER, Forget(1))
    assert worker.handle(2, BEGIN) == []


def test_sums_are_gathered_once_the_stage_has_started():
    worker = WorkerMachine(1, Welcome(1, 0, Knobs(), 1.0))
    assert worker.handle(MASTER, Collect(1, 1)) == []
    worker.handle(MASTER, BEGIN)
    assert worker.react(Prepared(1)) == [Gather(1, 1)]


def test_stop_is_answered_with_bye():
    worker, _ = ready(plain(2))
    assert worker.handle(MASTER, Stop()) == [Send(MASTER, Bye())]
    assert worker.stopped
