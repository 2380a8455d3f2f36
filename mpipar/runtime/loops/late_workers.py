"""Workers that come to a pool which is open already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mpipar.runtime.machines.messages import Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mpipar.runtime.machines.messages import Message, Rank, Welcome
    from mpipar.runtime.reports import LostWorker


class LateWorkers(Protocol):
    """Who may still come, as rank 0's loop asks."""

    def expected(self, known: Collection[Rank]) -> int:
        """Return how many besides those known a pool without workers may wait for."""
        ...

    def greet(self, source: Rank, message: Message) -> Welcome | None:
        """Return the answer to a new worker's first word; None to all else."""
        ...

    def note(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """A worker is lost, and others are left."""
        ...

    def vanished(self, rank: Rank) -> None:
        """One has died before its first word."""
        ...

    def overdue(self) -> list[Rank]:
        """Return those that have not greeted in time, once."""
        ...

    def start_next(self) -> bool:
        """Start one if one is wanted now; whether it was tried."""
        ...


@dataclass(frozen=True)
class ExternalWorkers:
    """Workers that somebody else starts, and that come when they can."""

    expected: Callable[[], set[Rank]]  # that have come or may still come
    patience: float  # seconds of silence after which one is written off


class WelcomedWorkers:
    """Recruits as newcomers: each is welcome."""

    def __init__(self, recruits: ExternalWorkers, welcome: Callable[[Hello], Welcome]) -> None:
        self._recruits = recruits
        self._welcome = welcome

    def expected(self, known: Collection[Rank]) -> int:
        return len(self._recruits.expected().difference(known))

    def greet(self, source: Rank, message: Message) -> Welcome | None:
        del source
        return self._welcome(message) if isinstance(message, Hello) else None

    def note(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """Nobody is started in its place."""

    def vanished(self, rank: Rank) -> None:
        """Then it is expected no more."""

    def overdue(self) -> list[Rank]:
        return []

    def start_next(self) -> bool:
        return False
