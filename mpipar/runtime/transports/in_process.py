"""The transport inside one process: workers are threads, messages are passed by reference.

Master and workers run the same code as under MPI. Nothing is pickled or copied.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Generic

from mpipar.runtime.machines.messages import Bye, Stop
from mpipar.runtime.transports.transport import Incoming

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.runtime.machines.messages import Message, Rank

PAUSE = 0.05
"""Seconds of a pause; a message ends it at once. So often, at least, a loop looks at its clock."""


class InProcessTransport(Generic[Incoming]):
    """One rank's end of an in-process transport."""

    def __init__(self, rank: Rank, peers: Sequence[InProcessTransport[Any]]) -> None:
        """`peers` is the list that all ends of one cluster share, by rank."""
        self.rank = rank
        self._peers = peers
        self._inbox: deque[tuple[Rank, Incoming]] = deque()
        self._news = threading.Event()
        self._cut: dict[Rank, bool] = {}  # ranks that are cut off, and whether each has sent Bye

    @property
    def size(self) -> int:
        return len(self._peers)

    def send(self, rank: Rank, message: Message) -> None:
        if rank not in self._cut:
            self._hand(rank, message)

    def _hand(self, rank: Rank, message: Message) -> None:
        peer = self._peers[rank]
        peer._inbox.append((self.rank, message))
        peer.wake()

    def receive(self) -> list[tuple[Rank, Incoming]]:
        self._news.clear()
        arrived = [self._inbox.popleft() for _ in range(len(self._inbox))]
        if not self._cut:
            return arrived
        for source, message in arrived:
            if source in self._cut and isinstance(message, Bye):
                self._cut[source] = True
        return [item for item in arrived if item[0] not in self._cut]

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        del relaxed  # a message ends this pause anyway
        if not moved:
            self._news.wait(PAUSE)

    def wake(self) -> None:
        self._news.set()

    def backlog(self) -> int:
        return 0

    def lost(self) -> list[Rank]:
        """Return no rank: a thread does not die without its process."""
        return []

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        if rank not in self._cut:
            self._cut[rank] = False
            if reason:
                self._hand(rank, Stop(reason))

    def cut_off_ranks(self) -> list[Rank]:
        return [rank for rank, has_left in self._cut.items() if not has_left]

    def set_crowding(self, crowding: float) -> None:
        """Do nothing: the next message ends a pause."""


def local_cluster(size: int) -> list[InProcessTransport[Any]]:
    """Return the ends of a cluster of `size` ranks, that of rank 0 first."""
    ends: list[InProcessTransport[Any]] = []
    ends.extend(InProcessTransport(rank, ends) for rank in range(size))
    return ends
