"""Rank 0's loop: it carries messages, reads and time to the master, and what it says out.

workers <--transport--> Loop --handle, loaded, lose, tick--> Master
                          +-- Reader (the I/O thread)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpipar.errors import RequeueError
from mpipar.runtime.loops.block_reader import BlockLoaded, BlockReader
from mpipar.runtime.machines.messages import Beat, Hello, Overdue, Send, Unreachable
from mpipar.runtime.machines.peer_timeouts import who_leaves
from mpipar.runtime.reports import LostWorker, NewWorker

if TYPE_CHECKING:
    from mpipar.runtime.loops.late_workers import LateWorkers
    from mpipar.runtime.machines.master import MasterMachine
    from mpipar.runtime.machines.messages import Message, Rank
    from mpipar.runtime.stage import BlockSource
    from mpipar.runtime.transports.transport import Transport

TICK_SECONDS = 0.05
BEATS_PER_PATIENCE = 4  # to workers, which leave when they hear nothing for long
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


class MasterLoop:
    """What moves rank 0; used by one thread at a time."""

    def __init__(
        self,
        transport: Transport,
        master: MasterMachine,
        hosts: dict[Rank, Hello],
        losses: list[LostWorker],
        patience: float,
    ) -> None:
        """`losses` is added to, in the order in which they are noticed; `hosts` by new workers."""
        self.transport = transport
        self.master = master
        self.losses = losses
        self._hosts = hosts
        self._patience = patience
        self._silence: dict[Rank, float] = dict.fromkeys(hosts, 0.0)
        self._reader = BlockReader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = self._spoke = time.monotonic()
        self.newcomers: LateWorkers | None = None
        self.gains: list[NewWorker] = []

    @property
    def is_deserted(self) -> bool:
        """Whether there is no worker, and none can be expected."""
        return not (self.master.ranks or self._expected)

    @property
    def _expected(self) -> int:
        """How many workers may still come."""
        return self.newcomers.expected(self._hosts) if self.newcomers is not None else 0

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
            if source in self._silence:
                self._silence[source] = 0.0
            elif self.newcomers is not None:
                self._greet(self.newcomers, source, message)
            self.send(self.master.handle(source, message))  # type: ignore[arg-type]
            if isinstance(message, Overdue | Unreachable):
                self._write_off(source, message)
        lost = self.transport.lost()
        for rank in lost:
            self._lose(rank)
        if lost and self.is_deserted:
            self.master.nobody_comes()
        events = self._take_reads()
        self._start_reads()
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self._tick(now - self._ticked)
            self._ticked = now
        if self.newcomers is not None and self._replace(self.newcomers):
            return True
        return bool(arrived or lost) or events

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

    def _greet(self, newcomers: LateWorkers, source: Rank, message: Message) -> None:
        """Put a new worker to work."""
        welcome = newcomers.greet(source, message)
        if welcome is not None and isinstance(message, Hello):
            self._hosts[source] = message
            self._silence[source] = 0.0
            self.gains.append(NewWorker(source, message))
            self.send([Send(source, welcome), *self.master.rank_joined(source)])

    def _replace(self, newcomers: LateWorkers) -> bool:
        for rank in newcomers.overdue():
            self.transport.cut_off(rank, "it took too long to start")
        return self.master.run is not None and newcomers.start_next()

    def _lose(self, rank: Rank, reason: str = "") -> None:
        """Go on without a worker that is dead, or for a reason."""
        if rank not in self.master.ranks:
            if self.newcomers is not None:
                self.newcomers.vanished(rank)
            return
        run = self.master.run
        before = run.scheduler.rerun if run else 0
        sends = self.master.rank_lost(rank, expected=self._expected)
        again = run.scheduler.rerun - before if run else 0
        left = len(self.master.ranks)
        loss = LostWorker(rank, self._hosts.get(rank), again, left, reason)
        self.losses.append(loss)
        del self._silence[rank]
        self.send(sends)
        if reason:
            self.transport.cut_off(rank, reason)
        if self.newcomers is not None and left:
            self.newcomers.note(loss, self._hosts, self.master.ranks)
        if run and reason and self.is_deserted:
            run.error = RequeueError(f"{loss}; resume the run to go on")

    def _write_off(self, rank: Rank, message: Overdue | Unreachable) -> None:
        """A worker of this run says that somebody has to leave."""
        run = self.master.run
        if run is None or run.begin.serial != message.serial:
            return
        if isinstance(message, Unreachable):
            self._part(rank, message.rank)
        else:
            timeout = run.begin.policy.timeout
            self._lose(rank, f"task {message.task} took longer than {timeout:g} s")

    def _part(self, rank: Rank, other: Rank) -> None:
        """Two workers cannot reach each other: go on without one of them."""
        hosts = {each: self._hosts[each].host for each in self.master.ranks}
        if {rank, other} <= hosts.keys():
            leaves = who_leaves(rank, other, hosts)
            stays = other if leaves == rank else rank
            self._lose(leaves, f"it and rank {stays} on {hosts[stays]} do not reach each other")

    def _take_reads(self) -> bool:
        """Take what the I/O thread has read; return whether there was anything."""
        events = self._reader.events()
        for event in events:
            if isinstance(event, BlockLoaded):
                self.send(self.master.loaded(event.generation, event.block, event.arrays))
            else:
                self.master.unreadable(event.generation, event.block, event.error)
        return bool(events)

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
        if self.master.run is None:
            return
        for rank in [r for r in self.master.ranks if self._silence[r] > self._patience]:
            self._lose(rank, f"silent for {self._silence[rank]:.3g} s, so hung or cut off")
        now = time.monotonic()
        if now - self._spoke > self._patience / BEATS_PER_PATIENCE:
            self._spoke = now
            beat = Beat(self.master.run.begin.serial)
            self.send([Send(rank, beat) for rank in self.master.ranks])
