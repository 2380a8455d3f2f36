"""What each worker has, as the scheduler sees it, and who has least.

Every question is answered in a time that does not grow with the number of workers.
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
    """One worker as the scheduler sees it."""

    placed: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    suspect: int | None = None  # of those placed: another rank was lost with it
    started: bool = False  # whether the suspect has begun
    overdue: int | None = None  # the task because of which the worker is about to be lost
    issued: int = 0  # assignments sent: Place and Granted messages
    done: int = 0
    seconds: float = 0.0  # of computing those
    since: float = 0.0  # when it last finished or got a task
    dry: bool = False  # answered a thief with nothing, and got nothing since
    asking: Rank | None = None  # the victim that it was told to ask
    raids: int = 0  # thieves that were told to ask it, and have not said what came of it


class WorkerLoads(dict[int, WorkerLoad]):
    """All workers that are not lost."""

    def __init__(self, ranks: Iterable[Rank], *, threads: int = 1, delay: float = 0.0) -> None:
        """`delay`: seconds that a result may wait at a worker that has other tasks."""
        super().__init__()
        self.now = 0.0  # seconds since the run began
        self._threads = threads
        self._delay = delay
        self._done = 0  # by workers that are lost, too
        self._seconds = 0.0
        self._levels: defaultdict[int, dict[Rank, None]] = defaultdict(dict)  # by tasks placed
        self._lowest = 0  # no level below it has a rank
        for rank in ranks:
            self.join(rank)

    def join(self, rank: Rank) -> None:
        """A worker is new."""
        self[rank] = WorkerLoad(since=self.now)
        self._levels[0][rank] = None
        self._lowest = 0

    def book(self, rank: Rank, tasks: Iterable[int]) -> None:
        """These tasks are now placed there."""
        load = self[rank]
        before = len(load.placed)
        load.placed.update(tasks)
        self._shift(rank, before)

    def unbook(self, rank: Rank, tasks: Iterable[int]) -> None:
        """These tasks are placed there no more."""
        load = self[rank]
        before = len(load.placed)
        load.placed.difference_update(tasks)
        self._shift(rank, before)

    def finish(self, rank: Rank, tasks: Iterable[int]) -> None:
        """These tasks are held there: what they add to the sums is in the partial of the rank."""
        load = self[rank]
        before = len(load.placed)
        load.placed.difference_update(tasks)
        load.held.update(tasks)
        self._shift(rank, before)

    def _shift(self, rank: Rank, before: int) -> None:
        after = len(self[rank].placed)
        if after != before:
            del self._levels[before][rank]
            self._levels[after][rank] = None
            self._lowest = min(self._lowest, after)

    def count(self, rank: Rank, tasks: int, seconds: float) -> None:
        """So many tasks are done there."""
        load = self[rank]
        load.done += tasks
        load.seconds += seconds
        load.since = self.now
        self._done += tasks
        self._seconds += seconds

    def lose(self, rank: Rank) -> WorkerLoad:
        """Take out a worker that is lost."""
        load = self.pop(rank)
        del self._levels[len(load.placed)][rank]
        return load

    def by_need(self) -> Iterator[Rank]:
        """Return the workers, those with the fewest tasks first. Nothing may change meanwhile."""
        while self and not self._levels[self._lowest]:
            self._lowest += 1
        level, seen = self._lowest, 0
        while seen < len(self):
            ranks = self._levels.get(level, {})
            yield from ranks
            seen += len(ranks)
            level += 1

    @property
    def running(self) -> int:
        """How many workers have tasks."""
        return len(self) - len(self._levels[0])

    def mean_seconds(self) -> float:
        """Return the seconds of an average task, as far as is known; 0 at first."""
        return self._seconds / self._done if self._done else 0.0

    def measured(self, rank: Rank) -> float:
        """Return the seconds of an average task here, or, while that is unknown, anywhere."""
        load = self[rank]
        return load.seconds / load.done if load.done else self.mean_seconds()

    def pace(self, rank: Rank) -> float:
        """Return the seconds that a task takes here: measured, or at least the current silence."""
        load = self[rank]
        late = self.now - load.since - self._delay if load.placed else 0.0
        return max(self.measured(rank), late)

    def surplus(self, rank: Rank) -> float:
        """Return how many tasks have probably not started here.

        Some may be done and not reported yet, but not those of a worker silent beyond the delay.
        """
        load = self[rank]
        surplus = float(len(load.placed) - self._threads)
        silence, measured = self.now - load.since, self.measured(rank)
        if silence < self._delay and measured > 0:
            surplus -= silence / measured * self._threads
        return max(0.0, surplus)

    def faults(self) -> Iterator[str]:
        """Describe what is kept here and disagrees with what each worker has."""
        grouped = {rank: count for count, ranks in self._levels.items() for rank in ranks}
        if grouped != {rank: len(load.placed) for rank, load in self.items()}:
            yield "workers are grouped by other numbers of tasks than they have"
        if sum(map(len, self._levels.values())) != len(grouped):
            yield "a worker is in two groups"
        if grouped and self._lowest > min(grouped.values()):
            yield "a worker has fewer tasks than the lowest group"
        for rank, load in self.items():
            if load.suspect is not None and load.suspect not in load.placed:
                yield f"the suspect of rank {rank} is not placed there"
            if load.started and load.suspect is None:
                yield f"rank {rank} has begun a suspect that it does not have"
