"""Transports: what master and worker need to exchange messages, and how they wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from mpipar.errors import ProtocolError

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank, ToMaster, ToWorker

Incoming = TypeVar("Incoming")
"""What may arrive at one end: the messages that are for rank 0, or those that are for a worker."""


class UnsendableError(ProtocolError):
    """A message cannot be pickled. Raised by `send`, before a byte has left."""


class Transport(Protocol[Incoming]):
    """Reliable messages between ranks; those of one sender to one receiver keep their order."""

    @property
    def rank(self) -> Rank: ...

    @property
    def size(self) -> int:
        """The number of ranks, the master's included."""
        ...

    def send(self, rank: Rank, message: Message) -> None:
        """Send without waiting. The message and its arrays must not be changed afterwards."""
        ...

    def receive(self) -> list[tuple[Rank, Incoming]]:
        """Return what has arrived, with who sent it. Does not wait; moves pending sends on."""
        ...

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        """End a turn of a loop: wait a little unless it moved something; the longer the quieter.

        Longer still if `relaxed`: nothing is awaited from another rank. Returns early when `wake`
        is called from another thread.
        """
        ...

    def wake(self) -> None:
        """End a `pause` from another thread."""
        ...

    def backlog(self) -> int:
        """Return the bytes handed to `send` that have not left, for ranks that take any."""
        ...

    def lost(self) -> list[Rank]:
        """Return the ranks that have been found dead since the last call.

        What is on its way to or from them is dropped; sends to them do nothing.
        """
        ...

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        """Have no more to do with a rank, although it may live.

        Sends to it do nothing, also those that have not left yet, and what it says is dropped.
        With a reason it is told to stop, and why, should it come back.
        """
        ...

    def cut_off_ranks(self) -> list[Rank]:
        """Return the ranks that are cut off and may still live: they have not said Bye."""
        ...

    def set_crowding(self, crowding: float) -> None:
        """Take note of how many ranks share a core: the more, the longer the pauses."""
        ...


MasterTransport: TypeAlias = "Transport[ToMaster]"
WorkerTransport: TypeAlias = "Transport[ToWorker]"


class Backoff:
    """How long to wait next: not at all at first, then longer and longer, up to a cap.

    The sleep of a millisecond costs some 50 microseconds of a core, so the cap is what an idle
    rank uses up; and it is what a message may have to wait.
    """

    SPINS = 50
    FIRST = 10e-6
    GROWTH = 1.5
    CAP = 3e-4
    LONG_IDLE = 0.1  # seconds of idling after which the cap is
    LONG_CAP = 7  # times as much
    RELAXED = 2.5  # times the cap of an idle rank, for one that computes and waits for nothing
    LIMIT = 10e-3  # the cap on crowded cores: a steal must be answered in about this time

    def __init__(self) -> None:
        self._cap = self.CAP
        self._turns = 0
        self._next = self.FIRST
        self._waited = 0.0

    def set_crowding(self, crowding: float) -> None:
        """Wait longer where many ranks share a core, whose polling would eat it up."""
        self._cap = min(self.LIMIT, self.CAP * max(1.0, crowding))

    def reset(self) -> None:
        """Something moved."""
        self._turns = 0
        self._next = self.FIRST
        self._waited = 0.0

    def next(self, *, relaxed: bool = False) -> float:
        """Nothing moved: return the seconds to wait."""
        self._turns += 1
        if self._turns <= self.SPINS:
            return 0.0
        cap = self._cap * (1 if self._waited < self.LONG_IDLE else self.LONG_CAP)
        seconds = min(self._next, self.LIMIT, cap * (self.RELAXED if relaxed else 1.0))
        self._next = min(self.LIMIT, self._next * self.GROWTH)
        self._waited += seconds
        return seconds
