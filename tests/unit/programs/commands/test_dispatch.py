from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mpipar.errors import RequeueError
from mpipar.programs.commands import listing
from mpipar.programs.commands.command_stage import CommandTry
from mpipar.programs.commands.dispatch import BACKLOG_BYTES, Dispatch, PendingCommand
from mpipar.programs.commands.supervisor_client import SUPERVISOR_DIED

HERE, THERE, BEYOND = ("a", 1, 0), ("a", 2, 0), ("b", 1, 0)


@dataclass
class Slots:
    workers: int = 3
    threads: int = 1


def dispatch_of(count=5, slots=None, *, prefetch=True):
    commands = listing.parse("".join(f"c{i}\n" for i in range(count)).encode(), "c.txt")
    return Dispatch(
        [PendingCommand(command) for command in commands], slots or Slots(), prefetch=prefetch
    )


def attempt(size=0):
    return CommandTry(replace(SUPERVISOR_DIED, head=b"x" * size), HERE, 1, 0.0)


def payloads(tasks):
    return [(task.payload.text, task.payload.try_number, set(task.payload.avoid)) for task in tasks]


def test_commands_go_out_in_order_and_each_task_has_a_fresh_number():
    dispatch = dispatch_of()
    tasks = [*dispatch.supply(2), *dispatch.supply(100)]
    assert [task.payload.text for task in tasks] == ["c0", "c1", "c2", "c3", "c4"]
    assert [task.id for task in tasks] == list(range(5))
    assert not dispatch.supply(1)


def test_without_prefetch_no_more_are_out_than_can_run():
    slots = Slots(workers=2, threads=2)
    dispatch = dispatch_of(slots=slots, prefetch=False)
    assert len(dispatch.supply(100)) == 4
    slots.workers = 1  # one is lost: its commands run again on the other
    dispatch.deliver([(0, attempt()), (1, attempt())])
    assert not dispatch.supply(100)
    dispatch.deliver([(2, attempt())])
    dispatch.handled(2)
    assert not dispatch.supply(100), "one has arrived, and it is not known what follows from it"
    dispatch.handled(1)
    assert len(dispatch.supply(100)) == 1


def test_second_try_comes_first_and_avoids_where_it_failed():
    dispatch = dispatch_of()
    (first,) = dispatch.supply(1)
    dispatch.deliver([(first.id, attempt())])
    ((pending, _),) = dispatch.take(0)
    dispatch.retry(pending, HERE)
    assert payloads(dispatch.supply(2)) == [("c0", 2, {HERE}), ("c1", 1, set())]


def test_nothing_is_avoided_once_it_failed_everywhere():
    dispatch = dispatch_of(1, Slots(workers=2))
    for number, place in enumerate((HERE, THERE, BEYOND), start=1):
        (task,) = dispatch.supply(1)
        assert payloads([task]) == [("c0", number, {HERE} if number == 2 else set())]
        dispatch.deliver([(task.id, attempt())])
        ((pending, _),) = dispatch.take(0)
        dispatch.retry(pending, place)


def test_output_that_waits_to_be_written_stops_the_supply():
    dispatch = dispatch_of()
    dispatch.supply(1)
    dispatch.deliver([(0, attempt(BACKLOG_BYTES + 1))])
    assert not dispatch.supply(1)
    dispatch.take(0)
    assert len(dispatch.supply(1)) == 1


def test_finished_when_all_has_come_back_and_been_taken():
    dispatch = dispatch_of(1)
    assert not dispatch.is_finished
    dispatch.supply(1)
    assert not dispatch.is_finished
    dispatch.deliver([(0, attempt())])
    dispatch.take(0)
    assert not dispatch.is_finished
    dispatch.handled(1)
    assert dispatch.is_finished


def test_halt_waits_for_what_is_out_and_begins_no_more():
    dispatch = dispatch_of(3)
    dispatch.supply(1)
    dispatch.halt()
    assert not dispatch.supply(5)
    assert not dispatch.is_finished
    dispatch.deliver([(0, attempt())])
    dispatch.take(0)
    dispatch.handled(1)
    assert dispatch.is_finished


def test_what_arrived_is_given_before_the_error_that_ended_the_stream():
    dispatch = dispatch_of(2)
    dispatch.supply(2)
    dispatch.deliver([(0, attempt())])
    dispatch.ended(RequeueError("no worker is left"))
    assert len(dispatch.take(0)) == 1
    with pytest.raises(RequeueError, match="no worker is left"):
        dispatch.take(0)
