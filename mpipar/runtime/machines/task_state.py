"""The states of a task, and the events that move a task from one state to the next.

    WAITING --ASSIGNED--> PLACED --FINISHED--> HELD --BANKED--> DONE
     | ^                   | | MOVED (stolen)   |
     | +--FAILED, RANK_LOST--+------RANK_LOST---+
     +--GIVEN_UP--> ASIDE

WAITING: the task is on no worker. PLACED: it is on one worker, perhaps running, perhaps in the
hands of a thief that has not claimed it yet. HELD: its result is on rank 0, its contribution only
in one worker's partial. DONE: its contribution is in a sum that has reached rank 0. ASIDE: it
failed on every try, or too many ranks were lost with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from mpipar.errors import ProtocolError

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.stage import Task


class TaskState(Enum):
    """Where a task is; see the diagram above."""

    WAITING = auto()
    PLACED = auto()
    HELD = auto()
    DONE = auto()
    ASIDE = auto()

    __hash__ = object.__hash__  # members are unique, and Enum's own hash is slow


class TaskEvent(Enum):
    """What moves a task."""

    ASSIGNED = auto()
    MOVED = auto()
    FINISHED = auto()
    FAILED = auto()
    BANKED = auto()
    RANK_LOST = auto()
    GIVEN_UP = auto()

    __hash__ = object.__hash__


NEXT: Final = {
    (TaskState.WAITING, TaskEvent.ASSIGNED): TaskState.PLACED,
    (TaskState.PLACED, TaskEvent.MOVED): TaskState.PLACED,
    (TaskState.PLACED, TaskEvent.FINISHED): TaskState.HELD,
    (TaskState.PLACED, TaskEvent.FAILED): TaskState.WAITING,
    (TaskState.PLACED, TaskEvent.RANK_LOST): TaskState.WAITING,
    (TaskState.HELD, TaskEvent.BANKED): TaskState.DONE,
    (TaskState.HELD, TaskEvent.RANK_LOST): TaskState.WAITING,
    (TaskState.WAITING, TaskEvent.GIVEN_UP): TaskState.ASIDE,
}
BY_OWNER: Final = frozenset({TaskEvent.FINISHED, TaskEvent.FAILED, TaskEvent.RANK_LOST})
"""Events that only the rank on which the task is can cause."""
ON_A_WORKER: Final = frozenset({TaskState.PLACED, TaskState.HELD})
FINISHED: Final = frozenset({TaskState.HELD, TaskState.DONE, TaskState.ASIDE})
NOWHERE: Final = frozenset({TaskState.WAITING, TaskState.ASIDE})


@dataclass(slots=True)
class TrackedTask:
    """One task, its state, and what has happened to it."""

    task: Task
    state: TaskState = TaskState.WAITING
    rank: Rank | None = None  # owner if PLACED, holder if HELD
    failed_on: tuple[Rank, ...] = ()
    died_on: tuple[Rank, ...] = ()  # ranks that were lost while they had the task
    history: tuple[tuple[TaskEvent, Rank], ...] = ()

    def move(self, event: TaskEvent, rank: Rank) -> None:
        """Make a transition, or raise ProtocolError and change nothing."""
        after = NEXT.get((self.state, event))
        if after is None or (event in BY_OWNER and rank != self.rank):
            history = ", ".join(f"{past.name} {where}" for past, where in self.history)
            raise ProtocolError(
                f"task {self.task.id} cannot take {event.name} (rank {rank}) while "
                f"{self.state.name} (rank {self.rank}); its history: {history or 'none'}"
            )
        self.history += ((event, rank),)
        self.state = after
        self.rank = None if after in NOWHERE else rank
