"""A stage that has been started on a worker, in its process or in supervised child processes."""

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

LONGEST_BURST = 0.01
"""Seconds after which no further task of one burst is begun."""


@dataclass(slots=True)
class BurstResult:
    """What has come of tasks that were run one after the other."""

    size: int  # how many tasks there are
    results: list[tuple[int, Any]] = field(default_factory=list)
    troubles: list[tuple[int, CaughtError]] = field(default_factory=list)
    seconds: float = 0.0  # together
    left: Sequence[Task] = ()  # not begun: the others took longer than was thought
    told: int = 0  # results that were told before the end
    began: float = field(default_factory=time.perf_counter)

    def overdue(self) -> tuple[tuple[int, Any], ...]:
        """Results that shall not wait for the end any longer; by another thread, each once."""
        results = tuple(self.results[self.told :])
        is_last = len(results) + self.told + len(self.troubles) == self.size
        if is_last or time.perf_counter() - self.began < LONGEST_BURST:
            return ()
        self.told += len(results)
        return results


class PreparedStage(Protocol):
    """What compute threads need of it; `thread` is the number of the one that calls."""

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], burst: BurstResult
    ) -> None:
        """Run the tasks; what comes of each is in `burst` at once."""
        ...

    def running(self) -> list[RunningTask]:
        """Return the tasks being run that nobody here can stop."""
        ...

    def sums(self) -> Sums | None: ...

    def close(self) -> None:
        """The run is over; called by another thread, and must not wait."""
        ...


class InProcessStage:
    """A stage in the worker's own process; the state is shared by its threads."""

    def __init__(self, stage: Stage, shared: Mapping[str, Any], slowdown: float) -> None:
        self._stage = stage
        self._slowdown = slowdown
        self._running: dict[int, RunningTask] = {}  # by thread
        self._state = stage.start(shared)

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], burst: BurstResult
    ) -> None:
        clock = time.perf_counter
        run, state, results = self._stage.run, self._state, burst.results
        running = self._running
        start = now = clock()
        for begun, (task, block) in enumerate(work):
            if now - start > LONGEST_BURST:
                burst.left = [task for task, _ in work[begun:]]
                break
            running[thread] = task.id, now
            try:
                result = run(task, block, state)
                if self._slowdown > 1:
                    time.sleep((self._slowdown - 1) * (clock() - now))
                results.append((task.id, result))
            except BaseException as error:  # a task's SystemExit is that task's failure
                burst.troubles.append((task.id, CaughtError.of(error)))
            now = clock()
        burst.seconds = now - start
        running.pop(thread, None)

    def running(self) -> list[RunningTask]:
        return list(self._running.values())

    def sums(self) -> Sums | None:
        return self._stage.partial(self._state)

    def close(self) -> None:
        """The state goes with its last user."""


class IsolatedStage:
    """A stage in child processes, one for each compute thread that gets a task."""

    def __init__(
        self, stage: Stage, shared: Mapping[str, Any], timeout: float | None, thread: int
    ) -> None:
        """Start the first one, to see whether the stage starts. Raises StartFailedError."""
        self._what = stage, shared, timeout
        self._children: dict[int, TaskChild] = {}
        self._closed = False
        self._child(thread).start()

    def run(
        self, thread: int, work: Sequence[tuple[Task, Block | None]], burst: BurstResult
    ) -> None:
        ended = set()
        for ran in self._child(thread).run(work, longest=LONGEST_BURST):
            ended.add(ran.task)
            burst.seconds += ran.seconds
            if ran.error is None:
                burst.results.append((ran.task, ran.result))
            else:
                burst.troubles.append((ran.task, ran.error))
        burst.left = [task for task, _ in work if task.id not in ended]

    def running(self) -> list[RunningTask]:
        return []  # the child processes are watched over

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
        for child in list(self._children.values()):
            threading.Thread(target=child.close, name="part", daemon=True).start()
