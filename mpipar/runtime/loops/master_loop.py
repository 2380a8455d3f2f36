"""Rank 0's loop: it owns the run under way, and carries messages, reads and time to the machine.

Pool, Stream --begin, add, seal, take_results, end--> MasterLoop
     workers <--transport--> MasterLoop --handle, tick, rank_lost--> MasterMachine
                                 +-- BlockReader (the I/O thread)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mpipar.errors import RequeueError
from mpipar.runtime.loops.block_reader import BlockLoaded, BlockReader
from mpipar.runtime.machines.messages import Hello, Send
from mpipar.runtime.reports import NewWorker, PoolStatistics, RunResult, StageStatistics
from mpipar.runtime.stage import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mpipar.runtime.loops.late_workers import LateWorkers
    from mpipar.runtime.machines.master import MasterAction, MasterMachine, MasterRun
    from mpipar.runtime.machines.messages import Rank
    from mpipar.runtime.reports import LostWorker
    from mpipar.runtime.stage import BlockSource, Policy, Stage, Task
    from mpipar.runtime.transports.transport import MasterTransport

TICK_SECONDS = 0.05
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


class MasterLoop:
    """Rank 0's loop and the run under way; used by one thread at a time."""

    def __init__(
        self,
        transport: MasterTransport,
        machine: MasterMachine,
        losses: list[LostWorker],
        patience: float,
    ) -> None:
        """`losses` is added to, in the order in which they are noticed."""
        self.transport = transport
        self.machine = machine
        self.losses = losses
        self.gains: list[NewWorker] = []
        self.late_workers: LateWorkers | None = None
        self._patience = patience
        self._reader = BlockReader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = self._began = time.monotonic()
        self._losses_before = 0  # those before the run
        self._served_before = 0, 0  # blocks and bytes before the run
        self._statistics = PoolStatistics(0, 0, 0, 0, 0.0)  # of the last run, when it ended

    # Runs

    @property
    def ranks(self) -> Sequence[Rank]:
        """The workers that are not lost."""
        return self.machine.ranks

    @property
    def has_source(self) -> bool:
        """Whether there is a source of blocks."""
        return self._source is not None

    def serve(self, source: BlockSource) -> None:
        """Read blocks from this source from now on; the workers' cached blocks are void."""
        self._source = source
        self.machine.files.renew()

    def begin(
        self,
        stage: Stage,
        shared: Mapping[str, Any],
        tasks: Sequence[Task],
        policy: Policy,
        *,
        sealed: bool = True,
    ) -> MasterRun:
        """Begin a run; the one before must have ended. If it is not sealed, tasks can be added.

        Raises RequeueError if no worker is left.
        """
        self.turn()  # who was lost since the last run gets no task
        if self.machine.is_deserted:
            raise RequeueError("no worker is left; resume the run to go on")
        self._began = self._ticked = time.monotonic()  # the time before it says nothing
        files = self.machine.files
        self._served_before = files.blocks_served, files.bytes_served
        self._losses_before = len(self.losses)
        self._perform(self.machine.begin(stage, frozen(shared), tasks, policy, sealed=sealed))
        assert self.machine.run is not None
        return self.machine.run

    def add(self, tasks: Sequence[Task]) -> None:
        """Add tasks to the run under way, which is not sealed."""
        self._perform(self.machine.add(tasks))

    def take_results(self) -> list[tuple[int, Any]]:
        """Return what has come of a stream's tasks since the last call, by task id."""
        return self.machine.take_results()

    def seal(self) -> None:
        """No more tasks will come for the run under way."""
        self._perform(self.machine.seal())

    def end(self) -> None:
        """The run is over, well or not: workers drop it."""
        self._statistics = self.statistics()
        self._perform(self.machine.end())

    def statistics(self) -> PoolStatistics:
        """Return how far the run under way is; between runs, how far the last one came."""
        run = self.machine.run
        if run is None:
            return self._statistics
        return PoolStatistics(
            done=run.finished,
            total=run.total,
            stolen=run.scheduler.stolen,
            running_workers=run.scheduler.loads.running,
            elapsed=time.monotonic() - self._began,
            lost=len(self.losses),
            late=self.machine.late,
            run_again=run.scheduler.rerun,
            bytes_served=self.machine.files.bytes_served,
        )

    def result(self, run: MasterRun) -> RunResult:
        """Return what the run that has just ended gave, and what it took."""
        files, scheduler = self.machine.files, run.scheduler
        blocks, size = self._served_before
        statistics = StageStatistics(
            wall=time.monotonic() - self._began,
            blocks_served=files.blocks_served - blocks,
            bytes_served=files.bytes_served - size,
            steals=scheduler.steals,
            tasks_stolen=scheduler.stolen,
            tasks_per_rank=run.done,
            busy_seconds_per_rank=run.seconds,
            peer_blocks=run.peer_blocks,
            lost=tuple(loss.rank for loss in self.losses[self._losses_before :]),
            tasks_run_again=scheduler.rerun,
        )
        results = [run.results[task] for task in range(len(scheduler.tasks))]
        return RunResult(results, run.sums, statistics, run.totals)

    # The loop

    def turn(self) -> bool:
        """Handle what has arrived, and let time pass; return whether anything had arrived."""
        arrived = self.transport.receive()
        self._count_expected()
        for source, message in arrived:
            if self.late_workers is not None and isinstance(message, Hello):
                self._greet(self.late_workers, source, message)
            self._perform(self.machine.handle(source, message))
        lost = self.transport.lost()
        for rank in lost:
            self._lose(rank)
        events = self._take_reads()
        self._start_reads()
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self._perform(self.machine.tick(now - self._ticked))
            self._ticked = now
        if self.late_workers is not None and self._start_late(self.late_workers):
            return True
        return bool(arrived or lost) or events

    def _perform(self, actions: Iterable[MasterAction]) -> None:
        """Carry out what the machine wants done."""
        for action in actions:
            if isinstance(action, Send):
                self.transport.send(action.rank, action.message)
            else:
                self._note_loss(action)

    def drain(self) -> None:
        """Wait until all messages have left, before the program goes on without the loop."""
        until = time.monotonic() + self._patience
        while self.transport.backlog() and time.monotonic() < until:
            self.transport.pause(moved=self.turn())

    def close(self) -> None:
        """End the I/O thread."""
        self._reader.close(patience=1.0)

    def _greet(self, late_workers: LateWorkers, source: Rank, hello: Hello) -> None:
        """Take in a late worker that says Hello, if it was expected."""
        if source in self.machine.ranks:
            return
        welcome = late_workers.greet(source, hello)
        if welcome is not None:
            self.gains.append(NewWorker(source, hello))
            self._perform([Send(source, welcome), *self.machine.rank_joined(source, hello)])

    def _start_late(self, late_workers: LateWorkers) -> bool:
        """Start a worker if one is wanted; return whether that was tried."""
        for rank in late_workers.take_overdue():
            self.transport.cut_off(rank, "it took too long to start")
        return self.machine.run is not None and late_workers.start_next()

    def _count_expected(self) -> None:
        """Tell the machine how many workers may still come."""
        if self.late_workers is not None:
            self.machine.expected = self.late_workers.expected(self.machine.hellos)

    def _lose(self, rank: Rank) -> None:
        """Tell the machine that a worker is dead."""
        self._count_expected()
        if rank in self.machine.ranks:
            self._perform(self.machine.rank_lost(rank))
        elif self.late_workers is not None:
            self.late_workers.on_early_death(rank)
            self._count_expected()
            self.machine.end_if_deserted()

    def _note_loss(self, loss: LostWorker) -> None:
        """Carry out the machine's decision to go on without a worker."""
        self.losses.append(loss)
        if loss.reason:
            self.transport.cut_off(loss.rank, loss.reason)
        if self.late_workers is not None and loss.left:
            self.late_workers.on_loss(loss, self.machine.hellos, self.machine.ranks)

    def _take_reads(self) -> bool:
        """Send the blocks that the I/O thread has read; return whether there were any."""
        events = self._reader.events()
        for event in events:
            if isinstance(event, BlockLoaded):
                generation, block, arrays = event.generation, event.block, event.arrays
                self._perform(self.machine.files.loaded(generation, block, arrays))
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
