"""Rank 0's loop: it carries messages, reads and time to the master, and what it says out.

workers <--transport--> Loop --handle, loaded, lose, tick--> Master
                          +-- Reader (the I/O thread)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpipar.errors import RequeueError
from mpipar.runtime.reader import Loaded, Reader
from mpipar.runtime.reports import Loss, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.master import Master
    from mpipar.runtime.messages import Hello, Rank, Send
    from mpipar.runtime.stage import BlockSource
    from mpipar.runtime.transport import Transport

TICK_SECONDS = 0.05
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


class Loop:
    """What moves rank 0; used by one thread at a time."""

    def __init__(
        self,
        transport: Transport,
        master: Master,
        hosts: Mapping[Rank, Hello],
        losses: list[Loss],
        patience: float,
    ) -> None:
        """`losses` is added to, in the order in which they are noticed."""
        self.transport = transport
        self.master = master
        self.losses = losses
        self._hosts = hosts
        self._patience = patience
        self._silence: dict[Rank, float] = dict.fromkeys(hosts, 0.0)
        self._reader = Reader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = time.monotonic()

    @property
    def has_source(self) -> bool:
        """Whether blocks can be had."""
        return self._source is not None

    def serve(self, source: BlockSource) -> None:
        """Take blocks from this source from now on; what workers have cached is void."""
        self._source = source
        self.master.renew_source()

    def begin(self, sends: list[Send]) -> None:
        """A run begins: the silence before it says nothing."""
        self._silence = dict.fromkeys(self._silence, 0.0)
        self._ticked = time.monotonic()
        self.send(sends)

    def turn(self) -> bool:
        """Take what has arrived, and let time pass; return whether there was anything."""
        arrived = self.transport.receive()
        for source, message in arrived:
            self._silence[source] = 0.0
            self.send(self.master.handle(source, message))  # type: ignore[arg-type]
        lost = self.transport.lost()
        for rank in lost:
            self._lose(rank)
        events = self._reader.events()
        for event in events:
            if isinstance(event, Loaded):
                self.send(self.master.loaded(event.generation, event.block, event.arrays))
            else:
                self.master.unreadable(event.generation, event.block, event.error)
        self._start_reads()
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self._tick(now - self._ticked)
            self._ticked = now
        return bool(arrived or lost or events)

    def send(self, sends: list[Send]) -> None:
        """Send what a machine wants sent."""
        for send in sends:
            self.transport.send(send.rank, send.message)

    def drain(self) -> None:
        """Let what is on its way leave before the program goes on without the loop."""
        until = time.monotonic() + self._patience
        while self.transport.backlog() and time.monotonic() < until:
            self.transport.pause(moved=self.turn())

    def close(self) -> None:
        """End the I/O thread."""
        self._reader.close(patience=1.0)

    def _lose(self, rank: Rank) -> None:
        run = self.master.run
        before = run.scheduler.rerun if run else 0
        sends = self.master.rank_lost(rank)
        again = run.scheduler.rerun - before if run else 0
        self.losses.append(Loss(rank, self._hosts.get(rank), again, len(self.master.ranks)))
        self.send(sends)

    def _start_reads(self) -> None:
        files = self.master.files
        while self._source is not None and self.transport.backlog() < BACKLOG_BYTES:
            block = files.next_read()
            if block is None:
                return
            self._reader.read(self._source, files.generation, block)

    def _tick(self, seconds: float) -> None:
        self.send(self.master.tick(seconds))
        # If this process itself was stopped for a while, that is nobody's silence.
        seconds = min(seconds, 1.0)
        for rank in self._silence:
            self._silence[rank] += seconds
        silent = [r for r in self.master.ranks if self._silence[r] > self._patience]
        if silent and self.master.run is not None:
            names = ", ".join(name_of(rank, self._hosts[rank]) for rank in silent)
            self.master.run.error = RequeueError(
                f"no sign of life for {self._patience:.0f} s from {names}: hung, or cut off; "
                "resume the run (MPIPAR_PATIENCE=seconds sets the time)"
            )
