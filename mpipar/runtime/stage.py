"""What a program gives to the runtime: tasks, a stage that computes them, a source of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mpipar.errors import InputError, MpiparError, TaskFailedError

Block: TypeAlias = Mapping[str, NDArray[Any]]
"""Named arrays of one block of the data; read-only, shared by every task that uses the block."""


class StoredBlock(Mapping[str, NDArray[Any]]):
    """A block that travels as it was read; the worker makes its arrays when a task first looks.

    It is pickled, and what a task sees of it depends on what was read alone. Its arrays are
    read-only and C-ordered. Several threads may look at once.
    """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The bytes of its arrays, made or not: what it takes in a cache."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """The bytes that it takes to send it now."""


Sums: TypeAlias = dict[str, NDArray[np.int64]]
"""Named int64 arrays; integers, because their sum does not depend on the order."""


class Totals(Protocol):
    """What takes the sums of all workers on rank 0."""

    def take(self, name: str, start: int, piece: NDArray[np.int64]) -> None:
        """Take elements from `start` on of an array's sum, flattened. Each comes once."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work of one `Pool.run`."""

    id: int  # 0..n-1 within one run
    block: int | None  # the block of the pool's source that the task needs
    payload: Any  # small and picklable

    def __reduce__(self) -> tuple[type[Task], tuple[int, int | None, Any]]:
        # Ten times as fast as the pickling that a slotted dataclass has; there are many tasks.
        return Task, (self.id, self.block, self.payload)


QUARANTINED: Final = "Quarantined"
TIMEOUT: Final = "Timeout"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a run does about tasks that fail."""

    tries: int = 3  # how often a task that raises is run, on other ranks if there are any
    deaths: int = 3  # a task with which so many ranks died is given up (quarantined)
    timeout: float | None = None  # seconds that one task may take; None: any
    isolate: bool = False  # run tasks in a supervised child process; only for stages without sums

    def __post_init__(self) -> None:
        if self.tries < 1 or self.deaths < 1 or (self.timeout is not None and self.timeout <= 0):
            raise ValueError("tries and deaths are counted from 1, and a time-out is above 0 s")


@dataclass(frozen=True, slots=True)
class GivenUpTask:
    """Why a task was given up; stands in the place of its result."""

    task: int
    kind: str  # class of the last exception; Died, Timeout, or QUARANTINED
    text: str
    traceback: str  # of the last exception, where it was raised
    ranks: tuple[int, ...]  # those that tried the task
    block: int | None = None

    def as_error(self) -> MpiparError:
        """Return the error of a run that ends with it: what a task says of the input is said."""
        if self.kind == InputError.__name__:
            return InputError(self.text)
        return TaskFailedError(str(self))

    def __str__(self) -> str:
        task = f"task {self.task}" + ("" if self.block is None else f" (block {self.block})")
        if self.kind == QUARANTINED:
            return f"{task} is set aside: {self.text}"
        ranks, times = ", ".join(map(str, self.ranks)), len(self.ranks)
        tries = f"{times} times, on ranks {ranks}" if times > 1 else f"on rank {ranks}"
        return f"{task} failed {tries}: {self.kind}: {self.text}\n{self.traceback}".rstrip()


class Stage(ABC):
    """A step of a program, computed by workers: the only code of a program that the runtime calls.

    A stage is sent by pickle: its attributes by value, its class by reference.
    """

    def start(self, shared: Mapping[str, Any]) -> Any:
        """Set up one worker, once per run; return the state that every `run` there is given.

        The arrays in `shared` are read-only: the workers of one host may have the same memory.
        """
        del shared
        return None

    @abstractmethod
    def run(self, task: Task, block: Block | None, state: Any) -> Any:
        """Compute one task and return its (picklable) result.

        Called from several threads at once when the pool has more than one thread per worker. A
        task that raises is run again, so add to the sums in `state` last, and under a lock.
        """

    def partial(self, state: Any) -> Sums | None:
        """Return the sums of all tasks that this worker ran, or None if there is nothing to add.

        A stage that does not override this has no sums, and its runs have no reduction. Called
        when no task is running; called again if tasks of a lost rank had to be run again.
        """
        del state
        return None

    def totals(self, shapes: Mapping[str, tuple[int, ...]]) -> Totals | None:
        """Return what takes the sums on rank 0, a few megabytes at a time.

        So rank 0 needs no memory for int64 arrays that the program would only convert. None: it
        gets these. Called again if the sum begins again because a rank was lost.

        shapes   of the arrays that any worker's `partial` has
        """
        del shapes
        return None

    @property
    def has_sums(self) -> bool:
        """Whether `partial` is overridden."""
        return type(self).partial is not Stage.partial


def frozen(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return arrays as read-only C-ordered views (copies where needed), other values as they are.

    So a stage sees the same memory layout, and computes the same bits, on every transport. A stored
    block is returned itself: it sees to that.
    """
    if isinstance(arrays, StoredBlock):
        return arrays
    return {name: _frozen(value) for name, value in arrays.items()}


def _frozen(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    view = np.asarray(value, order="C").view()
    view.flags.writeable = False
    return view


class BlockSource(Protocol):
    """The place that blocks are read from, on rank 0, by its I/O thread."""

    def read(self, block: int) -> Block:
        """Return the arrays of one block. An exception ends the run, and `Pool.run` raises it."""
        ...
