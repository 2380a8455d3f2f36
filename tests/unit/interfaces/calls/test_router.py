"""Queues of calls on workers that are threads: setup, turns, limits, failures, the end."""

from __future__ import annotations

import operator
import queue
import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pytest

from mpipar.errors import UsageError
from mpipar.interfaces.calls.answers import GivenUp, Raised, Returned, SetupRaised, WorkersGone
from mpipar.interfaces.calls.batches import pack_calls
from mpipar.interfaces.calls.call_stage import BatchReply, CallStage
from mpipar.interfaces.calls.feeds import SubmittedCalls
from mpipar.interfaces.calls.router import CallRouter
from mpipar.interfaces.calls.user_main import UserMain
from mpipar.runtime.stage import GivenUpTask, Policy, Task
from tests.support import functions

PATIENCE = 20


class FailedError(Exception):
    """What a future raises: holds the failure."""


class Caller:
    """Submits to a queue of calls and collects the answers."""

    def __init__(self, router, calls):
        self.router = router
        self.calls = calls
        self.feed = SubmittedCalls(FailedError)
        self.answers = queue.Queue()

    def submit(self, function, *arguments, cancelled=False):
        future = Future()
        if cancelled:
            future.cancel()
        future.add_done_callback(self._put_answer)
        self.feed.append(future, (function, arguments, {}))
        self.router.offer(self.calls, self.feed)

    def _put_answer(self, future):
        if not future.cancelled():
            error = future.exception()
            self.answers.put(error.args[0] if error else Returned(future.result()))

    def take(self, count):
        return [self.answers.get(timeout=PATIENCE) for _ in range(count)]


def test_calls_return_raise_and_refuse_to_be_pickled(router):
    caller = Caller(router, router.open_queue())
    caller.submit(functions.square, 3)
    (answer,) = caller.take(1)
    assert answer == Returned(9)
    caller.submit(functions.fail_at, 1, 1)
    (answer,) = caller.take(1)
    assert isinstance(answer, Raised)
    assert "in fail_at" in answer.traceback
    assert "process" in answer.where
    for arguments in ((lambda: 0,), (functions.unpicklable,), (functions.raise_needs_two,)):
        caller.submit(*arguments)
        (answer,) = caller.take(1)
        assert isinstance(answer, Raised)
    assert "NeedsTwoError" in str(answer.exception)
    assert "in raise_needs_two" in answer.traceback


def test_setup_runs_once_on_each_worker_and_is_handed_to_each_call(router):
    functions.setups.clear()
    calls = router.open_queue(partial(functions.remember, "lattice"), passes_setup=True)
    caller = Caller(router, calls)
    for number in range(300):
        caller.submit(functions.pair, number)
    values = sorted(answer.value[0] for answer in caller.take(300))
    assert values == [("lattice", number) for number in range(300)]
    threads = [thread for thread, _ in functions.setups]
    assert len(threads) == len(set(threads)) <= 3


def test_queues_do_not_mix_and_a_closed_one_finishes(router):
    callers = [
        Caller(router, router.open_queue(partial(functions.remember, name), passes_setup=True))
        for name in ("first", "second")
    ]
    for number in range(50):
        for caller in callers:
            caller.submit(functions.pair, number)
    for caller in callers:
        router.close_queue(caller.calls)
        with pytest.raises(RuntimeError, match="closed"):
            caller.submit(functions.pair)
    for caller, name in zip(callers, ("first", "second"), strict=True):
        assert {answer.value[0][0] for answer in caller.take(50)} == {name}


def test_workers_drop_the_setups_of_closed_queues(router):
    stage = CallStage(UserMain.here())
    setups = stage.start({})
    queues = [
        router.open_queue(partial(functions.remember, n), passes_setup=True) for n in range(3)
    ]
    setups.arguments(0, router.read(0))
    setups.arguments(1, router.read(1))
    router.close_queue(queues[0])
    setups.arguments(2, router.read(2))
    assert sorted(setups._arguments) == [1, 2]
    assert list(router.read(0)) == ["open"]  # as for a block that was fetched for nothing


def test_setup_that_raises_is_told_to_every_call(router):
    caller = Caller(router, router.open_queue(functions.refuse))
    for _ in range(5):
        caller.submit(functions.square, 1)
    for answer in caller.take(5):
        assert isinstance(answer, SetupRaised)
        assert str(answer.exception) == "no such file on this node"
        assert "in refuse" in answer.traceback


def test_never_more_than_the_limit_at_once(router):
    lock, running, most = threading.Lock(), set(), []

    def enter(number):
        with lock:
            running.add(number)
            most.append(len(running))
        threading.Event().wait(0.002)
        with lock:
            running.discard(number)

    vars(functions)["enter"] = enter  # found there by name: the workers are of this process
    enter.__module__, enter.__qualname__ = functions.__name__, "enter"
    caller = Caller(router, router.open_queue(limit=2))
    for number in range(40):
        caller.submit(enter, number)
    caller.take(40)
    del vars(functions)["enter"]
    assert max(most) == 2


def test_call_that_is_cancelled_is_neither_made_nor_answered(router):
    caller = Caller(router, router.open_queue())
    caller.submit(functions.square, 2, cancelled=True)
    caller.submit(functions.square, 3)
    assert caller.take(1) == [Returned(9)]
    assert caller.answers.empty()


def test_one_slow_call_of_a_batch_sends_the_rest_back():
    stage = CallStage(UserMain.here())
    setups = stage.start({})
    calls = [(functions.nap, (seconds,), {}) for seconds in (0.0, 0.05, 0.0, 0.0)]
    packed, _ = pack_calls(calls)
    payload = 0, None, (), 0.02, packed.functions, packed.together, packed.pickled
    reply = stage.run(Task(0, None, payload), None, setups)
    assert isinstance(reply, BatchReply)
    assert list(reply.kinds) == [0, 0]


class ScriptedPool:
    """A pool with a stream that the test drives itself."""

    workers = 2
    description = "scripted"

    def __init__(self):
        self.client = None
        self.losses = []

    def serve(self, source):
        pass

    def new_losses(self):
        new, self.losses = self.losses, []
        return new

    def stream(self, stage, shared, client, *, policy):
        self.client, self.policy = client, policy
        return self

    def notify(self):
        pass

    def close(self):
        self.client.ended(None)


@pytest.fixture
def script():
    pool: Any = ScriptedPool()
    return pool, CallRouter(pool, Policy())


def died(task):
    return task.id, GivenUpTask(task.id, "Quarantined", "it took down 3 ranks", "", (1, 2, 1))


def test_failed_batch_is_sent_again_call_by_call(script):
    pool, router = script
    calls = router.open_queue()
    calls.batch_size(functions.square).record(1000, 0.0001)
    caller = Caller(router, calls)
    for number in range(64):
        caller.submit(functions.square, number)
    (batch,) = pool.client.supply(1)
    pool.client.deliver([died(batch)])
    assert caller.answers.empty()
    singles = pool.client.supply(8)
    pool.client.deliver([died(task) for task in singles])
    assert [type(answer) for answer in caller.take(8)] == [GivenUp] * 8


def test_lost_worker_is_told_once(script, capsys):
    pool, router = script
    router.open_queue()
    pool.losses.append("rank 2 is lost")
    pool.client.deliver([])
    pool.client.deliver([])
    assert capsys.readouterr().err == "mpipar: rank 2 is lost\n"


def test_end_of_the_stream_breaks_what_is_under_way_and_what_waits(script):
    pool, router = script
    caller = Caller(router, router.open_queue())
    for number in range(6):
        caller.submit(functions.square, number)
    pool.client.supply(2)
    pool.client.ended(ConnectionError("no worker is left"))
    assert [type(answer) for answer in caller.take(6)] == [WorkersGone] * 6
    with pytest.raises(ConnectionError):
        caller.submit(functions.square, 1)
    assert not router._queues, "their setups are let go"
    router._closed = True  # nothing is left to be closed


def test_setup_stays_as_long_as_a_worker_may_ask_for_it(script):
    pool, router = script
    calls = router.open_queue(functions.refuse)
    caller = Caller(router, calls)
    for number in range(6):
        caller.submit(functions.square, number)
    under_way = pool.client.supply(2)
    router.fail_queue(calls, LookupError("another worker has answered"))
    assert [type(answer) for answer in caller.take(4)] == [WorkersGone] * 4
    assert "data" in router.read(0)
    caller.submit(functions.square, 1)  # by a thread that does not know it yet
    assert pool.client.supply(2) == []
    assert [type(answer) for answer in caller.take(1)] == [WorkersGone]
    pool.client.deliver([died(task) for task in under_way])
    assert [type(answer) for answer in caller.take(2)] == [GivenUp] * 2
    assert list(router.read(0)) == ["open"]


def test_calls_of_another_kind_are_not_sent_ahead_before_it_is_known_how_long_they_take(script):
    pool, router = script
    calls = router.open_queue()
    calls.batch_size(functions.square).record(1000, 0.0001)
    caller = Caller(router, calls)
    for number in range(20):
        caller.submit(functions.square, number)
    for _ in range(20):
        caller.submit(functions.nap, 1.0)
    batches = pool.client.supply(1000)
    assert sum(router._under_way[task.id][1].size for task in batches) == 20
    calls.batch_size(functions.nap).record(1, 1.0)
    pool.client.deliver([died(task) for task in batches if task.id < 0])
    router._ready[calls.number] = calls
    assert pool.client.supply(1000) == [], "enough is under way"


def test_a_failed_queue_answers_calls_of_all_kinds(script):
    pool, router = script
    calls = router.open_queue()
    caller = Caller(router, calls)
    for function in (functions.square, operator.neg, functions.square):
        caller.submit(function, 1)
    router.fail_queue(calls, LookupError("gone"))
    assert [type(answer) for answer in caller.take(3)] == [WorkersGone] * 3
    assert pool.client.supply(5) == []


def test_queues_have_their_turn(script):
    pool, router = script
    callers = [Caller(router, router.open_queue()) for _ in range(3)]
    for caller in callers:
        for number in range(10):
            caller.submit(operator.neg, number)
    tasks = pool.client.supply(6)
    assert [task.payload[0] for task in tasks] == [0, 1, 2, 0, 1, 2]


def test_open_queues_agree_on_the_policy_and_later_ones_may_choose(script):
    pool, router = script
    first = router.open_queue()
    with pytest.raises(UsageError, match="isolate"):
        router.open_queue(isolate=True)
    router.close_queue(first)
    router.open_queue(isolate=True)
    assert pool.policy.isolate


def test_arrays_of_a_setup_reach_the_worker_as_arrays_of_the_block(router):
    data = np.arange(100_000.0)
    router.open_queue(partial(functions.remember, data))
    block = router.read(0)
    assert block["buffer0"].nbytes == data.nbytes
    assert sum(array.nbytes for array in block.values()) < data.nbytes + 1000


class ClosingFeed(SubmittedCalls):
    """Closes its queue while it is asked for calls, as the garbage collector may."""

    def __init__(self, router, calls):
        super().__init__(FailedError)
        self.router, self.calls = router, calls

    def take(self, limit):
        taken = super().take(limit)
        self.router.close_queue(self.calls)
        return taken


def test_queue_that_is_closed_while_its_last_call_is_taken_is_not_over(script):
    pool, router = script
    caller = Caller(router, router.open_queue())
    caller.feed = ClosingFeed(router, caller.calls)
    caller.submit(functions.square, 2)
    (task,) = pool.client.supply(1)
    assert not caller.calls.finished.is_set()
    pool.client.deliver([died(task)])
    assert [type(answer) for answer in caller.take(1)] == [GivenUp]
    assert caller.calls.finished.is_set()


def test_queue_that_fails_is_over_when_all_its_calls_are_answered(script, monkeypatch):
    _, router = script
    caller = Caller(router, router.open_queue())
    over = []
    caller.submit(functions.square, 2)
    monkeypatch.setattr(caller.answers, "put", lambda answer: over.append(caller.calls.is_over))
    router.fail_queue(caller.calls, LookupError("no such setup"))
    assert (over, caller.calls.finished.is_set()) == ([False], True)
