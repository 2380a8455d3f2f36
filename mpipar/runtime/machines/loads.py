"""The load of each worker: its tasks, how fast it is, and which workers have the fewest tasks.

Each method takes a time that does not grow with the number of workers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mpipar.runtime.machines.messages import Rank


@dataclass(slots=True)
class WorkerLoad:
    """What the scheduler knows of one worker."""

    placed: set[int] = field(default_factory=set)  # tasks that are there to be run
    held: set[int] = field(default_factory=set)  # tasks whose contributions are only there
    suspect: int | None = None  # of those placed, one with which another rank was lost
    suspect_started: bool = False
    overdue: int | None = None  # the task because of which the worker is about to be lost
    assignments: int = 0  # Place and Granted messages sent to it
    done: int = 0
    seconds: float = 0.0  # of computing the tasks that are done
    last_active: float = 0.0  # when it last finished or was given a task
    is_empty: bool = False  # it had nothing for a thief, and has been given nothing since
    victim: Rank | None = None  # the worker that it has been told to steal from
    thieves: int = 0  # workers that have been told to steal from it, and have not said the result


class WorkerLoads(dict[int, WorkerLoad]):
    """The loads of all workers that are not lost, by rank."""

    def __init__(
        self, ranks: Iterable[Rank], *, threads: int = 1, report_delay: float = 0.0
    ) -> None:
        """Begin with workers that have no tasks.

        threads       compute threads of each worker
        report_delay  seconds that a result may wait at a worker that has other tasks
        """
        super().__init__()
        self.now = 0.0  # seconds since the run began
        self._threads = threads
        self._report_delay = report_delay
        self._done = 0  # of all workers, lost ones too
        self._seconds = 0.0
        self._groups: defaultdict[int, dict[Rank, None]] = defaultdict(dict)  # by tasks placed
        self._smallest = 0  # no level below it has a rank
        for rank in ranks:
            self.rank_joined(rank)

    def rank_joined(self, rank: Rank) -> None:
        """A worker has come."""
        self[rank] = WorkerLoad(last_active=self.now)
        self._groups[0][rank] = None
        self._smallest = 0

    def add_tasks(self, rank: Rank, tasks: Iterable[int]) -> None:
        """Tasks are placed on a worker; those that are there already count once."""
        load = self[rank]
        before = len(load.placed)
        load.placed.update(tasks)
        self._regroup(rank, before)

    def remove_tasks(self, rank: Rank, tasks: Iterable[int]) -> None:
        """Tasks are taken off a worker."""
        load = self[rank]
        before = len(load.placed)
        load.placed.difference_update(tasks)
        self._regroup(rank, before)

    def finish_tasks(self, rank: Rank, tasks: Iterable[int]) -> None:
        """Tasks are done: they are not placed on the worker any more, but held."""
        load = self[rank]
        before = len(load.placed)
        load.placed.difference_update(tasks)
        load.held.update(tasks)
        self._regroup(rank, before)

    def _regroup(self, rank: Rank, before: int) -> None:
        after = len(self[rank].placed)
        if after != before:
            del self._groups[before][rank]
            self._groups[after][rank] = None
            self._smallest = min(self._smallest, after)

    def count_done(self, rank: Rank, tasks: int, seconds: float) -> None:
        """Count tasks that a worker has done in so many seconds of computing."""
        load = self[rank]
        load.done += tasks
        load.seconds += seconds
        load.last_active = self.now
        self._done += tasks
        self._seconds += seconds

    def rank_lost(self, rank: Rank) -> WorkerLoad:
        """A worker is lost: remove its load and return it."""
        load = self.pop(rank)
        del self._groups[len(load.placed)][rank]
        return load

    def least_loaded_first(self) -> Iterator[Rank]:
        """Return the workers, fewest tasks first. No load may change while this is read."""
        while self and not self._groups[self._smallest]:
            self._smallest += 1
        count, seen = self._smallest, 0
        while seen < len(self):
            ranks = self._groups.get(count, {})
            yield from ranks
            seen += len(ranks)
            count += 1

    @property
    def running(self) -> int:
        """How many workers have tasks."""
        return len(self) - len(self._groups[0])

    def mean_seconds(self) -> float:
        """Return the mean time of a task on all workers, in seconds; 0 before one has ended."""
        return self._seconds / self._done if self._done else 0.0

    def measured_seconds(self, rank: Rank) -> float:
        """Return the mean time of a task on a worker, in seconds.

        While the worker has ended no task, that is the mean of all workers.
        """
        load = self[rank]
        return load.seconds / load.done if load.done else self.mean_seconds()

    def task_seconds(self, rank: Rank) -> float:
        """Return the seconds that a worker needs for a task, as far as is known now.

        That is the measured mean, or the time since the worker was last active if that is longer.
        """
        load = self[rank]
        late = self.now - load.last_active - self._report_delay if load.placed else 0.0
        return max(self.measured_seconds(rank), late)

    def not_started(self, rank: Rank) -> float:
        """Return how many of the tasks placed on a worker have probably not started.

        Within the report delay, some tasks may be done without a report.
        """
        load = self[rank]
        surplus = float(len(load.placed) - self._threads)
        silence, measured = self.now - load.last_active, self.measured_seconds(rank)
        if silence < self._report_delay and measured > 0:
            surplus -= silence / measured * self._threads
        return max(0.0, surplus)

    def faults(self) -> Iterator[str]:
        """Describe what is kept here and disagrees with what each worker has."""
        grouped = {rank: count for count, ranks in self._groups.items() for rank in ranks}
        if grouped != {rank: len(load.placed) for rank, load in self.items()}:
            yield "workers are grouped by other numbers of tasks than they have"
        if sum(map(len, self._groups.values())) != len(grouped):
            yield "a worker is in two groups"
        if grouped and self._smallest > min(grouped.values()):
            yield "a worker has fewer tasks than the smallest group says"
        for rank, load in self.items():
            if load.suspect is not None and load.suspect not in load.placed:
                yield f"the suspect of rank {rank} is not placed there"
            if load.suspect_started and load.suspect is None:
                yield f"rank {rank} has begun a suspect that it does not have"
