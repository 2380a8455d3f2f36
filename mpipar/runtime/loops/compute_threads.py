"""A worker's compute threads: the only place where a stage's code runs.

    WorkerMachine --Prepare, Compute, Gather--> ComputeThreads --Prepared, Computed, Gathered-->

A stage's state is kept here, for the threads that use it; the worker's machine never sees it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from mpipar.runtime.loops.prepared_stage import (
    BatchResult,
    InProcessStage,
    IsolatedStage,
    PreparedStage,
)
from mpipar.runtime.machines.caught_error import CaughtError, StartFailedError
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    ComputeEvent,
    Drop,
    Gather,
    Gathered,
    Order,
    Prepare,
    Prepared,
)
from mpipar.runtime.machines.reduction import check_sums
from mpipar.runtime.process.environment import single_threaded_blas

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.runtime.machines.orders import RunningTask


class ComputeThreads:
    """Compute threads that take orders from a queue and answer each with an event.

    `wake` is called from a thread when an event is ready.
    """

    def __init__(self, threads: int, slowdown: float, wake: Callable[[], None]) -> None:
        self._slowdown = slowdown
        self._wake = wake
        self._orders: queue.SimpleQueue[Prepare | Compute | Gather | None] = queue.SimpleQueue()
        self._events: deque[ComputeEvent] = deque()
        self._stages: dict[int, PreparedStage] = {}
        self._batches: dict[int, tuple[int, BatchResult]] = {}  # serial, batch; by thread
        self._lock = threading.Lock()  # of `_batches`, and of what is taken from them
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"compute-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def perform(self, order: Order) -> None:
        """Take an order; its event is returned later by `events`."""
        if isinstance(order, Drop):
            stage = self._stages.pop(order.serial, None)
            if stage is not None:
                stage.close()
        else:
            self._orders.put(order)

    def events(self) -> list[ComputeEvent]:
        """Return what has happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found + self._take_partial_results() if self._batches else found

    def _take_partial_results(self) -> list[ComputeEvent]:
        """Return the results so far of batches that take long."""
        found: list[ComputeEvent] = []
        with self._lock:
            for serial, batch in self._batches.values():
                if results := batch.take_partial_results():
                    found.append(Computed(serial, results, 0.0, more=True))
        return found

    def running(self, serial: int) -> list[RunningTask]:
        """Return the tasks of a run that are being run, and when each began."""
        stage = self._stages.get(serial)
        return [] if stage is None else stage.running()

    def close(self, patience: float) -> bool:
        """End the threads; False if one is still inside a task after `patience` seconds."""
        for _ in self._threads:
            self._orders.put(None)
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._closed = True
        for stage in list(self._stages.values()):
            stage.close()
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, thread: int) -> None:
        while (order := self._orders.get()) is not None:
            self._events.append(self._execute(order, thread))
            del order  # its block must not outlive it here
            self._wake()

    def _execute(self, order: Prepare | Compute | Gather, thread: int) -> ComputeEvent:
        match order:
            case Prepare():
                return self._prepare(order, thread)
            case Compute():
                return self._compute(order, thread)
            case Gather():
                return self._gather(order)

    def _prepare(self, order: Prepare, thread: int) -> Prepared:
        stage, shared, policy = order.stage, order.shared, order.policy
        try:
            prepared: PreparedStage
            if policy.isolate:
                prepared = IsolatedStage(stage, shared, policy.timeout, thread)
            else:
                prepared = InProcessStage(stage, shared, self._slowdown)
            self._stages[order.serial] = prepared
            single_threaded_blas()  # `start` may have loaded another library
            if self._closed:
                prepared.close()
        except StartFailedError as error:
            return Prepared(order.serial, error.caught)
        except BaseException as error:  # even SystemExit must not end this thread
            return Prepared(order.serial, CaughtError.of(error))
        return Prepared(order.serial)

    def _compute(self, order: Compute, thread: int) -> Computed:
        stage = self._stages.get(order.serial)
        if stage is None:  # the run is over
            return Computed(order.serial, (), 0.0)
        batch = BatchResult(len(order.work))
        with self._lock:
            self._batches[thread] = order.serial, batch
        try:
            stage.run(thread, order.work, batch)
        except StartFailedError as error:  # of a new child process; errors of tasks are in `batch`
            taken = dict(batch.results[: batch.taken])
            ids = [task.id for task, _ in order.work if task.id not in taken]
            failed = tuple((task, error.caught) for task in ids)
            return Computed(order.serial, (), 0.0, failed)
        finally:
            with self._lock:
                del self._batches[thread]
        results, errors = tuple(batch.results[batch.taken :]), tuple(batch.errors)
        return Computed(order.serial, results, batch.seconds, errors, tuple(batch.left))

    def _gather(self, order: Gather) -> Gathered:
        try:
            sums = check_sums(self._stages[order.serial].sums())
            return Gathered(order.serial, order.number, sums)
        except BaseException as error:
            return Gathered(order.serial, order.number, None, CaughtError.of(error))
