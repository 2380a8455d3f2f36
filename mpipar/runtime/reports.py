"""What rank 0 can tell of a run: how far it is, what it took, what it gave, whom it lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Hello, Rank
    from mpipar.runtime.stage import Sums


@dataclass(frozen=True)
class LostWorker:
    """A worker that died or hangs, while the job goes on without it."""

    rank: Rank
    hello: Hello | None  # None: it died before it had greeted
    tasks: int  # that others run again
    left: int  # workers
    reason: str = ""  # empty: it is dead

    def __str__(self) -> str:
        name = name_of(self.rank, self.hello)
        if not self.left:
            why = f" ({self.reason})" if self.reason else ""
            return f"{name} is lost{why}, and no worker is left"
        again = {0: "no task is", 1: "1 task is"}.get(self.tasks, f"{self.tasks} tasks are")
        why = f": {self.reason}" if self.reason else ""
        return f"{name} is lost{why}; {again} run again by the {self.left} left"


@dataclass(frozen=True)
class NewWorker:
    """A worker that was started in the place of a lost one."""

    rank: Rank
    hello: Hello

    def __str__(self) -> str:
        return f"{name_of(self.rank, self.hello)} has been started in the place of a lost one"


def name_of(rank: Rank, hello: Hello | None) -> str:
    """Which worker that is, for a reader."""
    where = "" if hello is None else f" on {hello.host} (process {hello.process})"
    return f"rank {rank}{where}"


@dataclass(frozen=True)
class PoolStatistics:
    """How far a run is."""

    done: int
    total: int
    stolen: int
    running_workers: int
    elapsed: float  # seconds
    lost: int = 0  # workers, since the pool was opened


@dataclass(frozen=True)
class StageStatistics:
    """What a run took."""

    wall: float  # seconds
    blocks_served: int  # by rank 0
    bytes_served: int  # by rank 0
    steals: int
    tasks_stolen: int
    tasks_per_rank: dict[int, int]
    busy_seconds_per_rank: dict[int, float]
    peer_blocks: int = 0  # blocks that workers got from each other
    lost: tuple[Rank, ...] = ()
    tasks_run_again: int = 0  # because of those losses


@dataclass(frozen=True)
class RunResult:
    """What a run gave."""

    results: list[Any]  # by task id
    sums: Sums | None
    statistics: StageStatistics


CANNOT_REPLACE = "--replace-lost does nothing here; it needs Open MPI with fault tolerance"
