"""Rank 0's loop: it carries messages, reads and time to the master, and what it says out.

workers <--transport--> Loop --handle, loaded, lose, tick--> Master
                          +-- Reader (the I/O thread)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.errors import RequeueError
from mpipar.runtime.messages import Hello, Send
from mpipar.runtime.reader import Loaded, Reader
from mpipar.runtime.reports import Loss, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.runtime.master import Master
    from mpipar.runtime.messages import Rank, Welcome
    from mpipar.runtime.stage import BlockSource
    from mpipar.runtime.transport import Transport

TICK_SECONDS = 0.05
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


@dataclass(frozen=True)
class Recruits:
    """Workers that come when they can, also in the middle of a run."""

    expected: Callable[[], set[Rank]]  # that have come or may still come
    give_up: Callable[[Rank], None]  # have the transport count a rank as lost
    patience: float  # seconds of silence after which that is done


class Loop:
    """What moves rank 0; used by one thread at a time."""

    def __init__(
        self,
        transport: Transport,
        master: Master,
        hosts: dict[Rank, Hello],
        losses: list[Loss],
        patience: float,
    ) -> None:
        """`losses` is added to, in the order in which they are noticed; `hosts` by `recruit`."""
        self.transport = transport
        self.master = master
        self.losses = losses
        self._hosts = hosts
        self._patience = patience
        self._silence: dict[Rank, float] = dict.fromkeys(hosts, 0.0)
        self._reader = Reader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = time.monotonic()
        self._recruits: Recruits | None = None
        self._welcome: Callable[[Hello], Welcome]

    def recruit(self, recruits: Recruits, welcome: Callable[[Hello], Welcome]) -> None:
        """Take in workers that come later."""
        self._recruits, self._welcome = recruits, welcome
        self._patience = recruits.patience

    @property
    def is_deserted(self) -> bool:
        """Whether there is no worker, and none can be expected."""
        return not (self.master.ranks or self._expected)

    @property
    def _expected(self) -> int:
        """How many workers may still come."""
        return len(self._recruits.expected() - self._hosts.keys()) if self._recruits else 0

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
            if self._recruits and isinstance(message, Hello):
                self._join(source, message)
            self.send(self.master.handle(source, message))  # type: ignore[arg-type]
        lost = self.transport.lost()
        for rank in lost:
            self._lose(rank)
        if lost and self.is_deserted:
            self.master.nobody_comes()
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

    def _join(self, rank: Rank, hello: Hello) -> None:
        self._hosts[rank] = hello
        welcome = Send(rank, self._welcome(hello))
        self.send([welcome, *self.master.rank_joined(rank)])

    def _lose(self, rank: Rank) -> None:
        run = self.master.run
        before = run.scheduler.rerun if run else 0
        sends = self.master.rank_lost(rank, expected=self._expected)
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
        if self._recruits:
            for rank in silent:
                self._recruits.give_up(rank)
        elif silent and self.master.run is not None:
            names = ", ".join(name_of(rank, self._hosts[rank]) for rank in silent)
            self.master.run.error = RequeueError(
                f"no sign of life for {self._patience:.0f} s from {names}: hung, or cut off; "
                "resume the run (MPIPAR_PATIENCE=seconds sets the time)"
            )
