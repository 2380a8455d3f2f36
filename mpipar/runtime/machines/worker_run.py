"""A worker's part in one run: its tasks, what they gave, its place in the reduction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpipar.runtime.machines.messages import Finished, Overdue
from mpipar.runtime.machines.reduction import WorkerReduction
from mpipar.runtime.machines.task_deque import TaskDeque

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.machines.orders import RunningTask

BURST_SECONDS = 0.002
"""Short tasks are handed to the compute threads in bursts of about this length."""
BURST_TASKS = 1000


class WorkerRun:
    """One run as this worker sees it; made by whichever of its messages comes first."""

    def __init__(self, serial: int, dice: random.Random | None) -> None:
        self.serial = serial
        self.begun = False
        self.prepared = False
        self.timeout: float | None = None  # seconds that a task may take before its rank is lost
        self.deque = TaskDeque(serial, dice)
        self.running: set[int] = set()  # handed to the compute threads
        self.bursts = 0  # the orders in which they were
        self.done = 0
        self.seconds = 0.0
        self.peers: dict[int, Rank] = {}  # block -> the victim that has it
        self.branch = WorkerReduction()
        self.finished: list[tuple[int, Any]] = []
        self.unreported = 0.0
        self.peer_blocks = 0
        self._ages: dict[RunningTask, float] = {}  # seconds for which tasks have been seen to run

    def burst(self) -> int:
        """Return how many tasks one order has: one, or more if they are short."""
        if not self.done:
            return 1
        mean = self.seconds / self.done
        return max(1, int(min(BURST_TASKS, BURST_SECONDS / mean if mean > 0 else BURST_TASKS)))

    def report(self, most: int) -> list[Finished]:
        """Return messages, of at most so many results each, for what is not reported yet."""
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

    def find_overdue(self, running: Iterable[RunningTask], seconds: float) -> Overdue | None:
        """Return word of a task that has run for longer than it may, once in a run.

        running   the tasks that the compute threads are at
        seconds   that have passed since the last call, in which this process was running
        """
        if self.timeout is None:
            return None
        self._ages = {task: self._ages.get(task, 0.0) + seconds for task in running}
        for (number, _), age in self._ages.items():
            if age > self.timeout:
                self.timeout = None  # once is enough: this rank will be told to stop
                return Overdue(self.serial, number)
        return None
