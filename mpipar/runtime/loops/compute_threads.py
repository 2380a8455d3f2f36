"""A worker's compute threads: the only place where a stage's code runs.

    Worker --Prepare, Compute, Gather--> Engine --(threads)--> Prepared, Computed, Gathered

A stage's state lives here, between the threads that use it; the worker's machine never sees it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from mpipar.runtime.loops.prepared_stage import (
    BurstResult,
    InProcessStage,
    IsolatedStage,
    PreparedStage,
)
from mpipar.runtime.machines.caught_error import CaughtError, StartFailedError
from mpipar.runtime.machines.orders import (
    Compute,
    Computed,
    Drop,
    EngineEvent,
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
    """Compute threads fed by a queue. `wake` is called from a thread when an event is ready."""

    def __init__(self, threads: int, slowdown: float, wake: Callable[[], None]) -> None:
        self._slowdown = slowdown
        self._wake = wake
        self._orders: queue.SimpleQueue[Prepare | Compute | Gather | None] = queue.SimpleQueue()
        self._events: deque[EngineEvent] = deque()
        self._stages: dict[int, PreparedStage] = {}
        self._bursts: dict[int, tuple[int, BurstResult]] = {}  # under way, by thread
        self._peeling = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(index,), name=f"compute-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def perform(self, order: Order) -> None:
        """Take an order; its event appears later in `events`."""
        if isinstance(order, Drop):
            stage = self._stages.pop(order.serial, None)
            if stage is not None:
                stage.close()
        else:
            self._orders.put(order)

    def events(self) -> list[EngineEvent]:
        """Return what has happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found + self._peeled() if self._bursts else found

    def _peeled(self) -> list[EngineEvent]:
        """What bursts that take long have brought so far."""
        found: list[EngineEvent] = []
        with self._peeling:
            for serial, burst in self._bursts.values():
                if results := burst.overdue():
                    found.append(Computed(serial, results, 0.0, more=True))
        return found

    def running(self, serial: int) -> list[RunningTask]:
        """Return which tasks of a run the threads are at, and since when."""
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

    def _execute(self, order: Prepare | Compute | Gather, thread: int) -> EngineEvent:
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
            return Prepared(order.serial, error.trouble)
        except BaseException as error:  # even SystemExit must not end this thread
            return Prepared(order.serial, CaughtError.of(error))
        return Prepared(order.serial)

    def _compute(self, order: Compute, thread: int) -> Computed:
        stage = self._stages.get(order.serial)
        if stage is None:  # the run is over
            return Computed(order.serial, (), 0.0)
        burst = BurstResult(len(order.work))
        with self._peeling:
            self._bursts[thread] = order.serial, burst
        try:
            stage.run(thread, order.work, burst)
        except StartFailedError as error:  # of another child; a task's own errors are no raise
            told = dict(burst.results[: burst.told])
            ids = [task.id for task, _ in order.work if task.id not in told]
            failed = tuple((task, error.trouble) for task in ids)
            return Computed(order.serial, (), 0.0, failed)
        finally:
            with self._peeling:
                del self._bursts[thread]
        results, troubles = tuple(burst.results[burst.told :]), tuple(burst.troubles)
        return Computed(order.serial, results, burst.seconds, troubles, tuple(burst.left))

    def _gather(self, order: Gather) -> Gathered:
        try:
            sums = check_sums(self._stages[order.serial].sums())
            return Gathered(order.serial, order.number, sums)
        except BaseException as error:
            return Gathered(order.serial, order.number, None, CaughtError.of(error))
