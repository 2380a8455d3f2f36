from __future__ import annotations

import pytest

from mpipar.runtime.machines.messages import (
    MASTER,
    Claim,
    Granted,
    Idle,
    Refused,
    Send,
    StealFrom,
    StealReply,
    StealRequest,
)
from mpipar.runtime.machines.task_deque import StealState, TaskDeque
from mpipar.runtime.stage import Task

TASKS = tuple(Task(number, number, None) for number in range(10))
NOTHING = frozenset()


def nothing_cached(block):
    return False


def stocked(count):
    deque = TaskDeque(1)
    deque.place(TASKS[:count], nothing_cached)
    return deque


def idle():
    deque = stocked(0)
    assert deque.report_idle() == [Send(MASTER, Idle(1))]
    return deque


def claiming(victim=3, tasks=TASKS[:2]):
    deque = idle()
    deque.on_steal_from(StealFrom(1, victim, 0.5))
    deque.on_steal_reply(victim, StealReply(1, tasks, NOTHING, 1))
    return deque


@pytest.mark.parametrize(
    ("has", "share", "left"),
    [(5, 0.5, 2), (4, 0.5, 2), (1, 0.5, 0), (1, 0.01, 0), (10, 0.8, 2), (10, 0.2, 8), (3, 1.0, 0)],
)
def test_thief_gets_its_share_rounded_up_from_the_far_end(has, share, left):
    deque = stocked(has)
    (reply,) = deque.on_steal_request(2, StealRequest(1, share), nothing_cached)
    assert reply == Send(2, StealReply(1, TASKS[left:has][::-1], NOTHING, 1))
    assert tuple(deque.tasks) == TASKS[:left]


def test_victim_says_which_blocks_it_can_hand_over():
    deque = stocked(2)
    (reply,) = deque.on_steal_request(2, StealRequest(1, 1.0), lambda block: block == 1)
    assert reply.message.cached == frozenset({1})


def test_victim_with_nothing_answers_so():
    assert stocked(0).on_steal_request(2, StealRequest(1, 0.5), nothing_cached) == [
        Send(2, StealReply(1, (), NOTHING, 1))
    ]


def test_victim_answers_only_once_it_has_heard_from_the_master():
    deque = TaskDeque(1)
    assert deque.on_steal_request(2, StealRequest(1, 0.5), nothing_cached) == []
    assert [s.rank for s in deque.place(TASKS[:2], nothing_cached)] == [2]
    assert tuple(deque.tasks) == TASKS[:1]


def test_tasks_whose_block_is_here_run_first():
    deque = TaskDeque(1)
    deque.place(TASKS[:4], lambda block: block in {2, 3})
    assert [task.id for task in deque.tasks] == [2, 3, 0, 1]


def test_idle_is_said_once():
    deque = idle()
    assert deque.report_idle() == []


def test_nothing_is_said_before_the_first_place():
    assert TaskDeque(1).report_idle() == []


def test_stolen_tasks_run_only_when_granted():
    deque = claiming()
    assert (deque.steal_state, tuple(deque.tasks)) == (StealState.CLAIMING, ())
    assert deque.report_idle() == []
    deque.on_granted(Granted(1, 1, (0, 1)))
    assert (deque.steal_state, tuple(deque.tasks)) == (StealState.BUSY, TASKS[:2])


def test_claim_may_be_granted_in_part():
    deque = claiming()
    deque.on_granted(Granted(1, 1, (1,)))
    assert deque.steal_state is StealState.CLAIMING
    deque.on_refused(Refused(1, 1, (0,)))
    assert (deque.steal_state, tuple(deque.tasks)) == (StealState.BUSY, TASKS[1:2])


def test_empty_answer_is_reported_with_what_the_victim_had_seen():
    deque = idle()
    deque.on_steal_from(StealFrom(1, 3, 0.5))
    sends = deque.on_steal_reply(3, StealReply(1, (), NOTHING, 4))
    assert sends == [Send(MASTER, Idle(1, empty_victim=3, seen=4))]
    assert deque.steal_state is StealState.IDLE


# The fates of a task in mid-steal


def test_steal_finished():
    deque = stocked(2)
    deque.tasks.popleft()  # ran, and is done
    (reply,) = deque.on_steal_request(2, StealRequest(1, 1.0), nothing_cached)
    assert reply.message.tasks == TASKS[1:2]


def test_steal_running():
    deque = stocked(1)
    deque.tasks.popleft()  # is running
    (reply,) = deque.on_steal_request(2, StealRequest(1, 1.0), nothing_cached)
    assert reply.message.tasks == ()


def test_steal_failed_and_placed_here_again():
    deque = stocked(1)
    deque.on_steal_request(2, StealRequest(1, 1.0), nothing_cached)
    deque.place(TASKS[:1], nothing_cached)  # the thief ran it, it failed, and came back
    assert deque.on_rank_lost(1, 2) == []  # so that it is not claimed back as well
    assert tuple(deque.tasks) == TASKS[:1]


def test_steal_rejected():
    deque = claiming()
    deque.on_refused(Refused(1, 1, (0, 1)))
    assert (deque.steal_state, tuple(deque.tasks)) == (StealState.BUSY, ())
    assert deque.report_idle() == [Send(MASTER, Idle(1))]


def test_steal_source_lost_before_it_answered():
    deque = idle()
    deque.on_steal_from(StealFrom(1, 3, 0.5))
    assert deque.on_rank_lost(1, 3) == [Send(MASTER, Idle(1))]
    assert deque.on_steal_reply(3, StealReply(1, TASKS[:2], NOTHING, 1)) == []


def test_steal_source_lost_after_it_answered():
    deque = claiming(victim=3)
    assert deque.on_rank_lost(1, 3) == []
    assert deque.steal_state is StealState.CLAIMING  # the master refuses, and it looks elsewhere


def test_steal_target_lost():
    deque = stocked(2)
    deque.on_steal_request(2, StealRequest(1, 1.0), nothing_cached)
    assert deque.on_rank_lost(1, 2) == [Send(MASTER, Claim(1, 1, 1, (1, 0)))]
    deque.on_granted(Granted(1, 1, (1,)))
    deque.on_refused(Refused(1, 1, (0,)))
    assert tuple(deque.tasks) == TASKS[1:2]


def test_steal_request_of_a_lost_thief_is_not_answered():
    deque = TaskDeque(1)
    deque.on_steal_request(2, StealRequest(1, 0.5), nothing_cached)
    deque.on_rank_lost(1, 2)
    assert deque.place(TASKS[:2], nothing_cached) == []


def test_task_in_two_claims_is_taken_once():
    deque = stocked(1)
    deque.on_steal_request(2, StealRequest(1, 1.0), nothing_cached)  # to 2, and from there to 3
    deque.report_idle()
    deque.on_steal_from(StealFrom(1, 3, 1.0))
    deque.on_steal_reply(3, StealReply(1, TASKS[:1], NOTHING, 1))  # and back from 3: claim 1
    deque.on_rank_lost(1, 2)  # claim 2
    deque.on_granted(Granted(1, 1, (0,)))
    deque.on_granted(Granted(1, 2, (0,)))
    assert tuple(deque.tasks) == TASKS[:1]


def test_place_ends_a_claim_of_the_same_task():
    deque = claiming(victim=3)
    deque.place(TASKS[:2], nothing_cached)
    deque.on_refused(Refused(1, 1, (0, 1)))
    assert tuple(deque.tasks) == TASKS[:2]
