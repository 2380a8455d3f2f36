"""Late workers: those that come to a pool which is open already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mpipar.runtime.machines.messages import Hello, Rank, Welcome
    from mpipar.runtime.reports import LostWorker


class LateWorkers(Protocol):
    """The workers that may still come, as rank 0's loop asks for them."""

    def expected(self, known: Collection[Rank]) -> int:
        """Return for how many workers, besides those known, a pool without workers may wait."""
        ...

    def greet(self, rank: Rank, hello: Hello) -> Welcome | None:
        """Return the answer to a new worker's Hello; None if this rank was not expected."""
        ...

    def on_loss(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """Take note that a worker is lost while others live."""
        ...

    def on_early_death(self, rank: Rank) -> None:
        """Take note that a late worker has died before its Hello."""
        ...

    def take_overdue(self) -> list[Rank]:
        """Return the late workers that have not said Hello in time, each once."""
        ...

    def start_next(self) -> bool:
        """Start a worker if one is wanted now; return whether that was tried."""
        ...


@dataclass(frozen=True)
class ExternalWorkers:
    """Late workers that another program starts, and that come when they can."""

    expected: Callable[[], set[Rank]]  # the ranks that have come or may still come
    patience: float  # seconds of silence after which a worker is cut off


class WelcomedWorkers:
    """External workers as late workers: every rank that says Hello is welcome."""

    def __init__(self, external: ExternalWorkers, welcome: Callable[[Hello], Welcome]) -> None:
        self._external = external
        self._welcome = welcome

    def expected(self, known: Collection[Rank]) -> int:
        return len(self._external.expected().difference(known))

    def greet(self, rank: Rank, hello: Hello) -> Welcome | None:
        del rank
        return self._welcome(hello)

    def on_loss(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """Do nothing: no worker is started in the place of a lost one."""

    def on_early_death(self, rank: Rank) -> None:
        """Do nothing: the rank is not in `expected` any more."""

    def take_overdue(self) -> list[Rank]:
        return []

    def start_next(self) -> bool:
        return False
