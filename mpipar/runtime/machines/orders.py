"""The orders of a worker's machine to its compute threads, and the events that come back.

WorkerMachine --Prepare, Compute, Gather, Drop--> ComputeThreads
WorkerMachine <--Prepared, Computed, Gathered---- ComputeThreads
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.runtime.machines.messages import POLICY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.machines.caught_error import CaughtError
    from mpipar.runtime.stage import Block, Policy, Stage, Sums, Task


@dataclass(frozen=True, slots=True)
class Prepare:
    """Start a stage."""

    serial: int
    stage: Stage
    shared: Mapping[str, Any]
    policy: Policy = POLICY


@dataclass(frozen=True, slots=True)
class Compute:
    """Run tasks of a prepared stage, one after the other."""

    serial: int
    work: tuple[tuple[Task, Block | None], ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gather:
    """Ask a stage for its sums."""

    serial: int
    number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a stage's state."""

    serial: int


RunningTask: TypeAlias = tuple[int, float]
"""A task that a compute thread is at, and when it began, by a clock of the worker's own."""

Order: TypeAlias = Prepare | Compute | Gather | Drop


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage has started, or could not."""

    serial: int
    error: CaughtError | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """The results and errors of the tasks of one order."""

    serial: int
    results: tuple[tuple[int, Any], ...]
    seconds: float  # of computing, together
    errors: tuple[tuple[int, CaughtError], ...] = ()
    left: tuple[Task, ...] = ()  # not begun: the others took longer than was expected
    more: bool = False  # the order goes on: its other tasks take long, these results need not wait


@dataclass(frozen=True, slots=True)
class Gathered:
    """The sums of a stage."""

    serial: int
    number: int
    sums: Sums | None
    error: CaughtError | None = None


ComputeEvent: TypeAlias = Prepared | Computed | Gathered
