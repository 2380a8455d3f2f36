"""Respawned workers: rank 0 starts new workers in the place of lost ones."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mpipar.runtime.machines.messages import Hello, Rank, Welcome
    from mpipar.runtime.reports import LostWorker

Starter: TypeAlias = "Callable[[str], Rank | None]"
"""Starts a worker on a host; returns its rank, or None if that fails."""

PAUSE_SECONDS = 1.0  # between two starts: during a start rank 0 can do nothing else
MOST = 3  # starts for each worker that the pool had at first


class RespawnedWorkers:
    """The hosts on which workers are to be started, and the new workers that have not come yet."""

    def __init__(
        self, start: Starter, welcome: Callable[[Hello], Welcome], patience: float
    ) -> None:
        self._start = start
        self._welcome = welcome
        self._patience = patience
        self._wanted: list[str] = []  # hosts, one for each worker to be started
        self._awaited: dict[Rank, float] = {}  # new worker -> until when its Hello is awaited
        self._left: int | None = None  # how many may still be started
        self._next = 0.0  # when the next may be started

    def on_loss(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """Want another worker on the host of a lost one, unless the host looks dead as well."""
        if self._left is None:
            self._left = MOST * len(hosts)
        host = loss.hello.host if loss.hello else socket.gethostname()
        if host == socket.gethostname() or host in {hosts[rank].host for rank in living}:
            self._wanted.append(host)

    def start_next(self) -> bool:
        """Start a worker if one is wanted now; return whether that was tried."""
        now = time.monotonic()
        if not self._wanted or not self._left or now < self._next:
            return False
        self._left -= 1
        rank = self._start(self._wanted.pop(0))
        self._next = time.monotonic() + PAUSE_SECONDS
        if rank is not None:
            self._awaited[rank] = self._next + self._patience
        return True

    def greet(self, rank: Rank, hello: Hello) -> Welcome | None:
        """Return the answer to a new worker's Hello; None if this rank was not awaited."""
        if self._awaited.pop(rank, None) is None:
            return None
        return self._welcome(hello)

    def expected(self, known: Collection[Rank]) -> int:
        """Return 0: a run without workers ends, and is resumed with as many as at first."""
        del known
        return 0

    def on_early_death(self, rank: Rank) -> None:
        """Await a new worker no more that has died before its Hello; it is not started again."""
        self._awaited.pop(rank, None)

    def take_overdue(self) -> list[Rank]:
        """Return the new workers that have not said Hello in time, each once."""
        now = time.monotonic()
        late = [rank for rank, until in self._awaited.items() if now > until]
        for rank in late:
            del self._awaited[rank]
        return late
