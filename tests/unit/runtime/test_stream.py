from __future__ import annotations

import os
import threading
import time
from collections import deque

import pytest

from mpipar.errors import TaskFailedError
from mpipar.runtime.clusters import thread_cluster
from mpipar.runtime.stage import GivenUpTask, Policy, Stage, Task

PATIENCE = 60.0
"""Seconds for what takes a moment on a machine that has nothing else to do."""


class Double(Stage):
    gate = threading.Event()

    def run(self, task, block, state):
        if task.payload == "raise":
            raise ValueError("told to")
        if task.payload == "wait":
            self.gate.wait(PATIENCE)
            return None
        if task.payload == "sleep":
            time.sleep(0.02)
            return None
        return 2 * task.payload


class Broken(Double):
    def start(self, shared):
        raise OSError("no such thing")


class Client:
    """Has tasks, keeps results, and notes how many tasks were under way at once."""

    def __init__(self):
        self.waiting = deque()
        self.results = {}
        self.count = 0
        self.under_way = self.most = 0
        self.over = threading.Event()
        self.error = None

    def put(self, *payloads):
        for payload in payloads:
            self.waiting.append(Task(self.count, None, payload))
            self.count += 1

    def supply(self, limit):
        tasks = [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]
        self.under_way += len(tasks)
        self.most = max(self.most, self.under_way)
        return tasks

    def deliver(self, results):
        assert not self.results.keys() & dict(results).keys()
        self.results.update(results)
        self.under_way -= len(results)

    def ended(self, error):
        self.error = error
        self.over.set()


@pytest.fixture
def pool():
    with thread_cluster.open_pool(2) as pool:
        yield pool


def test_results_come_while_tasks_are_added(pool):
    client = Client()
    stream = pool.stream(Double(), {}, client)
    client.put(*range(100))
    stream.notify()
    until = time.monotonic() + PATIENCE
    while len(client.results) < 100 and time.monotonic() < until:
        time.sleep(0.001)
    assert client.results == {number: 2 * number for number in range(100)}
    client.put(*range(100, 5000))
    stream.notify()
    stream.close()
    assert client.results == {number: 2 * number for number in range(5000)}
    assert client.over.is_set()
    assert client.error is None
    now = pool.statistics()
    assert (now.done, now.total, now.running_workers) == (5000, 5000, 0)


def test_tasks_that_are_long_are_handed_out_a_few_at_a_time(pool):
    client = Client()
    client.put(*["sleep"] * 20)
    pool.stream(Double(), {}, client).close()
    assert client.most <= 4
    assert len(client.results) == 20


def test_failure_is_a_result_and_the_rest_goes_on(pool):
    client = Client()
    client.put(1, "raise", 3)
    pool.stream(Double(), {}, client, policy=Policy(tries=2)).close()
    failure = client.results.pop(1)
    assert isinstance(failure, GivenUpTask)
    assert (failure.kind, failure.text, sorted(failure.ranks)) == ("ValueError", "told to", [1, 2])
    assert "test_stream.py" in failure.traceback
    assert client.results == {0: 2, 2: 6}


def test_stage_that_cannot_start_ends_the_stream_and_the_pool_lives_on(pool):
    client = Client()
    client.put(1)
    stream = pool.stream(Broken(), {}, client)
    assert client.over.wait(PATIENCE)
    assert isinstance(client.error, TaskFailedError)
    assert "no such thing" in str(client.error)
    stream.close()
    assert pool.run(Double(), {}, [Task(0, None, 4)]).results == [8]


def test_aborted_stream_delivers_no_more(pool):
    """Also while tasks are under way that do not end."""
    client = Client()
    client.put(*[1] * 10, *["wait"] * 500)
    Double.gate.clear()
    stream = pool.stream(Double(), {}, client)
    until = time.monotonic() + PATIENCE
    while len(client.results) < 10 and time.monotonic() < until:
        time.sleep(0.001)
    stream.abort()
    Double.gate.set()
    assert sorted(client.results) == list(range(10))
    assert client.error is None
    assert pool.run(Double(), {}, [Task(0, None, 4)]).results == [8]


def test_client_that_raises_ends_the_stream_with_its_error(pool):
    client = Client()
    client.deliver = lambda results: 1 / 0
    client.put(1)
    stream = pool.stream(Double(), {}, client)
    assert client.over.wait(PATIENCE)
    assert isinstance(client.error, ZeroDivisionError)
    stream.close()


def test_pool_does_one_thing_at_a_time(pool):
    stream = pool.stream(Double(), {}, Client())
    with pytest.raises(RuntimeError, match="a stream is under way"):
        pool.run(Double(), {}, [])
    stream.close()


HANG_SECONDS = 60.0


class Lethal(Stage):
    """Ends its process for some tasks."""

    def run(self, task, block, state):
        if task.payload == "exit":
            os._exit(3)
        if task.payload == "hang":
            time.sleep(HANG_SECONDS)
        return os.getpid()


def test_isolated_task_that_ends_its_process_costs_no_other_task(pool):
    client = Client()
    client.put(1, "exit", 3, 4)
    policy = Policy(tries=2, isolate=True)
    pool.stream(Lethal(), {}, client, policy=policy).close()
    failure = client.results.pop(1)
    assert (failure.kind, sorted(failure.ranks)) == ("Died", [1, 2])
    assert "exit code 3" in failure.text
    assert client.results.keys() == {0, 2, 3}
    assert os.getpid() not in client.results.values()


def test_isolated_task_that_takes_too_long_is_ended(pool):
    client = Client()
    client.put(1, "hang", 3)
    start = time.monotonic()
    policy = Policy(tries=1, isolate=True, timeout=0.3)
    pool.stream(Lethal(), {}, client, policy=policy).close()
    assert time.monotonic() - start < HANG_SECONDS
    assert client.results[1].kind == "Timeout"
    assert client.results.keys() == {0, 1, 2}
