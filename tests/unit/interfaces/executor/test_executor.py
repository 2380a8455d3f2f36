"""What CPython's and mpi4py's suites (tests/jobs) do not ask of an executor."""

from __future__ import annotations

import gc
import itertools
import logging
import operator
import pickle
import threading
import time
import weakref
from concurrent import futures
from typing import Any

import numpy as np
import pytest

from mpipar.errors import LaunchError, RequeueError
from mpipar.interfaces.executor.executor import BrokenWorkersError, Executor
from tests.support import functions

PATIENCE = 20

pytestmark = pytest.mark.usefixtures("installed")


def test_map_keeps_the_order_of_many_short_calls():
    with Executor() as executor:
        assert list(executor.map(operator.neg, range(5000))) == [-n for n in range(5000)]
        assert list(executor.map(operator.add, range(9), itertools.count(1), chunksize=4)) == [
            2 * n + 1 for n in range(9)
        ]
        assert list(executor.map(functions.square, [])) == []


def test_map_reads_its_input_at_once_unless_bounded():
    with Executor() as executor:
        source = iter(range(10))
        executor.map(functions.square, source)
        assert list(source) == []
        source = itertools.count()
        results: Any = executor.map(functions.square, source, buffersize=4)
        assert next(source) == 4  # taken away from the executor
        assert [next(results) for _ in range(6)] == [0, 1, 4, 9, 25, 36]
        results.close()


def test_map_left_early_drops_the_calls_that_no_worker_has():
    ran = []

    def run(number):
        ran.append(number)
        time.sleep(0.002)

    run.__module__, run.__qualname__ = functions.__name__, "run"
    vars(functions)["run"] = run  # found there by name: the workers are of this process
    with Executor() as executor:
        results: Any = executor.map(run, range(1000))
        next(results)
        results.close()
    del vars(functions)["run"]
    assert len(ran) < 500


def test_map_that_a_call_broke_has_given_all_results_before_it():
    with Executor() as executor:
        results = executor.map(functions.fail_at, itertools.repeat(700), range(1000))
        got = []
        with pytest.raises(ArithmeticError, match="700 is bad") as caught:
            got.extend(results)
    assert got == list(range(700))
    assert "in fail_at" in str(caught.value.__cause__)


def test_map_of_a_shut_down_executor_raises_for_what_was_cancelled():
    executor = Executor(1)
    results = executor.map(functions.nap, [0.05] * 100)
    next(results)
    executor.shutdown(cancel_futures=True)
    with pytest.raises(futures.CancelledError):
        list(results)


def test_arrays_are_not_shared_between_caller_and_worker():
    array = np.arange(10_000.0)
    with Executor() as executor:
        first, second = executor.map(functions.double_in_place, [array, array[::2]])
    assert array[1] == 1.0
    assert (first[1], second[1]) == (2.0, 4.0)
    first += 1  # and can be written to


def test_initializer_runs_once_on_each_worker():
    functions.setups.clear()
    with Executor(initializer=functions.remember, initargs=("here",)) as executor:
        assert set(executor.map(lambda_free, range(100))) == {"here"}
    threads = [thread for thread, _ in functions.setups]
    assert len(threads) == len(set(threads)) <= 3


def lambda_free(number):
    del number
    return functions.recall()


def test_failing_initializer_breaks_its_own_executor_only(caplog):
    other = Executor()
    executor = Executor(initializer=functions.refuse)
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"):
        with pytest.raises(BrokenWorkersError, match="no such file"):
            list(executor.map(functions.square, range(50)))
        with pytest.raises(futures.BrokenExecutor):
            executor.submit(functions.square, 1)
    assert len([record for record in caplog.records if "refuse" in record.getMessage()]) == 1
    executor.shutdown()
    assert other.submit(functions.square, 3).result(PATIENCE) == 9
    other.shutdown()


def test_several_executors_share_the_workers():
    executors = [Executor() for _ in range(5)]
    found = [executor.map(functions.square, range(100)) for executor in executors]
    for results in found:
        assert sum(results) == 328350
    for executor in executors:
        assert executor.num_workers == 3
        executor.shutdown()
        assert executor.num_workers == 0


def test_forgotten_executor_finishes_its_calls():
    executor = Executor()
    submitted = [executor.submit(functions.nap, 0.01) for _ in range(10)]
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is None
    futures.wait(submitted, PATIENCE)
    assert all(future.done() and future.exception() is None for future in submitted)


def test_callbacks_may_submit_and_shut_down():
    executor, called = Executor(), threading.Event()

    def go_on(future):
        again = executor.submit(functions.square, future.result())
        executor.shutdown()  # waits for nothing: this thread delivers the results
        again.add_done_callback(lambda done: called.set())

    executor.submit(functions.square, 2).add_done_callback(go_on)
    assert called.wait(PATIENCE)


def nested():
    return Executor()


def test_a_call_cannot_have_an_executor_of_its_own():
    with Executor() as executor, pytest.raises(LaunchError, match="workers of its own"):
        executor.submit(nested).result(PATIENCE)


def test_submit_of_many_is_answered_to_the_last():
    with Executor(2) as executor:
        submitted = [executor.submit(operator.mul, n, 2) for n in range(3000)]
    assert [future.result(0) for future in submitted] == list(range(0, 6000, 2))


def test_options_that_cannot_be():
    no_function: Any = 3
    with pytest.raises(TypeError, match="callable"):
        Executor(initializer=no_function)
    cannot_be: Any = ({"chunksize": 0}, {"buffersize": 0}, {"buffersize": 2, "unordered": True})
    no_number: Any = "2"
    with Executor() as executor:
        for options in cannot_be:
            with pytest.raises(ValueError, match="size"):
                executor.map(functions.square, [1], **options)
        with pytest.raises(TypeError):
            executor.map(functions.square, [1], buffersize=no_number)


@pytest.mark.parametrize(("size", "most"), [(10, 61), (100_000, 1)])
def test_large_callable_object_is_pickled_once_for_a_map(size, most):
    with Executor() as executor:
        model = functions.Model(size)
        assert list(executor.map(model, range(60))) == [size * n for n in range(60)]
        assert 1 <= model.pickled <= most
        assert list(executor.map(model.__call__, [2.0])) == [2.0 * size]
    assert not executor._router._setup_blocks


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("chunk", [1, 7])
def test_no_call_sees_what_another_has_changed_in_an_object(size, chunk):
    with Executor() as executor:
        counter = functions.Counter(size)
        expected = [(1.0, 1, n) for n in range(40)]
        assert list(executor.map(counter, range(40), chunksize=chunk)) == expected
        assert list(executor.map(counter.__call__, range(40), chunksize=chunk)) == expected
        submitted = [executor.submit(counter, n) for n in range(40)]
        assert [future.result(PATIENCE) for future in submitted] == expected


def test_result_that_ends_a_program_when_it_is_read_is_one_call_s_failure(installed):
    with Executor() as executor, Executor() as other:
        for make in (functions.EndsWhenRead, functions.EndsWhenPickled):
            for future in (executor.submit(make, 5), executor.submit(type, make(5))):
                error = future.exception(PATIENCE)
                assert isinstance(error, pickle.PicklingError)
                assert "SystemExit: 5" in str(error)
        assert executor.submit(functions.square, 3).result(PATIENCE) == 9
        assert other.submit(functions.square, 3).result(PATIENCE) == 9


def test_large_callable_object_that_no_worker_can_read_breaks_nothing(monkeypatch):
    with Executor() as executor:
        monkeypatch.setattr(functions.Model, "__setstate__", functions.refuse)
        with pytest.raises(TypeError):
            list(executor.map(functions.Model(100_000), range(3)))
        assert executor.submit(functions.square, 3).result(PATIENCE) == 9


def test_arguments_of_the_standard_library_s_executor_are_taken():
    with Executor(mp_context=None, max_tasks_per_child=3) as executor:
        assert executor.submit(functions.square, 3).result(PATIENCE) == 9
    with pytest.raises(TypeError, match="no argument 'max_worker'"):
        Executor(max_worker=3)


def test_executor_whose_workers_are_gone_is_broken(installed):
    with Executor() as executor:
        assert executor.submit(functions.square, 2).result(PATIENCE) == 4
        installed._error = RequeueError("no worker is left")
        with pytest.raises(BrokenWorkersError, match="no worker is left"):
            executor.submit(functions.square, 2)
        with pytest.raises(BrokenWorkersError, match="no worker is left"):
            executor.map(functions.square, [1])
        assert executor.num_workers == 0
