"""The transport: how the loops of rank 0 and of workers send, receive, and wait for messages."""

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
    """One rank's end of reliable messages between ranks.

    Messages of one sender to one receiver keep their order.
    """

    @property
    def rank(self) -> Rank: ...

    @property
    def size(self) -> int:
        """The number of ranks, the master included."""
        ...

    def send(self, rank: Rank, message: Message) -> None:
        """Send without waiting. The message and its arrays must not be changed afterwards."""
        ...

    def receive(self) -> list[tuple[Rank, Incoming]]:
        """Return the messages that have arrived, each with its sender, without waiting.

        Sends that are under way make progress meanwhile.
        """
        ...

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        """Wait a little at the end of a loop's turn, unless that turn moved something.

        The longer nothing has moved, the longer the wait; longer still if `relaxed`: nothing is
        awaited from another rank. A call of `wake` from another thread ends the wait.
        """
        ...

    def wake(self) -> None:
        """End a `pause` from another thread."""
        ...

    def backlog(self) -> int:
        """Return how many bytes have not left yet, without those for ranks that receive nothing."""
        ...

    def lost(self) -> list[Rank]:
        """Return the ranks that have been found dead since the last call.

        Messages to and from a dead rank are dropped.
        """
        ...

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        """Exchange no more messages with a rank, although it may live.

        Messages to and from the rank are dropped, also those that have not left yet. With a reason
        the rank is sent Stop, with the reason, in case that it comes back.
        """
        ...

    def cut_off_ranks(self) -> list[Rank]:
        """Return the ranks that are cut off and may still live: they have not sent Bye."""
        ...

    def set_crowding(self, crowding: float) -> None:
        """Make pauses longer where several ranks share a core; `crowding`: ranks per core."""
        ...


MasterTransport: TypeAlias = "Transport[ToMaster]"
WorkerTransport: TypeAlias = "Transport[ToWorker]"


class Backoff:
    """How long to wait next: at first not at all, then longer and longer, up to a cap.

    Each sleep costs some 50 microseconds of a core, so the cap decides how much of a core an idle
    rank uses, and how long a message may have to wait.
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
        """Raise the cap where many ranks share a core, which their polling would use up."""
        self._cap = min(self.LIMIT, self.CAP * max(1.0, crowding))

    def reset(self) -> None:
        """Begin again without waiting: something has moved."""
        self._turns = 0
        self._next = self.FIRST
        self._waited = 0.0

    def next(self, *, relaxed: bool = False) -> float:
        """Return the seconds to wait, because nothing has moved."""
        self._turns += 1
        if self._turns <= self.SPINS:
            return 0.0
        cap = self._cap * (1 if self._waited < self.LONG_IDLE else self.LONG_CAP)
        seconds = min(self._next, self.LIMIT, cap * (self.RELAXED if relaxed else 1.0))
        self._next = min(self.LIMIT, self._next * self.GROWTH)
        self._waited += seconds
        return seconds
