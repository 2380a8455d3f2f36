"""New workers in the place of lost ones, as rank 0 sees them: started, greeted, put to work."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, TypeAlias

from mpipar.runtime.machines.messages import Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from mpipar.runtime.machines.messages import Message, Rank, Welcome
    from mpipar.runtime.reports import LostWorker

Starter: TypeAlias = "Callable[[str], Rank | None]"
"""Starts a worker on a host; returns its number, or None if that cannot be done."""

PAUSE_SECONDS = 1.0  # between two starts: each keeps rank 0 from everything else for a moment
MOST = 3  # starts for each worker that there was at first


class RespawnedWorkers:
    """Who is to be replaced, and who has not greeted yet."""

    def __init__(
        self, start: Starter, welcome: Callable[[Hello], Welcome], patience: float
    ) -> None:
        self._start = start
        self._welcome = welcome
        self._patience = patience
        self._wanted: list[str] = []  # hosts
        self._awaited: dict[Rank, float] = {}  # until when
        self._left: int | None = None  # starts
        self._next = 0.0

    def note(self, loss: LostWorker, hosts: Mapping[Rank, Hello], living: list[Rank]) -> None:
        """A worker is lost: another is wanted on its host, unless that looks dead as well."""
        if self._left is None:
            self._left = MOST * len(hosts)
        host = loss.hello.host if loss.hello else socket.gethostname()
        if host == socket.gethostname() or host in {hosts[rank].host for rank in living}:
            self._wanted.append(host)

    def start_next(self) -> bool:
        """Start one worker if one is wanted now; whether it was tried."""
        now = time.monotonic()
        if not self._wanted or not self._left or now < self._next:
            return False
        self._left -= 1
        rank = self._start(self._wanted.pop(0))
        self._next = time.monotonic() + PAUSE_SECONDS
        if rank is not None:
            self._awaited[rank] = self._next + self._patience
        return True

    def greet(self, source: Rank, message: Message) -> Welcome | None:
        """The answer to a new worker's first word; None to all else."""
        if source not in self._awaited or not isinstance(message, Hello):
            return None
        del self._awaited[source]
        return self._welcome(message)

    def expected(self, known: Collection[Rank]) -> int:
        """Return 0: without a worker the run is over, and is resumed with all of them."""
        del known
        return 0

    def vanished(self, rank: Rank) -> None:
        """A new worker has died before its first word; that was its try."""
        self._awaited.pop(rank, None)

    def overdue(self) -> list[Rank]:
        """Return those that have not greeted in time, once."""
        now = time.monotonic()
        late = [rank for rank, until in self._awaited.items() if now > until]
        for rank in late:
            del self._awaited[rank]
        return late
