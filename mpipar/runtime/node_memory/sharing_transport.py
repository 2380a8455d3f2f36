"""A transport on which the ranks of one host have the arrays of a run in one memory.

    Begin from another host --> lodged here, once --> tickets to the ranks of this host
    Begin with tickets ------> mapped, and passed on with tickets of this process
         cannot be mapped? --> NeedArrays --> rank 0 sends the arrays themselves

Loops and machines see arrays only. Tickets exist between `send` on one rank and `receive` on
another of its host; what a ticket leads to is kept open until the run is over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic

from mpipar.runtime.machines.broadcast import children_of, is_neighbour
from mpipar.runtime.machines.messages import MASTER, Begin, Forget, NeedArrays
from mpipar.runtime.node_memory.shared_arrays import SharedArrays, UnmappableError, has_tickets
from mpipar.runtime.transports.transport import Incoming

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.transports.transport import Transport


class SharingTransport(Generic[Incoming]):
    """Another transport, but for the shared arrays in Begin."""

    def __init__(self, plain: Transport[Incoming], *, one_process: bool = False) -> None:
        """`one_process`: all ranks are in it, so only their child processes need memory to find."""
        self._plain = plain
        self._one_process = one_process
        self._depot: SharedArrays | None = None
        self._tried = 0  # the serial of the run whose arrays lie there, if they can
        self._admitted = 0  # the serial of the latest Begin that was received
        self._over = 0  # the serial of the latest Forget

    @property
    def rank(self) -> Rank:
        return self._plain.rank

    @property
    def size(self) -> int:
        return self._plain.size

    # Sending

    def send(self, rank: Rank, message: Message) -> None:
        if isinstance(message, Begin):
            if message.serial <= self._over:
                return  # Forget overtook it, and has reached or will reach that rank too
            message = self._leaving(rank, message)
        elif isinstance(message, Forget):
            self._end(message.serial)
        self._plain.send(rank, message)

    def _leaving(self, rank: Rank, begin: Begin) -> Begin:
        if begin.plain or not is_neighbour(self.rank, rank, begin.tree):
            return begin
        if self._one_process and not begin.policy.isolate:
            return begin
        depot = self._lodge(begin)
        if depot is None:
            return begin
        return replace(begin, shared=depot.values if self._one_process else depot.tickets)

    def _lodge(self, begin: Begin) -> SharedArrays | None:
        """Return where the arrays of this run lie; None if they cannot, which is found out once."""
        if begin.serial != self._tried:
            self._let_go()
            self._tried, self._depot = begin.serial, SharedArrays.lodge(begin.shared)
        return self._depot

    # Receiving

    def receive(self) -> list[tuple[Rank, Incoming]]:
        arrived: list[tuple[Rank, Any]] = []
        for source, message in self._plain.receive():
            if isinstance(message, Begin):
                begin = self._arriving(source, message)
                arrived += [(source, begin)] if begin is not None else []
                continue
            if isinstance(message, Forget):
                self._end(message.serial)
            arrived.append((source, message))
        return arrived

    def _arriving(self, source: Rank, begin: Begin) -> Begin | None:
        """Return a Begin with arrays; None for one that is here already or cannot be had so."""
        if begin.serial <= max(self._admitted, self._over):
            return None
        try:
            depot = self._open(begin)
        except UnmappableError:
            self._plain.send(MASTER, NeedArrays(begin.serial, source))
            return None
        self._admitted = begin.serial
        return begin if depot is None else replace(begin, shared=depot.values)

    def _open(self, begin: Begin) -> SharedArrays | None:
        """Return where the arrays of a Begin that has arrived lie; None: in this process only."""
        if not has_tickets(begin.shared):
            return self._lodge(begin) if self._has_neighbours_below(begin) else None
        self._let_go()
        self._depot = SharedArrays.find(begin.shared)
        self._tried = begin.serial
        return self._depot

    def _has_neighbours_below(self, begin: Begin) -> bool:
        children = children_of(self.rank, begin.tree)
        return not begin.plain and any(is_neighbour(self.rank, r, begin.tree) for r in children)

    def _let_go(self) -> None:
        if self._depot is not None:
            self._depot.close()
            self._depot = None

    def _end(self, serial: int) -> None:
        """Keep nothing of a run that is over, nor of those before it."""
        self._over = max(self._over, serial)
        if self._tried <= self._over:
            self._let_go()

    # Nothing of its own

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        self._plain.pause(moved=moved, relaxed=relaxed)

    def wake(self) -> None:
        self._plain.wake()

    def backlog(self) -> int:
        return self._plain.backlog()

    def lost(self) -> list[Rank]:
        return self._plain.lost()

    def crowd(self, crowding: float) -> None:
        self._plain.crowd(crowding)

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        self._plain.cut_off(rank, reason)

    def strays(self) -> list[Rank]:
        return self._plain.strays()
