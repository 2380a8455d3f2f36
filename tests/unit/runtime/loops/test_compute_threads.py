from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from mpipar.runtime.loops.compute_threads import (
    ComputeThreads,
)
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    Drop,
    Gather,
    Gathered,
    Prepare,
    Prepared,
)
from mpipar.runtime.stage import Stage, Task

PATIENCE = 60.0
"""Seconds for what takes a moment on a machine that has nothing else to do."""


class Adder(Stage):
    def start(self, shared):
        if shared.get("broken"):
            raise RuntimeError("cannot start")
        return {"total": np.zeros(1, np.int64)}

    def run(self, task, block, state):
        if task.payload == "raise":
            raise ValueError("bad task")
        if task.payload == "exit":
            raise SystemExit(3)
        if isinstance(task.payload, float):
            time.sleep(task.payload)
        if isinstance(task.payload, threading.Barrier):
            task.payload.wait(PATIENCE)
        if isinstance(task.payload, threading.Event):
            task.payload.wait(PATIENCE)
        state["total"] += task.id
        return task.id, threading.get_ident()

    def partial(self, state):
        return state


class Floats(Adder):
    def partial(self, state):
        return {"total": np.zeros(1)}


@pytest.fixture
def engine():
    woken = threading.Event()
    engine: Any = ComputeThreads(2, 1.0, woken.set)
    engine.woken = woken
    yield engine
    assert engine.close(2.0)


def events(engine, count):
    found = []
    until = time.monotonic() + PATIENCE
    while len(found) < count and time.monotonic() < until:
        engine.woken.wait(0.2)
        engine.woken.clear()
        found += engine.events()
    assert len(found) == count
    return found


def test_stage_is_started_run_and_gathered(engine):
    engine.perform(Prepare(1, Adder(), {}))
    assert events(engine, 1) == [Prepared(1)]
    for number in range(0, 10, 2):
        pair = Task(number, None, None), Task(number + 1, None, None)
        engine.perform(Compute(1, tuple((task, None) for task in pair)))
    done = events(engine, 5)
    assert sorted(task for event in done for task, _ in event.results) == list(range(10))
    assert all(event.errors == () and event.seconds >= 0 for event in done)
    engine.perform(Gather(1, 1))
    (gathered,) = events(engine, 1)
    assert isinstance(gathered, Gathered)
    assert gathered.sums["total"].tolist() == [45]


def test_tasks_run_on_all_threads(engine):
    engine.perform(Prepare(1, Adder(), {}))
    events(engine, 1)
    both = threading.Barrier(2)
    for number in range(2):
        engine.perform(Compute(1, ((Task(number, None, both), None),)))
    assert len({event.results[0][1][1] for event in events(engine, 2)}) == 2


@pytest.mark.parametrize(("payload", "kind"), [("raise", "ValueError"), ("exit", "SystemExit")])
def test_exception_becomes_text_and_the_thread_lives_on(engine, payload, kind):
    engine.perform(Prepare(1, Adder(), {}))
    events(engine, 1)
    work = (Task(0, None, payload), None), (Task(1, None, None), None)
    engine.perform(Compute(1, work))
    (event,) = events(engine, 1)
    assert isinstance(event, Computed)
    ((task, trouble),) = event.errors
    assert (task, trouble.kind) == (0, kind)
    assert "test_compute_threads.py" in trouble.traceback
    assert [task for task, _ in event.results] == [1]


def test_order_that_takes_longer_than_was_thought_gives_the_rest_back(engine):
    engine.perform(Prepare(1, Adder(), {}))
    events(engine, 1)
    tasks = [Task(number, None, 0.008) for number in range(9)]
    engine.perform(Compute(1, tuple((task, None) for task in tasks)))
    (event,) = events(engine, 1)
    assert 1 <= len(event.results) <= 3
    assert list(event.left) == tasks[len(event.results) :]


def test_results_do_not_wait_for_a_long_task_of_their_order(engine):
    engine.perform(Prepare(1, Adder(), {}))
    events(engine, 1)
    long = threading.Event()
    engine.perform(Compute(1, ((Task(0, None, None), None), (Task(1, None, long), None))))
    (early,) = events(engine, 1)
    assert [task for task, _ in early.results] == [0]
    assert (early.more, early.seconds) == (True, 0.0)
    long.set()
    (last,) = events(engine, 1)
    assert [task for task, _ in last.results] == [1]
    assert not last.more
    assert last.seconds > 0.01  # of which `early` says nothing


def test_start_that_raises_is_reported(engine):
    engine.perform(Prepare(1, Adder(), {"broken": True}))
    (event,) = events(engine, 1)
    assert event.error.text == "cannot start"


def test_sums_that_are_not_integers_are_reported(engine):
    engine.perform(Prepare(1, Floats(), {}))
    events(engine, 1)
    engine.perform(Gather(1, 1))
    (event,) = events(engine, 1)
    assert "must return int64 arrays" in event.error.text


def test_dropped_stage_is_gone(engine):
    engine.perform(Prepare(1, Adder(), {}))
    events(engine, 1)
    engine.perform(Drop(1))
    engine.perform(Compute(1, ((Task(0, None, None), None),)))
    assert events(engine, 1) == [Computed(1, (), 0.0)]


def test_slowed_worker_takes_that_much_longer():
    woken = threading.Event()
    slow: Any = ComputeThreads(1, 4.0, woken.set)
    slow.woken = woken
    slow.perform(Prepare(1, Adder(), {}))
    events(slow, 1)
    slow.perform(Compute(1, ((Task(0, None, 0.05), None),)))
    assert events(slow, 1)[0].seconds >= 0.2
    assert slow.close(2.0)


def test_close_does_not_wait_for_a_hanging_task():
    engine = ComputeThreads(1, 1.0, lambda: None)
    engine.perform(Prepare(1, Adder(), {}))
    hangs = threading.Event()
    engine.perform(Compute(1, ((Task(0, None, hangs), None),)))
    assert not engine.close(0.05)
    hangs.set()
