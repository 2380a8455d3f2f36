"""The sharing transport over in-process ends, whose handles lead to this very process."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from mpipar.errors import UsageError
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.isolation import isolated_tasks
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.machines.messages import Begin, Forget, Idle, NeedArrays, Place
from mpipar.runtime.node_memory.shared_arrays import (
    ArrayHandle,
    SharedArrays,
    UnmappableError,
    values_for_child,
)
from mpipar.runtime.node_memory.sharing_transport import SharingTransport
from mpipar.runtime.pool import Pool
from mpipar.runtime.process import environment
from mpipar.runtime.stage import Policy, Stage, frozen
from mpipar.runtime.transports.in_process import local_cluster
from tests.support.stages import Seen, Where, tasks_of

SHARED = frozen({"a": np.arange(1 << 18, dtype=np.int64), "n": 3})
ONE_HOST = ((0, 1, 2, 3, 4),)


class Nothing(Stage):
    def run(self, task, block, state):
        return None


STAGE = Nothing()


def begin(serial=1, tree=ONE_HOST, *, plain=False):
    return Begin(serial, 0, STAGE, SHARED, tree, plain=plain)


def ends(count=5):
    """Sharing transports, and the plain ones below them."""
    below = local_cluster(count)
    return [SharingTransport(end) for end in below], below


def the_only(arrived):
    ((_, message),) = arrived
    return message


def is_handle(message):
    return isinstance(message.shared["a"], ArrayHandle)


def is_right(message):
    array = message.shared["a"]
    return np.array_equal(array, SHARED["a"]) and not array.flags.writeable


def address(message):
    return message.shared["a"].__array_interface__["data"][0]


def test_ranks_of_a_host_get_handles_to_one_memory_and_see_arrays():
    (master, *others), below = ends()
    for rank in (1, 2):
        master.send(rank, begin())
    assert {is_handle(message) for end in below[1:3] for _, message in end._inbox} == {True}
    inodes = {message.shared["a"].inode for end in below[1:3] for _, message in end._inbox}
    assert len(inodes) == 1
    assert all(is_right(the_only(other.receive())) for other in others[:2])


@pytest.mark.parametrize(
    "message", [begin(plain=True), begin(tree=((0,), (1, 2), (3, 4)))], ids=["plain", "other host"]
)
def test_other_ranks_get_the_arrays_themselves(message):
    (master, worker, *_), below = ends()
    master.send(1, message)
    assert the_only(below[1]._inbox).shared["a"] is SHARED["a"]
    assert is_right(the_only(worker.receive()))


def test_leader_publishes_what_came_from_outside_and_uses_that_memory_itself():
    (master, leader, follower, *_), below = ends()
    master.send(1, begin(tree=((0,), (1, 2), (3, 4))))
    message = the_only(leader.receive())
    assert is_right(message)
    assert address(message) != address(begin())
    leader.send(2, message)
    leader.send(3, message)
    assert is_handle(the_only(below[2]._inbox))
    assert not is_handle(the_only(below[3]._inbox))
    assert is_right(the_only(follower.receive()))


def test_worker_without_neighbours_below_it_keeps_the_arrays_that_came():
    (master, leader, *_), _ = ends()
    master.send(1, begin(tree=((0,), (1,))))
    assert the_only(leader.receive()).shared is SHARED


def test_what_was_found_is_passed_on_by_the_finder_when_the_lender_lets_go():
    (master, middle, leaf, *_), below = ends()
    master.send(1, begin())
    message = the_only(middle.receive())
    master.send(3, Forget(1))  # rank 0 lets go
    middle.send(2, message)
    assert is_handle(the_only(below[2]._inbox))
    assert is_right(the_only(leaf.receive()))


def test_who_cannot_map_asks_rank_0_and_takes_plain_arrays(monkeypatch):
    (master, middle, leaf, *_), _ = ends()
    master.send(1, begin())
    message = the_only(middle.receive())
    middle.send(2, message)
    monkeypatch.setattr(SharedArrays, "attach", lambda _: (_ for _ in ()).throw(UnmappableError))
    assert leaf.receive() == []
    assert master.receive() == [(2, NeedArrays(1, 1))]
    master.send(2, begin(plain=True))
    assert is_right(the_only(leaf.receive()))


def test_begin_that_comes_twice_or_late_is_dropped():
    (master, worker, *_), _ = ends()
    for _ in range(2):
        master.send(1, begin(2))
    assert [type(message) for _, message in worker.receive()] == [Begin]
    SharingTransport(master._inner).send(1, begin(1, plain=True))
    assert worker.receive() == []
    master.send(1, Forget(4))
    SharingTransport(master._inner).send(1, begin(3))
    assert worker.receive() == [(0, Forget(4))]


def test_forget_closes_and_nothing_of_that_run_is_sent_any_more(monkeypatch):
    closed = []
    monkeypatch.setattr(
        SharedArrays,
        "close",
        lambda self, plain=SharedArrays.close: closed.append(1) or plain(self),
    )
    (master, worker, *_), below = ends()
    master.send(1, begin())
    message = the_only(worker.receive())
    master.send(1, Forget(1))
    assert len(closed) == 1
    assert worker.receive() == [(0, Forget(1))]
    assert len(closed) == 2
    worker.send(2, message)
    assert not below[2]._inbox
    assert is_right(message)  # its arrays live as long as somebody has them


def test_next_run_lets_go_of_the_one_before():
    (master, worker, *_), below = ends()
    for serial in (1, 2):
        master.send(1, begin(serial))
    (_, first), (_, second) = below[1]._inbox
    assert first.shared["a"].inode != second.shared["a"].inode
    # The first is closed by now: it is asked for, while the second is found.
    assert [message.serial for _, message in worker.receive()] == [2]
    assert master.receive() == [(1, NeedArrays(1, 0))]


def test_everything_else_goes_through_as_it_is():
    (master, worker, *_), _ = ends()
    worker.send(0, Idle(1))
    master.send(1, Place(1, ()))
    assert (master.receive(), worker.receive()) == ([(1, Idle(1))], [(0, Place(1, ()))])
    assert (worker.rank, worker.size, worker.backlog(), worker.lost()) == (1, 5, 0, [])


@contextmanager
def pool_of_sharing_ranks():
    """As over MPI: every rank has a sharing transport of its own."""
    transports, _ = ends()
    workers = [
        threading.Thread(target=worker_loop.serve, args=(end,), name=str(end.rank))
        for end in transports[1:]
    ]
    for worker in workers:
        worker.start()
    with Pool(transports[0], threads=1, cache_bytes=0) as pool:
        yield pool
    for worker in workers:
        worker.join(5)


@pytest.mark.parametrize("blind", [set(), {2}, {1, 2, 3, 4}])
def test_whole_runs_are_right_whoever_cannot_map(monkeypatch, blind):
    attach_as_it_is = SharedArrays.attach
    found = []

    def attach(values):
        rank = int(threading.current_thread().name)
        found.append(rank)
        if rank in blind:
            raise UnmappableError
        return attach_as_it_is(values)

    monkeypatch.setattr(SharedArrays, "attach", attach)
    shared = {"a": np.ones(1 << 18), "b": np.ones(1 << 17)}
    with pool_of_sharing_ranks() as pool:
        for _ in range(3):
            outcome = pool.run(Where(), shared, tasks_of(30, blocks=False))
            assert {total for _, _, total in outcome.results} == {3.0 * (1 << 17)}
    assert all(found.count(rank) <= 1 for rank in blind)
    assert found.count(3) >= (3 not in blind)


def seen_by_children(opened):
    """In which memory isolated tasks see a shared array."""
    with opened as pool:
        tasks = tasks_of(8, blocks=False)
        found = pool.run(Seen(), SHARED, tasks, policy=Policy(isolate=True)).results
    assert {seen.total for seen in found} == {float(SHARED["a"].sum())}
    assert {seen.flags for seen in found} == {(True, False)}
    assert os.getpid() not in {seen.process for seen in found}
    return {seen.inode for seen in found}


@pytest.mark.parametrize("opener", [lambda: thread_cluster.open_pool(2), pool_of_sharing_ranks])
def test_child_processes_map_the_same_memory(opener):
    (inode,) = seen_by_children(opener())
    assert inode != 0


def test_child_process_that_cannot_map_is_sent_the_arrays(monkeypatch):
    def forged(values):
        handles = {**values_for_child(values)}
        handles["a"] = replace(handles["a"], token=bytes(16))
        return handles

    monkeypatch.setattr(isolated_tasks, "values_for_child", forged)
    assert seen_by_children(thread_cluster.open_pool(1)) == {0}


def test_child_processes_have_their_own_arrays_if_told_so(monkeypatch):
    monkeypatch.setenv("MPIPAR_NODE_MEMORY", "off")
    assert seen_by_children(thread_cluster.open_pool(1)) == {0}


@pytest.mark.parametrize(("text", "wanted"), [("on", True), ("off", False)])
def test_knob_turns_it_off(monkeypatch, text, wanted):
    monkeypatch.setenv("MPIPAR_NODE_MEMORY", text)
    assert environment.knobs().node_memory is wanted


def test_knob_that_says_something_else_is_an_error(monkeypatch):
    monkeypatch.setenv("MPIPAR_NODE_MEMORY", "no")
    with pytest.raises(UsageError, match="on or off, not 'no'"):
        environment.knobs()
