"""Messages between ranks over MPI.

    send --> outgoing (Isend) ----> MPI ----> incoming (Improbe, Irecv) --> receive

All MPI calls are made by the thread that runs the loop. Between rank 0 and a rank that was spawned
later there is a communicator of their own, and none between that rank and the others: rank 0
passes their messages on.

Nothing is sent to a rank that is dead (where MPI can tell) or cut off (by the loop), and messages
of such a rank are dropped. Memory that MPI may still read or write is kept until MPI is done.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

from mpi4py import MPI

from mpipar.runtime.machines.messages import MASTER, Bye, Stop
from mpipar.runtime.transports.mpi_requests import (
    FRAME,
    IncomingMessage,
    OutgoingMessages,
    is_finished,
    take_complete,
)
from mpipar.runtime.transports.transport import Backoff, Incoming, UnsendableError
from mpipar.runtime.wire import codec

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.transports.mpi_requests import Address

FRAMES_PER_TURN = 256  # frames taken per turn and communicator
WAIT_FOR_FRAME = 1 << 16  # bytes; a larger frame is received in the background
TRANSFER_PAUSE = 1e-4  # seconds of a pause while a transfer is under way,
TRANSFER_PAUSE_LIMIT = 2e-3  # and its limit where many ranks share a core
STALLED_SECONDS = 5.0  # after which rank 0 does not count bytes that a worker does not receive
CHECK_SECONDS = 0.05  # between two checks for dead ranks
FAILURE_SECONDS = 10.0  # within which MPI reports as dead a rank with which a transfer failed
DEAD = frozenset({MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING})


@dataclass(frozen=True, slots=True)
class RoutedMessage:
    """A message to or from a spawned rank, on its way over rank 0."""

    origin: Rank
    target: Rank
    message: Any  # a Message


class MpiTransport(Generic[Incoming]):
    """The transport of one rank over a communicator that nothing else uses."""

    def __init__(
        self,
        communicator: MPI.Intracomm | MPI.Intercomm,
        *,
        spawned_as: Rank | None = None,
        fault_tolerant: bool = False,
    ) -> None:
        """`spawned_as` is the number of a spawned rank; its communicator leads to rank 0 alone."""
        communicator.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: Rank = communicator.rank if spawned_as is None else spawned_as
        self.size = communicator.size if spawned_as is None else spawned_as + 1
        self._communicator = communicator
        self._spawned_as = spawned_as
        self._links: dict[Rank, MPI.Intercomm] = {}
        self._awaited: set[Rank] = set()  # linked ranks of which no message has arrived
        self._outgoing: dict[Rank, OutgoingMessages] = {}
        self._incoming: dict[Rank, deque[IncomingMessage]] = {}
        self._to_discard: dict[Rank, deque[IncomingMessage]] = {}  # of cut-off ranks
        self._abandoned: list[tuple[MPI.Request, Any]] = []
        self._backoff = Backoff()
        self._transfer_pause = TRANSFER_PAUSE
        self._wakeup = threading.Event()
        self._fault_tolerant = fault_tolerant
        self._dead: set[Rank] = set()
        self._cut: set[Rank] = set()
        self._left: set[Rank] = set()  # those of them that said Bye
        self._lost: list[Rank] = []  # that `lost` has not returned yet
        self._failing: dict[Rank, float] = {}  # until when MPI may report them as dead
        self._next_check = 0.0

    def add_spawned(self, link: MPI.Intercomm) -> Rank:
        """Add a rank that was spawned, by the communicator to it; return its number."""
        link.Set_errhandler(MPI.ERRORS_RETURN)
        rank, self.size = self.size, self.size + 1
        self._links[rank] = link
        # A send to a rank that died at its start would hang: MPI waits for the rank's address.
        self._awaited.add(rank)
        return rank

    @property
    def has_spawned(self) -> bool:
        """Whether a rank has been added."""
        return bool(self._links)

    def _is_near(self, rank: Rank) -> bool:
        """Whether there is a communicator between a rank and this one."""
        if MASTER in {self.rank, rank}:
            return True
        return self._spawned_as is None and rank < self._communicator.size

    def _address_of(self, rank: Rank) -> Address:
        """The address of a rank that is near."""
        link = self._links.get(rank)
        return (self._communicator, rank) if link is None else (link, 0)

    # Sending

    def send(self, rank: Rank, message: Message) -> None:
        if self._is_cut_off(rank):
            return
        if self._is_near(rank):
            self._transmit(rank, message)
        else:
            self._transmit(MASTER, RoutedMessage(self.rank, rank, message))

    def _transmit(self, rank: Rank, message: Message | RoutedMessage) -> None:
        queue = self._outgoing.setdefault(rank, OutgoingMessages())
        if not queue.parts:
            queue.moved = time.monotonic()
        try:
            queue.send(self._address_of(rank), message)
        except MPI.Exception as error:
            self._on_failed_transfer(rank, error)
        except Exception as error:  # whatever a __reduce__ of a program raises
            name = type(message).__name__
            raise UnsendableError(f"{name} for rank {rank} cannot be pickled: {error}") from error
        finally:
            if not queue.parts:
                self._outgoing.pop(rank, None)

    def _release_sent(self) -> None:
        now = time.monotonic() if self._outgoing else 0.0
        for rank, queue in list(self._outgoing.items()):
            try:
                queue.release_sent(now)
            except MPI.Exception as error:
                self._on_failed_transfer(rank, error)
            if not queue.parts:
                self._outgoing.pop(rank, None)

    def backlog(self) -> int:
        if self.rank != MASTER or not self._outgoing:
            return sum(queue.size for queue in self._outgoing.values())
        since = time.monotonic() - STALLED_SECONDS
        return sum(queue.size for queue in self._outgoing.values() if queue.moved > since)

    # Receiving

    def receive(self) -> list[tuple[Rank, Incoming]]:
        self._wakeup.clear()
        self._release_sent()
        self._take_frames(self._communicator)
        for rank, link in list(self._links.items()):
            self._take_frames(link, rank)
        arrived = [item for rank in list(self._incoming) for item in self._take(rank)]
        for rank in list(self._to_discard):
            self._discard_incoming(rank)
        if time.monotonic() >= self._next_check:
            self._check_failures()
        return [item for source, message in arrived for item in self._delivered(source, message)]

    def _take_frames(
        self, communicator: MPI.Intracomm | MPI.Intercomm, rank: Rank | None = None
    ) -> None:
        """Take the frames that have come over a communicator.

        rank   the rank at its other side, if there is only one
        """
        if rank in self._dead:
            return
        if self._spawned_as is not None:
            rank = MASTER
        status = MPI.Status()
        for _ in range(FRAMES_PER_TURN):
            try:
                matched = communicator.Improbe(MPI.ANY_SOURCE, FRAME, status)
            except MPI.Exception as error:
                self._ignore_death(error, rank)
                return
            if matched is None:
                return
            source = status.Get_source() if rank is None else rank
            frame = codec.blank(status.Get_count(MPI.BYTE))
            try:
                self._take_frame(source, frame, matched)
            except MPI.Exception as error:
                self._on_failed_transfer(source, error)

    def _take_frame(self, source: Rank, frame: codec.Frame, matched: MPI.Message) -> None:
        self._awaited.discard(source)
        requests = []
        if len(frame) <= WAIT_FOR_FRAME and not self._fault_tolerant:
            matched.Recv([frame, MPI.BYTE])
        else:
            requests.append(matched.Irecv([frame, MPI.BYTE]))
        if source in self._dead or source in self._failing:
            self._abandoned += [(request, frame) for request in requests]
            return
        waiting = self._to_discard if source in self._cut else self._incoming
        waiting.setdefault(source, deque()).append(IncomingMessage(frame, requests))

    def _take(self, rank: Rank) -> list[tuple[Rank, Incoming | RoutedMessage]]:
        queue = self._incoming[rank]
        taken: list[tuple[Rank, Incoming | RoutedMessage]] = []
        try:
            complete = take_complete(queue, self._address_of(rank))
            taken = [(rank, incoming.decode()) for incoming in complete]
        except MPI.Exception as error:
            self._on_failed_transfer(rank, error)
        if not queue:
            self._incoming.pop(rank, None)
        return taken

    def _discard_incoming(self, rank: Rank) -> None:
        """Receive the messages of a rank that is cut off, and drop them, so that MPI frees them."""
        queue = self._to_discard[rank]
        try:
            complete = take_complete(queue, self._address_of(rank))
            if any(isinstance(incoming.decode(), Bye) for incoming in complete):
                self._left.add(rank)
        except MPI.Exception:
            self._next_check = 0.0
            self._abandon(self._to_discard, rank)
        if not queue:
            self._to_discard.pop(rank, None)

    def _delivered(
        self, source: Rank, message: Incoming | RoutedMessage
    ) -> list[tuple[Rank, Incoming]]:
        """The messages for this rank; on rank 0, one for another rank is passed on instead."""
        if not isinstance(message, RoutedMessage):
            return [(source, message)]
        if self._is_cut_off(message.origin) or self._is_cut_off(message.target):
            return []
        if message.target == self.rank:
            return [(message.origin, message.message)]
        self._transmit(message.target, message)
        return []

    # Ranks that are lost

    def lost(self) -> list[Rank]:
        lost, self._lost = self._lost, []
        return lost

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        if rank in self._dead or rank in self._cut:
            return
        self._cut.add(rank)
        self._failing.pop(rank, None)
        self._abandon_outgoing(rank)
        if rank in self._incoming:
            self._to_discard[rank] = self._incoming.pop(rank)
        if reason:
            self._send_unconfirmed(rank, Stop(reason))

    def _send_unconfirmed(self, rank: Rank, message: Message) -> None:
        """Send a message and never ask whether it has left: the rank may hang."""
        queue = OutgoingMessages()
        try:
            if rank not in self._awaited:
                queue.send(self._address_of(rank), message)
        except MPI.Exception:
            self._next_check = 0.0
        self._abandoned += [part[:2] for part in queue.parts]

    def cut_off_ranks(self) -> list[Rank]:
        """Return the ranks that are cut off, are not known to be dead, and have not said Bye."""
        return sorted(self._cut - self._dead - self._left)

    def stop_cut_off_ranks(self) -> None:
        """Tell the ranks that are cut off and came back that the job is over."""
        for rank in self._left - self._dead:
            self._send_unconfirmed(rank, Stop())

    def _is_cut_off(self, rank: Rank) -> bool:
        return any(rank in some for some in (self._dead, self._cut, self._failing, self._awaited))

    def _check_failures(self) -> None:
        now = time.monotonic()
        self._next_check = now + CHECK_SECONDS
        if self._fault_tolerant:
            if self._spawned_as is None:
                self._find_dead_ranks()
            for rank in [rank for rank, until in self._failing.items() if now > until]:
                self._lost.append(rank)
                self.cut_off(rank)
        self._abandoned = [item for item in self._abandoned if not is_finished(item[0])]

    def _find_dead_ranks(self) -> None:
        """Ask MPI which ranks have failed: MPI does not report it by itself."""
        failed = self._communicator.Get_failed()
        if failed.size > len(self._dead.difference(self._links)):
            ranks = MPI.Group.Translate_ranks(failed, None, self._communicator.group)
            for rank in set(ranks) - self._dead:
                self._mark_dead(rank)
            # Receives from any rank go on without it.
            self._communicator.Ack_failed()
        failed.Free()

    def _mark_dead(self, rank: Rank) -> None:
        """Note a death, and drop what is on its way to or from that rank."""
        self._dead.add(rank)
        self._failing.pop(rank, None)
        if rank not in self._cut:
            self._lost.append(rank)
        self._drop(rank)

    def _ignore_death(self, error: MPI.Exception, rank: Rank | None) -> None:
        """Raise an error unless it only says that a rank is dead.

        rank   the only rank that it can be, if there is only one
        """
        if not self._fault_tolerant or error.Get_error_class() not in DEAD:
            raise error
        self._next_check = 0.0
        if rank is not None and rank not in self._dead:
            self._mark_dead(rank)

    def _on_failed_transfer(self, rank: Rank, error: MPI.Exception) -> None:
        """Exchange nothing more with a rank with which a transfer failed."""
        if not self._fault_tolerant:
            raise error
        if not self._is_cut_off(rank):
            self._failing[rank] = time.monotonic() + FAILURE_SECONDS
        self._drop(rank)
        self._next_check = 0.0

    def _drop(self, rank: Rank) -> None:
        self._abandon_outgoing(rank)
        self._abandon(self._incoming, rank)
        self._abandon(self._to_discard, rank)

    def _abandon_outgoing(self, rank: Rank) -> None:
        queue = self._outgoing.pop(rank, None)
        if queue is not None:
            self._abandoned += [part[:2] for part in queue.parts]
            queue.parts.clear()

    def _abandon(self, waiting: dict[Rank, deque[IncomingMessage]], rank: Rank) -> None:
        queue = waiting.pop(rank, deque())
        for message in queue:
            self._abandoned += [(request, message) for request in message.requests]
        queue.clear()

    # Waiting

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        if moved:
            self._backoff.reset()
            return
        seconds = self._backoff.next(relaxed=relaxed)
        if self._outgoing or self._incoming:
            seconds = min(seconds, self._transfer_pause)
        if seconds:
            self._wakeup.wait(seconds)

    def wake(self) -> None:
        self._wakeup.set()

    def set_crowding(self, crowding: float) -> None:
        self._backoff.set_crowding(crowding)
        self._transfer_pause = min(TRANSFER_PAUSE_LIMIT, TRANSFER_PAUSE * max(1.0, crowding))
