"""A stage started on a worker, in the worker's own process or in supervised child processes."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mpipar.runtime.machines.caught_error import CaughtError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mpipar.runtime.isolation.isolated_tasks import TaskChild
    from mpipar.runtime.machines.orders import RunningTask
    from mpipar.runtime.stage import Block, Stage, Sums, Task

CLOSE_SECONDS = 2.5  # in which a child that is let go ends, by itself or killed
_closing: list[threading.Thread] = []  # each lets a child go
LONGEST_BATCH = 0.01
"""Seconds after which no further task of one batch is begun."""


@dataclass(slots=True)
class BatchResult:
    """The results and errors of tasks that a thread runs one after the other."""

    size: int  # how many tasks there are
    results: list[tuple[int, Any]] = field(default_factory=list)
    errors: list[tuple[int, CaughtError]] = field(default_factory=list)
    seconds: float = 0.0  # of all tasks together
    left: Sequence[Task] = ()  # not begun: the others took longer than was expected
    taken: int = 0  # results that were taken before the end
    began: float = field(default_factory=time.perf_counter)

    def take_partial_results(self) -> tuple[tuple[int, Any], ...]:
        """Return results that need not wait for the end, each once. Called by another thread."""
        results = tuple(self.results[self.taken :])
        is_last = len(results) + self.taken + len(self.errors) == self.size
        if is_last or time.perf_counter() - self.began < LONGEST_BATCH:
            return ()
        self.taken += len(results)
        return results


class PreparedStage(Protocol):
    """A started stage, as compute threads use it; `thread` is the number of the calling thread."""

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], batch: BatchResult
    ) -> None:
        """Run the tasks; the result or error of each is put into `batch` at once."""
        ...

    def running(self) -> list[RunningTask]:
        """Return the tasks being run that cannot be stopped on this worker."""
        ...

    def sums(self) -> Sums | None:
        """Return the sums of all tasks that were run; None if the stage adds nothing."""
        ...

    def close(self) -> None:
        """Drop the state: the run is over. Called by another thread, and must not wait."""
        ...


class InProcessStage:
    """A stage in the worker's own process; all compute threads use one state."""

    def __init__(self, stage: Stage, shared: Mapping[str, Any], slowdown: float) -> None:
        self._stage = stage
        self._slowdown = slowdown
        self._running: dict[int, RunningTask] = {}  # by thread
        self._state = stage.start(shared)

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], batch: BatchResult
    ) -> None:
        clock = time.perf_counter
        run, state, results = self._stage.run, self._state, batch.results
        running = self._running
        start = now = clock()
        for begun, (task, block) in enumerate(work):
            if now - start > LONGEST_BATCH:
                batch.left = [task for task, _ in work[begun:]]
                break
            running[thread] = task.id, now
            try:
                result = run(task, block, state)
                if self._slowdown > 1:
                    time.sleep((self._slowdown - 1) * (clock() - now))
                results.append((task.id, result))
            except BaseException as error:  # a task's SystemExit is that task's failure
                batch.errors.append((task.id, CaughtError.of(error)))
            now = clock()
        batch.seconds = now - start
        running.pop(thread, None)

    def running(self) -> list[RunningTask]:
        return list(self._running.values())

    def sums(self) -> Sums | None:
        return self._stage.partial(self._state)

    def close(self) -> None:
        """Do nothing: Python drops the state with the last thread that uses it."""


class IsolatedStage:
    """A stage in child processes, one for each compute thread that gets a task."""

    def __init__(
        self, stage: Stage, shared: Mapping[str, Any], timeout: float | None, thread: int
    ) -> None:
        """Start the first child process. Raises StartFailedError if the stage does not start."""
        self._what = stage, shared, timeout
        self._children: dict[int, TaskChild] = {}
        self._closed = False
        self._child(thread).start()

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], batch: BatchResult
    ) -> None:
        ended = set()
        for ran in self._child(thread).run(work, longest=LONGEST_BATCH):
            ended.add(ran.task)
            batch.seconds += ran.seconds
            if ran.error is None:
                batch.results.append((ran.task, ran.result))
            else:
                batch.errors.append((ran.task, ran.error))
        batch.left = [task for task, _ in work if task.id not in ended]

    def running(self) -> list[RunningTask]:
        return []  # a child process whose task takes too long is killed

    def sums(self) -> Sums | None:
        return None

    def _child(self, thread: int) -> TaskChild:
        from mpipar.runtime.isolation.isolated_tasks import TaskChild

        if thread not in self._children:
            stage, shared, timeout = self._what
            child = self._children[thread] = TaskChild(stage, shared, timeout=timeout)
            if self._closed:
                child.close()
        return self._children[thread]

    def close(self) -> None:
        self._closed = True
        _closing[:] = [thread for thread in _closing if thread.is_alive()]
        for child in list(self._children.values()):
            thread = threading.Thread(target=child.close, name="close-child", daemon=True)
            thread.start()
            _closing.append(thread)


def await_closed() -> None:
    """Wait until the child processes that were let go have ended, and what they had started.

    If this process ended before, the kernel would kill a child before it can end its own children.
    """
    until = time.monotonic() + CLOSE_SECONDS
    for thread in tuple(_closing):
        thread.join(max(0.0, until - time.monotonic()))
