"""Rank 0's loop: it carries messages, reads and time to the master, and what it says out.

workers <--transport--> MasterLoop --handle, tick, rank_lost, loaded--> MasterMachine
                            +-- BlockReader (the I/O thread)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpipar.runtime.loops.block_reader import BlockLoaded, BlockReader
from mpipar.runtime.machines.messages import Hello, Send
from mpipar.runtime.reports import NewWorker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mpipar.runtime.loops.late_workers import LateWorkers
    from mpipar.runtime.machines.master import MasterAction, MasterMachine
    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.reports import LostWorker
    from mpipar.runtime.stage import BlockSource
    from mpipar.runtime.transports.transport import Transport

TICK_SECONDS = 0.05
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


class MasterLoop:
    """What moves rank 0; used by one thread at a time."""

    def __init__(
        self,
        transport: Transport,
        machine: MasterMachine,
        losses: list[LostWorker],
        patience: float,
    ) -> None:
        """`losses` is added to, in the order in which they are noticed."""
        self.transport = transport
        self.machine = machine
        self.losses = losses
        self._patience = patience
        self._reader = BlockReader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = time.monotonic()
        self.late_workers: LateWorkers | None = None
        self.gains: list[NewWorker] = []

    @property
    def has_source(self) -> bool:
        """Whether blocks can be had."""
        return self._source is not None

    def serve(self, source: BlockSource) -> None:
        """Take blocks from this source from now on; what workers have cached is void."""
        self._source = source
        self.machine.renew_source()

    def begin(self, sends: list[Send]) -> None:
        """A run begins: the time before it says nothing."""
        self._ticked = time.monotonic()
        self.perform(sends)

    def turn(self) -> bool:
        """Take what has arrived, and let time pass; return whether there was anything."""
        arrived = self.transport.receive()
        self._count_expected()
        for source, message in arrived:
            if self.late_workers is not None and isinstance(message, Hello):
                self._greet(self.late_workers, source, message)
            self.perform(self.machine.handle(source, message))  # type: ignore[arg-type]
        lost = self.transport.lost()
        for rank in lost:
            self._lose(rank)
        events = self._take_reads()
        self._start_reads()
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self.perform(self.machine.tick(now - self._ticked))
            self._ticked = now
        if self.late_workers is not None and self._replace(self.late_workers):
            return True
        return bool(arrived or lost) or events

    def perform(self, actions: Iterable[MasterAction]) -> None:
        """Carry out what the machine wants done."""
        for action in actions:
            if isinstance(action, Send):
                self.transport.send(action.rank, action.message)
            else:
                self._note_loss(action)

    def drain(self) -> None:
        """Let what is on its way leave before the program goes on without the loop."""
        until = time.monotonic() + self._patience
        while self.transport.backlog() and time.monotonic() < until:
            self.transport.pause(moved=self.turn())

    def close(self) -> None:
        """End the I/O thread."""
        self._reader.close(patience=1.0)

    def _greet(self, late_workers: LateWorkers, source: Rank, hello: Hello) -> None:
        """Put a new worker to work."""
        if source in self.machine.ranks:
            return
        welcome = late_workers.greet(source, hello)
        if welcome is not None:
            self.gains.append(NewWorker(source, hello))
            self.perform([Send(source, welcome), *self.machine.rank_joined(source, hello)])

    def _replace(self, late_workers: LateWorkers) -> bool:
        for rank in late_workers.overdue():
            self.transport.cut_off(rank, "it took too long to start")
        return self.machine.run is not None and late_workers.start_next()

    def _count_expected(self) -> None:
        """Tell the machine how many workers may still come."""
        if self.late_workers is not None:
            self.machine.expected = self.late_workers.expected(self.machine.hellos)

    def _lose(self, rank: Rank) -> None:
        """Go on without a worker that is dead."""
        self._count_expected()
        if rank in self.machine.ranks:
            self.perform(self.machine.rank_lost(rank))
        elif self.late_workers is not None:
            self.late_workers.vanished(rank)
            self._count_expected()
            self.machine.end_if_deserted()

    def _note_loss(self, loss: LostWorker) -> None:
        """The machine goes on without a worker: so does everything else."""
        self.losses.append(loss)
        if loss.reason:
            self.transport.cut_off(loss.rank, loss.reason)
        if self.late_workers is not None and loss.left:
            self.late_workers.note(loss, self.machine.hellos, self.machine.ranks)

    def _take_reads(self) -> bool:
        """Take what the I/O thread has read; return whether there was anything."""
        events = self._reader.events()
        for event in events:
            if isinstance(event, BlockLoaded):
                self.perform(self.machine.loaded(event.generation, event.block, event.arrays))
            else:
                self.machine.unreadable(event.generation, event.block, event.error)
        return bool(events)

    def _start_reads(self) -> None:
        files = self.machine.files
        while self._source is not None and self.transport.backlog() < BACKLOG_BYTES:
            block = files.next_read()
            if block is None:
                return
            self._reader.read(self._source, files.generation, block)
