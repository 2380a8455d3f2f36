"""What a worker's machine orders of the compute threads, and what they answer.

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
    """Let go of a stage's state."""

    serial: int


RunningTask: TypeAlias = tuple[int, float]
"""A task that a compute thread is at, and when it began, by a clock of the worker's own."""

Order: TypeAlias = Prepare | Compute | Gather | Drop


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage has started."""

    serial: int
    trouble: CaughtError | None = None


@dataclass(frozen=True, slots=True)
class Computed:
    """What has come of the tasks of one order."""

    serial: int
    results: tuple[tuple[int, Any], ...]
    seconds: float  # together
    troubles: tuple[tuple[int, CaughtError], ...] = ()
    left: tuple[Task, ...] = ()  # not begun: the others took longer than was thought
    more: bool = False  # the order goes on: it takes long, and these results need not wait


@dataclass(frozen=True, slots=True)
class Gathered:
    """A stage has said what its sums are."""

    serial: int
    number: int
    sums: Sums | None
    trouble: CaughtError | None = None


EngineEvent: TypeAlias = Prepared | Computed | Gathered
