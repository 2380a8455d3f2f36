from __future__ import annotations

import numpy as np
import pytest

from mpipar.errors import InputError, ProtocolError, RequeueError, TaskFailedError
from mpipar.runtime.machines.liveness import LostWorker
from mpipar.runtime.machines.master import MasterMachine, RunPhase
from mpipar.runtime.machines.messages import (
    Begin,
    BlockRequest,
    Collect,
    Collected,
    Crashed,
    Finished,
    Forget,
    Hello,
    Idle,
    Knobs,
    Partial,
    Place,
    RankLost,
    Send,
    TaskFailed,
)
from mpipar.runtime.stage import Stage, Task


class Plain(Stage):
    def run(self, task, block, state):
        return None


class Summing(Plain):
    def partial(self, state):
        return None


LAYOUT = (("a", (2,)),)


def tasks(count):
    return [Task(number, number, None) for number in range(count)]


def hello(rank):
    return Hello(f"node{rank}", 4710 + rank, 1)


def begun(count, stage=None, workers=2):
    hellos = {rank: hello(rank) for rank in range(1, workers + 1)}
    master = MasterMachine(hellos, threads=1, knobs=Knobs())
    sends = master.begin(stage or Plain(), {}, tasks(count))
    return master, sends


def test_run_without_sums_is_over_when_all_results_are_here():
    master, sends = begun(2)
    assert [type(send.message) for send in sends] == [Begin, Begin, Place, Place]
    assert master.handle(1, Finished(1, ((0, "a"),), 0.1)) == []
    assert not master.run.over
    master.handle(2, Finished(1, ((1, "b"),), 0.1, 3))
    assert (master.run.over, master.run.results, master.run.sums) == (True, {0: "a", 1: "b"}, None)
    assert (master.run.done, master.run.peer_blocks) == ({1: 1, 2: 1}, 3)
    assert master.end() == [Send(1, Forget(1)), Send(2, Forget(1))]


def test_run_of_no_tasks_is_over_at_once_unless_it_has_sums():
    master, _ = begun(0)
    assert master.run.over
    master, sends = begun(0, Summing())
    assert sends[-1] == Send(1, Collect(1, 1))
    master.handle(1, Collected(1, 1, None))
    assert (master.run.over, master.run.sums) == (True, None)


def test_sums_are_collected_from_those_who_hold_and_added_up():
    master, _ = begun(2, Summing(), workers=3)
    master.handle(1, Finished(1, ((0, None),), 0.1))
    asked = master.handle(2, Finished(1, ((1, None),), 0.1))
    assert asked == [Send(1, Collect(1, 1)), Send(2, Collect(1, 1))]
    assert master.handle(1, Collected(1, 1, LAYOUT)) == []
    orders = master.handle(2, Collected(1, 1, LAYOUT))
    assert [send.rank for send in orders] == [1, 2]
    master.handle(1, Partial(1, 1, 0, np.array([1, 2])))
    master.handle(2, Partial(1, 1, 0, np.array([10, 20])))
    assert master.run.over
    assert master.run.sums["a"].tolist() == [11, 22]


class Refusing(Summing):
    def totals(self, shapes):
        assert shapes == dict(LAYOUT)
        return self

    def take(self, name, start, piece):
        raise ProtocolError(f"{name} from {start} is {piece.tolist()}")


def test_totals_that_refuse_a_sum_end_the_run():
    master, _ = begun(1, Refusing(), workers=1)
    master.handle(1, Finished(1, ((0, None),), 0.1))
    master.handle(1, Collected(1, 1, LAYOUT))
    assert master.handle(1, Partial(1, 1, 0, np.array([1, 2]))) == []
    assert isinstance(master.run.error, ProtocolError)
    assert str(master.run.error) == "a from 0 is [1, 2]"


def test_worker_with_nothing_to_add_is_left_out():
    master, _ = begun(2, Summing())
    master.handle(1, Finished(1, ((0, None),), 0.1))
    master.handle(2, Finished(1, ((1, None),), 0.1))
    master.handle(1, Collected(1, 1, None))
    (order,) = master.handle(2, Collected(1, 1, LAYOUT))
    assert (order.rank, order.message.parent) == (2, 0)


def test_partials_that_do_not_fit_end_the_run():
    master, _ = begun(2, Summing())
    master.handle(1, Finished(1, ((0, None),), 0.1))
    master.handle(2, Finished(1, ((1, None),), 0.1))
    master.handle(1, Collected(1, 1, (("a", (3,)),)))
    assert master.handle(2, Collected(1, 1, LAYOUT)) == []
    assert isinstance(master.run.error, ProtocolError)


def test_task_that_fails_everywhere_is_an_error_with_its_story():
    master, _ = begun(1)
    for rank in (1, 2, 1):
        master.handle(rank, TaskFailed(1, 0, "ValueError", "no such thing", "remote traceback"))
    assert isinstance(master.run.error, TaskFailedError)
    text = str(master.run.error)
    assert text.startswith("task 0 (block 0) failed 3 times, on ranks 1, 2, 1: ValueError: no such")
    assert text.endswith("remote traceback")


def test_stage_that_fails_is_an_error_at_once():
    master, _ = begun(1)
    master.handle(2, TaskFailed(1, None, "MemoryError", "", "trace"))
    assert str(master.run.error).startswith("Plain failed on rank 2: MemoryError")


def test_unreadable_block_ends_the_run_with_its_own_error():
    master, _ = begun(1)
    master.handle(1, BlockRequest(0, 0))
    assert master.files.next_read() == 0
    error = InputError("truncated")
    master.unreadable(0, 0, error)
    assert master.run.error is error


def test_block_is_placed_next_time_where_it_was_used_last():
    master, _ = begun(2)
    master.handle(1, Finished(1, ((0, None),), 0.1))
    master.handle(2, Finished(1, ((1, None),), 0.1))
    master.end()
    assert master.files.home == {0: 1, 1: 2}
    master.files.renew()
    assert master.files.home == {}


@pytest.mark.parametrize("late", [Finished(1, ((0, "x"),), 0.1), Idle(1), Collected(1, 1, None)])
def test_message_of_an_old_run_does_nothing(late):
    master, _ = begun(1)
    master.end()
    assert master.handle(1, late) == []
    master.begin(Plain(), {}, tasks(1))
    assert master.handle(1, late) == []
    assert master.run.results == {}


def test_crashed_worker_is_a_protocol_error_with_its_traceback():
    master, _ = begun(1)
    with pytest.raises(ProtocolError, match="rank 2 crashed\nsome traceback"):
        master.handle(2, Crashed("some traceback"))


# Loss


def test_loss_is_told_and_the_lost_ranks_children_get_begin():
    master, _ = begun(4, workers=8)
    loss, *sends = master.rank_lost(1)
    assert loss == LostWorker(1, hello(1), 1, 7)
    gone = [send.rank for send in sends if send.message == RankLost(1)]
    begin = [send.rank for send in sends if isinstance(send.message, Begin)]
    assert gone == [2, 3, 4, 5, 6, 7, 8]
    assert begin == [4, 5, 6]
    assert master.handle(1, Finished(1, ((0, "late"),), 0.1)) == []
    assert master.run.results == {}


def test_loss_during_the_reduction_starts_it_again():
    master, _ = begun(2, Summing())
    master.handle(1, Finished(1, ((0, None),), 0.1))
    master.handle(2, Finished(1, ((1, None),), 0.1))
    master.handle(1, Collected(1, 1, LAYOUT))
    master.handle(2, Collected(1, 1, LAYOUT))
    loss, *sends = master.rank_lost(1)
    assert (loss.rank, loss.tasks, loss.left) == (1, 1, 1)
    assert [type(send.message) for send in sends] == [RankLost, Place]
    assert master.run.phase is RunPhase.PLACING
    assert master.handle(2, Partial(1, 1, 0, np.array([10, 20]))) == []
    assert master.handle(2, Finished(1, ((0, None),), 0.1)) == [Send(2, Collect(1, 2))]
    assert master.handle(2, Collected(1, 1, LAYOUT)) == []
    master.handle(2, Collected(1, 2, LAYOUT))
    master.handle(2, Partial(1, 2, 0, np.array([11, 22])))
    assert master.run.sums["a"].tolist() == [11, 22]


def test_loss_of_the_last_worker_is_temporary_trouble():
    master, _ = begun(2, workers=1)
    master.rank_lost(1)
    assert isinstance(master.run.error, RequeueError)


def test_loss_of_the_last_worker_is_none_while_another_may_come():
    master, _ = begun(2, workers=1)
    master.expected = 1
    assert master.rank_lost(1) == [LostWorker(1, hello(1), 2, 0)]
    assert not master.run.over
    sends = master.rank_joined(2, hello(2))
    assert [type(send.message) for send in sends] == [Begin, Place, Place]
    assert {send.rank for send in sends} == {2}
    assert sends[0].message.serial == master.run.begin.serial


def test_worker_that_joined_has_no_children_and_is_nobodys_child():
    master, _ = begun(2, workers=8)
    master.rank_joined(9, hello(9))
    _, *sends = master.rank_lost(9)
    assert not [send for send in sends if isinstance(send.message, Begin)]
    assert 9 not in master.ranks


def test_loss_after_the_end_changes_nothing():
    master, _ = begun(2)
    master.handle(1, Finished(1, ((0, "a"),), 0.1))
    master.handle(2, Finished(1, ((1, "b"),), 0.1))
    assert master.rank_lost(1) == [LostWorker(1, hello(1), 0, 1), Send(2, RankLost(1))]
    assert master.run.over
    assert master.rank_lost(1) == []
