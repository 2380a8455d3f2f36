"""Silence, lateness and return, as both machines see them: time is a number here."""

from __future__ import annotations

import pytest

from mpipar.errors import RequeueError
from mpipar.runtime.machines.liveness import (
    LONGEST_STEP,
    ORPHAN_PATIENCES,
    Leave,
    LostWorker,
    MasterLiveness,
    WorkerLiveness,
    who_leaves,
)
from mpipar.runtime.machines.master import MasterMachine
from mpipar.runtime.machines.messages import (
    Beat,
    Begin,
    Finished,
    Forget,
    Hello,
    Knobs,
    Place,
    RankLost,
    Send,
    TaskOverdue,
    Unreachable,
    Welcome,
)
from mpipar.runtime.machines.worker import WorkerMachine
from mpipar.runtime.stage import Policy, Stage, Task

PATIENCE = 4.0
STEP = 0.5


class Plain(Stage):
    def run(self, task, block, state):
        return None


def hello(rank):
    return Hello(f"node{rank % 2}", 4710 + rank, 1)


def master_of(workers, policy=None):
    hellos = {rank: hello(rank) for rank in range(1, workers + 1)}
    master = MasterMachine(hellos, threads=1, knobs=Knobs(), patience=PATIENCE)
    begin_run(master, workers, policy)
    return master


def begin_run(master, count, policy=None):
    master.end()
    tasks = [Task(number, None, None) for number in range(count)]
    master.begin(Plain(), {}, tasks, policy or Policy())


def losses(actions):
    return [action for action in actions if isinstance(action, LostWorker)]


def pass_time(master, seconds, speaking=()):
    """Let time pass while some workers speak; return the workers that the machine cut off."""
    found = []
    for _ in range(round(seconds / STEP)):
        for rank in speaking:
            master.handle(rank, Beat(1))
        found += losses(master.tick(STEP))
    return found


# Rank 0: silence


def test_silent_worker_is_cut_off_after_one_patience_and_no_other():
    master = master_of(3)
    assert pass_time(master, PATIENCE, speaking=[1, 3]) == []
    (loss,) = pass_time(master, 2 * STEP, speaking=[1, 3])
    assert (loss.rank, loss.hello, loss.tasks, loss.left) == (2, hello(2), 1, 2)
    assert loss.reason == "silent for 4.5 s, so hung or cut off"
    assert master.ranks == [1, 3]
    assert pass_time(master, 5 * PATIENCE, speaking=[1, 3]) == []


def test_tasks_of_a_silent_worker_go_to_the_others_and_these_are_told():
    master = master_of(2)
    actions = []
    while not losses(actions):
        master.handle(1, Beat(1))
        actions = master.tick(STEP)
    sends = [action for action in actions if isinstance(action, Send)]
    assert Send(1, RankLost(2)) in sends
    assert [m.tasks[0].id for _, m in map(pair, sends) if isinstance(m, Place)] == [1]


def pair(send):
    return send.rank, send.message


@pytest.mark.parametrize(
    "word", [Beat(1), Beat(0), Finished(1, ((0, None),), 0.1), Hello("x", 1, 1)]
)
def test_any_word_ends_a_silence(word):
    master = master_of(2)
    assert pass_time(master, PATIENCE - STEP, speaking=[2]) == []
    master.handle(1, word)
    assert pass_time(master, PATIENCE - STEP, speaking=[2]) == []


def test_a_worker_is_late_before_it_is_lost():
    liveness = WorkerLiveness([1, 2], PATIENCE)
    late = []
    for _ in range(int(PATIENCE / STEP)):
        liveness.heard(2)
        late.append(liveness.late())
        assert liveness.tick(STEP) == {}
    assert late == [0] * 5 + [1] * 3
    liveness.heard(1)
    assert liveness.late() == 0


def test_silence_between_runs_says_nothing():
    master = master_of(2)
    pass_time(master, PATIENCE - STEP)
    master.end()
    assert master.tick(10 * PATIENCE) == []
    begin_run(master, 2)
    assert pass_time(master, PATIENCE - STEP) == []


def test_rank_0_that_was_stopped_itself_cuts_off_nobody():
    master = master_of(2)
    assert losses(master.tick(1000.0)) == []
    assert losses(master.tick(PATIENCE - LONGEST_STEP)) == []


def test_all_workers_silent_is_temporary_trouble_that_names_the_last():
    master = master_of(2)
    assert [loss.left for loss in pass_time(master, PATIENCE + 2 * STEP)] == [1, 0]
    error = master.run.error
    assert isinstance(error, RequeueError)
    assert str(error).startswith("rank 2 on node0 (process 4712) is lost (silent for 4.5 s")
    assert str(error).endswith("and no worker is left; resume the run to go on")


def test_run_waits_for_workers_that_may_come_and_ends_when_none_can():
    master = master_of(1)
    master.expected = 1
    assert [loss.left for loss in pass_time(master, PATIENCE + 2 * STEP)] == [0]
    master.end_if_deserted()
    assert not master.run.over
    master.expected = 0
    master.end_if_deserted()
    assert isinstance(master.run.error, RequeueError)


def test_new_worker_has_one_patience_from_when_it_comes():
    master = master_of(1)
    pass_time(master, 3 * PATIENCE, speaking=[1])
    master.rank_joined(2, hello(2))
    assert pass_time(master, PATIENCE - STEP, speaking=[1]) == []
    assert [loss.rank for loss in pass_time(master, 3 * STEP, speaking=[1])] == [2]


# Rank 0: return


def test_worker_that_comes_back_is_not_listened_to():
    master = master_of(2)
    pass_time(master, PATIENCE + STEP, speaking=[1])
    assert master.ranks == [1]
    assert master.handle(2, Finished(1, ((1, "late"),), 0.1)) == []
    assert master.handle(2, Beat(1)) == []
    assert master.run.results == {}
    assert master.rank_lost(2) == []
    begin_run(master, 2)
    assert losses(master.tick(STEP)) == []


# Rank 0: beats


def test_workers_hear_of_rank_0_four_times_per_patience_in_a_run():
    master = master_of(2)
    beats = []
    for _ in range(round(10 * PATIENCE / 0.1)):
        for rank in (1, 2):
            master.handle(rank, Beat(1))
        beats += [send.rank for send in master.tick(0.1)]
    assert beats == [1, 2] * (len(beats) // 2)
    assert 36 <= len(beats) // 2 <= 40
    master.end()
    assert master.tick(PATIENCE) == []


def test_look_for_silent_workers_is_not_taken_at_every_step():
    liveness = WorkerLiveness([1], 100.0)
    assert not any(liveness.tick(1.0) for _ in range(100))
    late = next(step for step in range(100) if liveness.tick(1.0))
    assert late <= 5


# Rank 0: lateness and links


def test_worker_with_a_task_that_takes_too_long_is_cut_off():
    master = master_of(2, Policy(timeout=0.25, tries=2))
    loss, *sends = master.handle(1, TaskOverdue(1, 0))
    assert loss.reason == "task 0 took longer than 0.25 s"
    assert master.ranks == [2]
    assert [m.tasks[0].id for _, m in map(pair, sends) if isinstance(m, Place)] == [0]


@pytest.mark.parametrize("word", [TaskOverdue(7, 0), Unreachable(7, 2)])
def test_word_of_another_run_costs_nobody(word):
    master = master_of(2)
    assert master.handle(1, word) == []
    assert master.ranks == [1, 2]


def test_of_two_workers_that_do_not_reach_each_other_one_is_cut_off():
    master = master_of(3)
    loss, *_ = master.handle(2, Unreachable(1, 3))
    assert loss.rank == 2, "node0 has one worker, node1 has two"
    assert loss.reason == "it and rank 3 on node1 do not reach each other"
    assert master.handle(3, Unreachable(1, 2)) == []
    assert master.ranks == [1, 3]


HOSTS = {1: "a", 2: "a", 3: "b", 4: "b", 5: "c"}


def test_who_has_fewer_neighbours_leaves():
    assert who_leaves(1, 5, HOSTS) == who_leaves(5, 1, HOSTS) == 5


def test_of_equal_hosts_it_is_always_the_same_one():
    assert [who_leaves(a, b, HOSTS) for a in (1, 2) for b in (3, 4)] == [3, 4, 3, 4]
    assert who_leaves(1, 2, HOSTS) == 2


# A worker


def worker_of(timeout=None):
    worker = WorkerMachine(1, Welcome(1, 0, Knobs(), 1.0), size=3, patience=PATIENCE)
    worker.handle(0, Begin(1, 0, Plain(), {}, ((0, 1),), Policy(timeout=timeout)))
    return worker


def test_worker_that_has_said_nothing_for_a_second_says_that_it_lives():
    worker = worker_of()
    assert worker.tick(0.75) == []
    assert worker.seconds_to_tick == 0.25
    assert worker.tick(0.25) == [Send(0, Beat(1))]
    assert worker.tick(0.75) == []


def test_worker_that_speaks_needs_no_beat():
    worker = worker_of(timeout=0.5)
    worker.tick(0.75)
    assert worker.tick(0.5, [(0, 3.0)]) == [Send(0, Beat(1))]
    worker.tick(0.75, [(0, 3.0)])
    assert worker.seconds_to_tick == 1.0, "TaskOverdue has just been sent"


def test_worker_beats_more_often_where_patience_is_short():
    assert MasterLiveness(3, 0.5).seconds_to_beat == 0.125
    assert MasterLiveness(10_000, 120.0).seconds_to_beat == 5.0


def test_worker_does_not_beat_between_runs():
    worker = worker_of()
    worker.handle(0, Forget(1))
    assert worker.tick(100.0) == []


def test_worker_that_hears_nothing_of_rank_0_for_long_leaves():
    worker = worker_of()
    for _ in range(round(ORPHAN_PATIENCES * PATIENCE)):
        assert [type(send.message) for send in worker.tick(1.0)] == [Beat]
    assert worker.tick(1.0) == [Leave("nothing was heard of rank 0 for 41 s")]


@pytest.mark.parametrize("word", [Beat(1), Place(1, ()), RankLost(2)])
def test_any_word_of_rank_0_keeps_a_worker(word):
    worker = worker_of()
    for _ in range(3):
        for _ in range(round(ORPHAN_PATIENCES * PATIENCE) - 1):
            assert not isinstance(worker.tick(1.0)[0], Leave)
        worker.handle(0, word)


def test_worker_that_was_stopped_itself_does_not_leave():
    worker = worker_of()
    assert worker.tick(1000.0) == [Send(0, Beat(1))]


def test_silence_of_rank_0_between_runs_says_nothing():
    worker = worker_of()
    for _ in range(round(ORPHAN_PATIENCES * PATIENCE) - 1):
        worker.tick(1.0)
    worker.handle(0, Forget(1))
    for _ in range(100):
        assert worker.tick(1.0) == []


def overdue(sends):
    return [send for send in sends if isinstance(send.message, TaskOverdue)]


def test_task_that_runs_too_long_is_told_once():
    worker = worker_of(timeout=1.0)
    late = [at for at in range(1, 20) if overdue(worker.tick(0.25, [(7, 12.5), (8, at)]))]
    assert late == [5], "1.25 s is more than 1 s; task 8 is begun anew each time"


def test_same_task_begun_again_has_its_whole_time():
    worker = worker_of(timeout=1.0)
    for began in range(10):
        for _ in range(4):
            assert not overdue(worker.tick(0.25, [(7, began)]))


def test_worker_that_was_stopped_itself_blames_no_task():
    worker = worker_of(timeout=1.5)
    worker.tick(0.25, [(7, 0.0)])
    assert not overdue(worker.tick(1000.0, [(7, 0.0)]))
