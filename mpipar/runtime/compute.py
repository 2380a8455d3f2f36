"""A worker's compute threads: the only place where a stage's code runs.

    Worker --Prepare, Compute, Gather--> Engine --(threads)--> Prepared, Computed, Gathered

A stage's state lives here, between the threads that use it; the worker's machine never sees it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.runtime.environment import single_threaded_blas
from mpipar.runtime.reduction import check_sums
from mpipar.runtime.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mpipar.runtime.stage import Block, Stage, Sums, Task


LONGEST_BURST = 0.01
"""Seconds after which no further task of one order is begun."""


# Orders


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start a stage."""

    serial: int
    stage: Stage
    shared: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compute:
    """Run tasks of a prepared stage, one after the other."""

    serial: int
    work: tuple[tuple[Task, Block | None], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gather:
    """Ask a stage for its sums."""

    serial: int
    number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of a stage's state."""

    serial: int


Order: TypeAlias = Prepare | Compute | Gather | Drop


# Events


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage has started."""

    serial: int
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """What has come of the tasks of one order."""

    serial: int
    results: tuple[tuple[int, Any], ...]
    seconds: float  # together
    troubles: tuple[tuple[int, Trouble], ...] = ()
    left: tuple[Task, ...] = ()  # not begun: the others took longer than was thought


@dataclass(frozen=True, slots=True)
class Gathered:
    """A stage has said what its sums are."""

    serial: int
    number: int
    sums: Sums | None
    trouble: Trouble | None = None


EngineEvent: TypeAlias = Prepared | Computed | Gathered


class Engine:
    """Compute threads fed by a queue. `wake` is called from a thread when an event is ready."""

    def __init__(self, threads: int, slowdown: float, wake: Callable[[], None]) -> None:
        self._slowdown = slowdown
        self._wake = wake
        self._orders: queue.SimpleQueue[Prepare | Compute | Gather | None] = queue.SimpleQueue()
        self._events: deque[EngineEvent] = deque()
        self._stages: dict[int, tuple[Stage, Any]] = {}
        self._threads = [
            threading.Thread(target=self._work, name=f"compute-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def perform(self, order: Order) -> None:
        """Take an order; its event appears later in `events`."""
        if isinstance(order, Drop):
            self._stages.pop(order.serial, None)
        else:
            self._orders.put(order)

    def events(self) -> list[EngineEvent]:
        """Return what has happened since the last call."""
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def close(self, patience: float) -> bool:
        """End the threads; False if one is still inside a task after `patience` seconds."""
        for _ in self._threads:
            self._orders.put(None)
        until = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            self._events.append(self._execute(order))
            del order  # its block must not outlive it here
            self._wake()

    def _execute(self, order: Prepare | Compute | Gather) -> EngineEvent:
        match order:
            case Prepare():
                return self._prepare(order)
            case Compute():
                return self._compute(order)
            case Gather():
                return self._gather(order)

    def _prepare(self, order: Prepare) -> Prepared:
        try:
            self._stages[order.serial] = order.stage, order.stage.start(order.shared)
            single_threaded_blas()  # `start` may have loaded another library
        except BaseException as error:  # even SystemExit must not end this thread
            return Prepared(order.serial, Trouble.of(error))
        return Prepared(order.serial)

    def _compute(self, order: Compute) -> Computed:
        prepared = self._stages.get(order.serial)
        if prepared is None:  # the run is over
            return Computed(order.serial, (), 0.0)
        stage, state = prepared
        results: list[tuple[int, Any]] = []
        troubles: list[tuple[int, Trouble]] = []
        begun, clock = 0, time.perf_counter
        start = now = clock()
        for task, block in order.work:
            if now - start > LONGEST_BURST:
                break
            begun += 1
            try:
                results.append((task.id, stage.run(task, block, state)))
            except BaseException as error:  # a task's SystemExit is that task's failure
                troubles.append((task.id, Trouble.of(error)))
            if self._slowdown > 1:
                time.sleep((self._slowdown - 1) * (clock() - now))
            now = clock()
        left = tuple(task for task, _ in order.work[begun:])
        return Computed(order.serial, tuple(results), now - start, tuple(troubles), left)

    def _gather(self, order: Gather) -> Gathered:
        try:
            stage, state = self._stages[order.serial]
            return Gathered(order.serial, order.number, check_sums(stage.partial(state)))
        except BaseException as error:
            return Gathered(order.serial, order.number, None, Trouble.of(error))
