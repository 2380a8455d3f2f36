"""A worker's part in one run: its tasks, their results, and its place in the reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpipar.runtime.machines.messages import Finished, TaskOverdue
from mpipar.runtime.machines.reduction import WorkerReduction
from mpipar.runtime.machines.task_deque import TaskDeque

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.machines.orders import RunningTask

BATCH_SECONDS = 0.002
"""Short tasks are given to the compute threads in batches that take about this long."""
BATCH_TASKS = 1000  # at most


class WorkerRun:
    """One run, as this worker sees it; made when the first of its messages arrives."""

    def __init__(self, serial: int, dice: random.Random | None) -> None:
        self.serial = serial
        self.begun = False  # whether Begin has come
        self.prepared = False  # whether the stage has started
        self.timeout: float | None = None  # seconds that a task may take before its rank is lost
        self.deque = TaskDeque(serial, dice)
        self.running: set[int] = set()  # tasks given to the compute threads
        self.batches = 0  # orders to the compute threads that are under way
        self.done = 0  # tasks
        self.seconds = 0.0  # of computing these
        self.peers: dict[int, Rank] = {}  # block -> the victim that has it
        self.reduction = WorkerReduction()
        self.finished: list[tuple[int, Any]] = []  # results that are not reported yet
        self.unreported = 0.0  # seconds of computing these
        self.peer_blocks = 0  # blocks from other workers that are not reported yet
        self._ages: dict[RunningTask, float] = {}  # seconds for which tasks have been seen to run

    def batch_size(self) -> int:
        """Return how many tasks one order is to have: one, or more if they are short."""
        if not self.done:
            return 1
        mean = self.seconds / self.done
        return max(1, int(min(BATCH_TASKS, BATCH_SECONDS / mean if mean > 0 else BATCH_TASKS)))

    def report(self, most: int) -> list[Finished]:
        """Return messages with the results not reported yet, at most `most` in each."""
        finished, seconds, blocks = self.finished, self.unreported, self.peer_blocks
        if not finished:
            return []
        self.finished, self.unreported, self.peer_blocks = [], 0.0, 0
        messages = []
        for start in range(0, len(finished), most):
            results = tuple(finished[start : start + most])
            messages.append(Finished(self.serial, results, seconds, blocks))
            seconds, blocks = 0.0, 0
        return messages

    def find_overdue(self, running: Iterable[RunningTask], seconds: float) -> TaskOverdue | None:
        """Return the message about a task that has run for longer than it may, once in a run.

        running   the tasks that the compute threads are at
        seconds   that have passed since the last call, in which this process was running
        """
        if self.timeout is None:
            return None
        self._ages = {task: self._ages.get(task, 0.0) + seconds for task in running}
        for (number, _), age in self._ages.items():
            if age > self.timeout:
                self.timeout = None  # once is enough: this rank will be told to stop
                return TaskOverdue(self.serial, number)
        return None
