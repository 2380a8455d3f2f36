"""Reports on a run: progress, result, statistics, and workers lost and new."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpipar.runtime.machines.liveness import LostWorker, name_of

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Hello, Rank
    from mpipar.runtime.stage import Sums, Totals

__all__ = [
    "CANNOT_REPLACE",
    "LostWorker",
    "NewWorker",
    "PoolStatistics",
    "RunResult",
    "StageStatistics",
]


@dataclass(frozen=True)
class NewWorker:
    """A worker that was started in the place of a lost one."""

    rank: Rank
    hello: Hello

    def __str__(self) -> str:
        return f"{name_of(self.rank, self.hello)} has been started in the place of a lost one"


@dataclass(frozen=True)
class PoolStatistics:
    """How far a run is."""

    done: int  # tasks that have ended, well or not
    total: int  # tasks
    stolen: int  # tasks
    running_workers: int  # that have tasks
    elapsed: float  # seconds
    lost: int = 0  # workers, since the pool was opened
    late: int = 0  # workers that have been silent for half as long as makes them lost
    run_again: int = 0  # tasks, because their workers were lost
    bytes_served: int = 0  # by rank 0, since the pool was opened


@dataclass(frozen=True)
class StageStatistics:
    """How long a run took, and how its tasks and blocks were distributed."""

    wall: float  # seconds
    blocks_served: int  # by rank 0
    bytes_served: int  # by rank 0
    steals: int  # of one or more tasks
    tasks_stolen: int
    tasks_per_rank: dict[int, int]
    busy_seconds_per_rank: dict[int, float]
    peer_blocks: int = 0  # blocks that workers got from each other
    lost: tuple[Rank, ...] = ()
    tasks_run_again: int = 0  # because of those losses


@dataclass(frozen=True)
class RunResult:
    """The results of a run."""

    results: list[Any]  # by task id
    sums: Sums | None  # of a stage that does not make totals of its own
    statistics: StageStatistics
    totals: Totals | None = None  # what has taken the sums


CANNOT_REPLACE = "--replace-lost does nothing here; it needs Open MPI with fault tolerance"
