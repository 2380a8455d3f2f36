from __future__ import annotations

import random

import pytest

from mpipar.errors import ProtocolError
from mpipar.runtime.machines.messages import (
    Claim,
    Granted,
    Idle,
    Place,
    Refused,
    Send,
    StealFrom,
    TaskFailed,
    TaskOverdue,
    TaskStarted,
)
from mpipar.runtime.machines.scheduler import Scheduler
from mpipar.runtime.machines.task_state import NEXT, TaskEvent, TaskState, TrackedTask
from mpipar.runtime.stage import QUARANTINED, TIMEOUT, GivenUpTask, Policy, Task


def tasks(count):
    return [Task(number, number, None) for number in range(count)]


def started(count, ranks=(1, 2), home=None, **how):
    scheduler = Scheduler(1, ranks, **how)
    sends = scheduler.add(tasks(count), home or {})
    placed = {send.rank: [task.id for task in send.message.tasks] for send in sends}
    return scheduler, placed


def numbers(sends):
    return [(send.rank, [task.id for task in send.message.tasks]) for send in sends]


def failed(task):
    return TaskFailed(1, task, "ValueError", "no", "")


# Placement


def test_tasks_are_placed_evenly_in_runs_of_neighbours():
    _, placed = started(7, ranks=(1, 2, 3))
    assert placed == {1: [0, 1, 2], 2: [3, 4], 3: [5, 6]}


def test_every_rank_hears_even_with_fewer_tasks_than_ranks():
    _, placed = started(1, ranks=(1, 2, 3))
    assert placed == {1: [0], 2: [], 3: []}


def test_blocks_go_where_they_are_cached_and_the_rest_level_out():
    _, placed = started(8, ranks=(1, 2, 3), home={0: 2, 5: 2, 6: 2, 7: 9})
    assert placed == {1: [1, 2, 3], 2: [0, 5, 6], 3: [4, 7]}


def test_shuffled_placement_is_repeatable_and_complete():
    first = started(20, dice=random.Random(3))[1]
    assert first == started(20, dice=random.Random(3))[1]
    assert first != started(20)[1]
    assert sorted(first[1] + first[2]) == list(range(20))


# The states of a task


@pytest.mark.parametrize("event", list(TaskEvent))
@pytest.mark.parametrize("state", list(TaskState))
def test_illegal_move_raises_and_changes_nothing(state, event):
    tracked = TrackedTask(Task(4, None, None), state, None if state is TaskState.WAITING else 1)
    if (state, event) in NEXT:
        tracked.move(event, 1)
        assert tracked.state is NEXT[state, event]
        return
    with pytest.raises(ProtocolError, match="task 4 cannot take"):
        tracked.move(event, 1)
    assert (tracked.state, tracked.history) == (state, ())


def test_only_the_owner_can_finish_a_task_and_the_error_tells_its_history():
    scheduler, _ = started(2)
    with pytest.raises(ProtocolError, match="ASSIGNED 1"):
        scheduler.finish(2, [0], 0.1)
    assert scheduler.tasks[0].state is TaskState.PLACED


def test_finished_task_is_held_until_it_is_banked():
    scheduler, _ = started(2)
    scheduler.finish(1, [0], 0.1)
    scheduler.finish(2, [1], 0.1)
    assert scheduler.all_finished
    assert scheduler.holders() == {1, 2}
    scheduler.bank()
    assert {tracked.state for tracked in scheduler.tasks.values()} == {TaskState.DONE}


# Stealing


def test_idle_rank_is_sent_to_the_busiest():
    scheduler, _ = started(12, ranks=(1, 2, 3))
    scheduler.finish(1, [0, 1, 2, 3], 0.4)
    scheduler.finish(3, [8], 0.1)
    assert scheduler.idle(1, Idle(1)) == [Send(1, StealFrom(1, 2, 0.5))]


def test_work_is_weighted_with_the_measured_time_of_a_task():
    scheduler, _ = started(12, ranks=(1, 2, 3))
    scheduler.finish(1, [0, 1, 2, 3], 0.4)
    scheduler.finish(2, [4], 0.1)
    scheduler.finish(3, [8], 0.4)
    (send,) = scheduler.idle(1, Idle(1))
    assert send.message.victim == 3
    assert send.message.share == pytest.approx(0.8)  # four times as fast: four of five


def test_second_thief_is_sent_elsewhere():
    scheduler, _ = started(12, ranks=(1, 2, 3, 4))
    scheduler.finish(1, [0, 1, 2], 0.3)
    scheduler.finish(2, [3, 4, 5], 0.3)
    (one,) = scheduler.idle(1, Idle(1))
    (two,) = scheduler.idle(2, Idle(1))
    assert {one.message.victim, two.message.victim} == {3, 4}


def test_running_task_is_nothing_to_steal():
    scheduler, _ = started(3)
    scheduler.finish(1, [0, 1], 0.2)
    assert scheduler.idle(1, Idle(1)) == []  # task 2 has surely been started
    scheduler, _ = started(3, threads=2)
    scheduler.finish(1, [0], 0.1)
    assert scheduler.idle(1, Idle(1)) == []


def test_slow_thief_does_not_take_what_its_victim_does_sooner():
    scheduler, _ = started(8)
    scheduler.finish(1, [0, 1, 2, 3], 4.0)
    scheduler.finish(2, [4, 5], 0.2)
    assert scheduler.idle(1, Idle(1)) == []


def test_victim_that_has_been_silent_for_long_is_asked_after_all():
    scheduler, _ = started(8)
    scheduler.finish(1, [0, 1, 2, 3], 4.0)
    scheduler.finish(2, [4, 5], 0.2)
    scheduler.idle(1, Idle(1))
    assert scheduler.tick(0.3) == []
    assert [send.message.victim for send in scheduler.tick(1.0)] == [2]


def test_claim_moves_a_task_and_the_thief_owns_it():
    scheduler, _ = started(4)
    assert scheduler.claim(2, Claim(1, 1, 1, (1,))) == [Send(2, Granted(1, 1, (1,)))]
    assert scheduler.tasks[1].rank == 2
    assert (scheduler.steals, scheduler.stolen) == (1, 1)


def test_claim_on_a_task_that_is_elsewhere_is_refused():
    scheduler, _ = started(4, ranks=(1, 2, 3))
    scheduler.claim(2, Claim(1, 1, 1, (1,)))
    scheduler.finish(1, [0], 0.1)
    answer = scheduler.claim(3, Claim(1, 7, 1, (0, 1)))
    assert answer == [Send(3, Refused(1, 7, (0, 1)))]


def test_victim_that_had_nothing_is_not_asked_again_until_it_gets_more():
    scheduler, _ = started(12, ranks=(1, 2))
    scheduler.finish(1, range(6), 0.6)
    scheduler.idle(1, Idle(1))
    assert scheduler.idle(1, Idle(1, empty_victim=2, seen=1)) == []
    scheduler.fail(2, failed(6))  # comes to rank 1, which has work again
    assert scheduler.tasks[6].rank == 1


def test_victim_is_asked_again_if_work_was_on_its_way_to_it():
    scheduler, _ = started(12, ranks=(1, 2, 3))
    scheduler.finish(1, range(4), 0.4)
    scheduler.claim(2, Claim(1, 1, 3, (11,)))
    (first,) = scheduler.idle(1, Idle(1))
    assert first.message.victim == 2
    (again,) = scheduler.idle(1, Idle(1, empty_victim=2, seen=1))
    assert again.message.victim == 2
    (other,) = scheduler.idle(1, Idle(1, empty_victim=2, seen=2))
    assert other.message.victim == 3


def test_victim_that_had_nothing_is_asked_again_once_it_got_more():
    scheduler, _ = started(12, ranks=(1, 2))
    scheduler.finish(1, range(6), 0.6)
    scheduler.idle(1, Idle(1))
    assert scheduler.idle(1, Idle(1, empty_victim=2, seen=1)) == []
    granted, steal = scheduler.claim(2, Claim(1, 1, 2, (6,)))  # back from a thief that is lost
    assert granted == Send(2, Granted(1, 1, (6,)))
    assert (steal.rank, steal.message.victim) == (1, 2)


def test_rank_is_not_silent_before_it_has_tasks():
    scheduler, _ = started(4)
    scheduler.finish(1, [0, 1], 1.0)
    scheduler.tick(50.0)
    scheduler.add_more([Task(4, None, None)])
    assert scheduler.loads.task_seconds(1) == 0.5


def test_idle_rank_is_told_when_work_appears():
    scheduler, _ = started(6, ranks=(1, 2, 3))
    scheduler.finish(1, [0, 1], 0.2)
    scheduler.finish(2, [2], 0.1)
    scheduler.finish(3, [4], 0.1)
    assert scheduler.idle(1, Idle(1)) == []
    assert numbers(scheduler.rank_lost(3)) == [(1, [4]), (2, [5])]
    assert 1 not in scheduler.victims.requests


# Failure and loss


def test_failed_task_is_tried_on_other_ranks_then_given_up():
    scheduler, _ = started(1, ranks=(1, 2, 3))
    (second,) = scheduler.fail(1, failed(0))
    (third,) = scheduler.fail(second.rank, failed(0))
    assert {1, second.rank, third.rank} == {1, 2, 3}
    assert scheduler.take_failures() == []
    assert scheduler.fail(third.rank, failed(0)) == []
    ranks = (1, second.rank, third.rank)
    assert scheduler.take_failures() == [GivenUpTask(0, "ValueError", "no", "", ranks, block=0)]
    assert scheduler.tasks[0].state is TaskState.ASIDE
    assert scheduler.all_finished


def test_single_worker_gets_its_failed_task_again():
    scheduler, _ = started(1, ranks=(1,))
    assert scheduler.fail(1, failed(0)) == [Send(1, Place(1, (Task(0, 0, None),), alone=True))]


def test_failure_of_the_stage_itself_is_final():
    scheduler, _ = started(3)
    assert scheduler.fail(1, failed(None)) == []
    assert scheduler.stage_failure == failed(None)


def test_lost_rank_gives_back_what_it_had_and_what_it_held():
    scheduler, _ = started(4)
    scheduler.finish(1, [0], 0.1)
    scheduler.finish(2, [2], 0.1)
    sends = scheduler.rank_lost(1)
    assert numbers(sends) == [(2, [0]), (2, [1])]
    assert scheduler.finished == 1
    assert scheduler.tasks[2].state is TaskState.HELD


def test_banked_task_survives_the_loss_of_its_holder():
    scheduler, _ = started(2)
    scheduler.finish(1, [0], 0.1)
    scheduler.finish(2, [1], 0.1)
    scheduler.bank()
    assert scheduler.rank_lost(1) == []
    assert scheduler.all_finished


def test_tasks_wait_when_no_rank_is_left():
    scheduler, _ = started(2, ranks=(1,))
    assert scheduler.rank_lost(1) == []
    assert {tracked.state for tracked in scheduler.tasks.values()} == {TaskState.WAITING}


def test_rank_that_joins_gets_what_had_nowhere_to_go_and_suspects_one_by_one():
    scheduler, _ = started(3, ranks=(1,))
    scheduler.finish(1, [0], 0.1)
    scheduler.rank_lost(1)
    assert numbers(scheduler.rank_joined(2)) == [(2, []), (2, [0]), (2, [1])]
    assert numbers(scheduler.rank_joined(3)) == [(3, []), (3, [2])]


def test_claim_of_a_task_whose_victim_is_lost_is_refused():
    scheduler, _ = started(6, ranks=(1, 2, 3))
    scheduler.rank_lost(1)
    answers = scheduler.claim(2, Claim(1, 1, 1, (0, 1)))
    assert answers[0] == Send(2, Refused(1, 1, (0, 1)))
    assert scheduler.stolen == 0


def test_tasks_that_a_rank_died_with_are_tried_one_at_a_time():
    scheduler, _ = started(9, ranks=(1, 2, 3))
    assert numbers(scheduler.rank_lost(1)) == [(2, [0]), (3, [1])]
    assert numbers(scheduler.finish(2, [0], 0.1)) == [(2, [2])]
    assert numbers(scheduler.finish(3, [6, 7], 0.1)) == []
    assert scheduler.finish(3, [1], 0.1) == []
    assert scheduler.rerun == 3


def test_task_that_takes_down_three_ranks_is_set_aside_and_the_others_are_done():
    scheduler, _ = started(8, ranks=(1, 2, 3, 4), policy=Policy(deaths=3))
    died = []
    while scheduler.tasks[1].state is TaskState.PLACED:  # task 1 is the one
        died.append(scheduler.tasks[1].rank)
        scheduler.set_blame(died[-1], TaskStarted(1, 1))
        scheduler.rank_lost(died[-1])
    (failure,) = scheduler.take_failures()
    assert (failure.task, failure.kind, failure.ranks) == (1, QUARANTINED, tuple(died))
    assert len(died) == 3
    (last,) = scheduler.loads
    while placed := list(scheduler.loads[last].placed):
        scheduler.finish(last, placed, 0.1)
    assert scheduler.all_finished


def test_rank_lost_before_its_suspect_began_says_nothing_about_it():
    scheduler, _ = started(8, ranks=(1, 2, 3, 4), policy=Policy(deaths=2))
    scheduler.rank_lost(1)
    scheduler.rank_lost(scheduler.tasks[1].rank)
    assert scheduler.take_failures() == []
    scheduler.set_blame(scheduler.tasks[1].rank, TaskStarted(1, 1))
    scheduler.rank_lost(scheduler.tasks[1].rank)
    assert [failure.task for failure in scheduler.take_failures()] == [1]


def test_task_that_takes_too_long_costs_it_a_try_and_its_neighbours_nothing():
    scheduler, _ = started(9, ranks=(1, 2, 3), policy=Policy(tries=2, timeout=5.0))
    scheduler.set_blame(1, TaskOverdue(1, 1))
    assert sorted(numbers(scheduler.rank_lost(1))) == [(2, [0, 2]), (3, [1])]
    scheduler.set_blame(3, TaskOverdue(1, 1))
    assert sorted(numbers(scheduler.rank_lost(3))) == [(2, [6, 7, 8])]
    (failure,) = scheduler.take_failures()
    assert failure == GivenUpTask(1, TIMEOUT, "it took longer than 5 s", "", (1, 3), 1)
    assert all(not tracked.died_on for tracked in scheduler.tasks.values())


def test_task_that_has_ended_is_not_to_blame():
    scheduler, _ = started(4, ranks=(1, 2))
    scheduler.finish(1, [0], 0.1)
    scheduler.set_blame(1, TaskOverdue(1, 0))
    assert scheduler.loads[1].overdue is None


def test_later_tasks_go_to_the_least_loaded():
    scheduler, _ = started(4, ranks=(1, 2, 3))
    scheduler.finish(3, [3], 0.1)
    more = [Task(number, None, None) for number in range(4, 8)]
    assert sorted(numbers(scheduler.add_more(more))) == [(1, [7]), (2, [5]), (3, [4, 6])]


def test_forgotten_task_is_refused_to_a_late_thief():
    scheduler, _ = started(3, ranks=(1, 2), sums=False)
    scheduler.finish(1, [0], 0.1)
    scheduler.forget([0])
    assert scheduler.claim(2, Claim(1, 1, 1, (0,))) == [Send(2, Refused(1, 1, (0,)))]
    scheduler.finish(1, [1], 0.1)
    scheduler.finish(2, [2], 0.1)
    assert scheduler.all_finished


# Self-check


def forget_to_place(scheduler):
    scheduler.loads.remove_tasks(1, [0])


def forget_to_hold(scheduler):
    scheduler.loads[2].held.clear()


def miscount(scheduler):
    scheduler.finished += 1


def send_a_task_to_nobody(scheduler):
    scheduler.tasks[0].rank = None


def forget_a_waiting_task(scheduler):
    scheduler.tasks[4].move(TaskEvent.FAILED, 2)
    scheduler.loads.remove_tasks(2, [4])
    scheduler.victims.update(2)


def group_wrongly(scheduler):
    scheduler.loads[1].placed.discard(0)


def forget_a_victim(scheduler):
    scheduler.loads.remove_tasks(1, [0, 1])


def forget_a_thief(scheduler):
    scheduler.loads[1].thieves += 1


def keep_a_lost_rank(scheduler):
    scheduler.victims.requests[9] = 1


def keep_a_suspect(scheduler):
    scheduler.loads[1].suspect = 4


@pytest.mark.parametrize(
    ("breaks", "fault"),
    [
        (forget_to_place, "rank 1 has other tasks"),
        (forget_to_hold, "rank 2 holds other tasks"),
        (miscount, "2 tasks are counted as finished"),
        (send_a_task_to_nobody, "a task is PLACED on rank None"),
        (forget_a_waiting_task, "a task waits although there is a worker"),
        (group_wrongly, "workers are grouped by other numbers"),
        (forget_a_victim, "rank 1 is a victim with nothing to give"),
        (forget_a_thief, "rank 1 is asked by 0 thieves, not 1"),
        (keep_a_lost_rank, "a lost rank is a thief"),
        (keep_a_suspect, "the suspect of rank 1 is not placed there"),
    ],
)
def test_sanity_check_says_which_books_disagree(breaks, fault):
    scheduler, _ = started(5)
    scheduler.finish(2, [3], 0.1)
    scheduler.sanity_check()
    breaks(scheduler)
    with pytest.raises(ProtocolError, match=fault):
        scheduler.sanity_check()
