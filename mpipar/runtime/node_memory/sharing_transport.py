"""A transport on which the ranks of one host share the memory of a run's arrays.

    Begin from another host --> published here, once --> handles to the ranks of this host
    Begin with handles ------> mapped, and passed on with handles of this process
         cannot be mapped? --> NeedArrays --> rank 0 sends the arrays themselves

Loops and machines see arrays only. A handle exists between `send` on one rank and `receive` on
another rank of the host; its memory is kept open until the run is over.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic

from mpipar.runtime.machines.broadcast import children_of, is_neighbour
from mpipar.runtime.machines.messages import MASTER, Begin, Forget, NeedArrays
from mpipar.runtime.node_memory.shared_arrays import SharedArrays, UnmappableError, has_handles
from mpipar.runtime.transports.transport import Incoming

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.transports.transport import Transport


class SharingTransport(Generic[Incoming]):
    """Another transport, in which Begin carries handles instead of shared arrays within a host."""

    def __init__(self, inner: Transport[Incoming], *, one_process: bool = False) -> None:
        """Wrap a transport.

        one_process   all ranks are threads of this process: only child processes attach memory
        """
        self._inner = inner
        self._one_process = one_process
        self._arrays: SharedArrays | None = None
        self._published_run = 0  # the serial of the run of `_arrays`, also if there are none
        self._received_run = 0  # the serial of the latest Begin that was received
        self._ended_run = 0  # the serial of the latest Forget

    @property
    def rank(self) -> Rank:
        return self._inner.rank

    @property
    def size(self) -> int:
        return self._inner.size

    # Sending

    def send(self, rank: Rank, message: Message) -> None:
        if isinstance(message, Begin):
            if message.serial <= self._ended_run:
                return  # Forget overtook it, and has reached or will reach that rank too
            message = self._outgoing_begin(rank, message)
        elif isinstance(message, Forget):
            self._end_run(message.serial)
        self._inner.send(rank, message)

    def _outgoing_begin(self, rank: Rank, begin: Begin) -> Begin:
        if begin.plain or not is_neighbour(self.rank, rank, begin.tree):
            return begin
        if self._one_process and not begin.policy.isolate:
            return begin
        arrays = self._publish(begin)
        if arrays is None:
            return begin
        return replace(begin, shared=arrays.values if self._one_process else arrays.handles)

    def _publish(self, begin: Begin) -> SharedArrays | None:
        """Return the published arrays of a run; None if they cannot be published (tried once)."""
        if begin.serial != self._published_run:
            self._release()
            self._published_run, self._arrays = begin.serial, SharedArrays.publish(begin.shared)
        return self._arrays

    # Receiving

    def receive(self) -> list[tuple[Rank, Incoming]]:
        arrived: list[tuple[Rank, Any]] = []
        for source, message in self._inner.receive():
            if isinstance(message, Begin):
                begin = self._incoming_begin(source, message)
                arrived += [(source, begin)] if begin is not None else []
                continue
            if isinstance(message, Forget):
                self._end_run(message.serial)
            arrived.append((source, message))
        return arrived

    def _incoming_begin(self, source: Rank, begin: Begin) -> Begin | None:
        """Return a Begin with arrays; None if it is a late one, or they cannot be mapped."""
        if begin.serial <= max(self._received_run, self._ended_run):
            return None
        try:
            arrays = self._open(begin)
        except UnmappableError:
            self._inner.send(MASTER, NeedArrays(begin.serial, source))
            return None
        self._received_run = begin.serial
        return begin if arrays is None else replace(begin, shared=arrays.values)

    def _open(self, begin: Begin) -> SharedArrays | None:
        """Return the arrays of a Begin that has arrived, if other processes share them.

        Raises UnmappableError.
        """
        if not has_handles(begin.shared):
            return self._publish(begin) if self._has_neighbours_below(begin) else None
        self._release()
        self._arrays = SharedArrays.attach(begin.shared)
        self._published_run = begin.serial
        return self._arrays

    def _has_neighbours_below(self, begin: Begin) -> bool:
        children = children_of(self.rank, begin.tree)
        return not begin.plain and any(is_neighbour(self.rank, r, begin.tree) for r in children)

    def _release(self) -> None:
        if self._arrays is not None:
            self._arrays.close()
            self._arrays = None

    def _end_run(self, serial: int) -> None:
        """Release what is kept of a run that is over, and of the runs before it."""
        self._ended_run = max(self._ended_run, serial)
        if self._published_run <= self._ended_run:
            self._release()

    # As the inner transport does it

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        self._inner.pause(moved=moved, relaxed=relaxed)

    def wake(self) -> None:
        self._inner.wake()

    def backlog(self) -> int:
        return self._inner.backlog()

    def lost(self) -> list[Rank]:
        return self._inner.lost()

    def set_crowding(self, crowding: float) -> None:
        self._inner.set_crowding(crowding)

    def cut_off(self, rank: Rank, reason: str = "") -> None:
        self._inner.cut_off(rank, reason)

    def cut_off_ranks(self) -> list[Rank]:
        return self._inner.cut_off_ranks()
