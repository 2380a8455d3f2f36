"""Rank 0's loop, and the one object through which a program uses all workers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpipar.errors import RequeueError, UnavailableError, UsageError
from mpipar.runtime import environment
from mpipar.runtime.master import Master
from mpipar.runtime.messages import Bye, Hello, Stop, Welcome
from mpipar.runtime.reader import Loaded, Reader
from mpipar.runtime.stage import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mpipar.runtime.master import Run
    from mpipar.runtime.messages import Knobs, Rank, Send
    from mpipar.runtime.stage import BlockSource, Stage, Sums, Task
    from mpipar.runtime.transport import Transport

TICK_SECONDS = 0.05
WATCH_SECONDS = 0.1
PARTING_SECONDS = 5.0
BACKLOG_BYTES = 256 << 20
"""No further block is read while this much is waiting to leave rank 0."""


@dataclass(frozen=True)
class Loss:
    """A worker that died, while the job goes on without it."""

    rank: Rank
    hello: Hello | None  # None: it died before it had greeted
    tasks: int  # that others run again
    left: int  # workers

    def __str__(self) -> str:
        name = _name(self.rank, self.hello)
        if not self.left:
            return f"{name} is lost, and no worker is left"
        again = {0: "no task is", 1: "1 task is"}.get(self.tasks, f"{self.tasks} tasks are")
        return f"{name} is lost; {again} run again by the {self.left} left"


def _name(rank: Rank, hello: Hello | None) -> str:
    where = "" if hello is None else f" on {hello.host} (process {hello.process})"
    return f"rank {rank}{where}"


@dataclass(frozen=True)
class Snapshot:
    """How far a run is."""

    done: int
    total: int
    stolen: int
    running_workers: int
    elapsed: float  # seconds
    lost: int = 0  # workers, since the pool was opened


@dataclass(frozen=True)
class StageStatistics:
    """What a run took."""

    wall: float  # seconds
    blocks_served: int  # by rank 0
    bytes_served: int  # by rank 0
    steals: int
    tasks_stolen: int
    tasks_per_rank: dict[int, int]
    busy_seconds_per_rank: dict[int, float]
    peer_blocks: int = 0  # blocks that workers got from each other
    lost: tuple[Rank, ...] = ()
    tasks_run_again: int = 0  # because of those losses


@dataclass(frozen=True)
class Outcome:
    """What a run gave."""

    results: list[Any]  # by task id
    sums: Sums | None
    statistics: StageStatistics


def stop_workers(transport: Transport, ranks: Sequence[Rank]) -> list[Rank]:
    """Tell workers to stop and hear from each; return those that did not answer in time."""
    for rank in ranks:
        transport.send(rank, Stop())
    silent = set(ranks)
    until = time.monotonic() + PARTING_SECONDS
    while silent and time.monotonic() < until:
        arrived = transport.receive()
        silent -= {source for source, message in arrived if isinstance(message, Bye)}
        silent.difference_update(transport.lost())
        transport.pause(moved=bool(arrived))
    return sorted(silent)


class Pool:
    """The workers, as seen from rank 0. Use as a context manager."""

    def __init__(
        self,
        transport: Transport,
        *,
        threads: int,
        cache_bytes: int,
        vendor: str | None = None,
        farewell: Callable[[list[Rank]], None] = lambda silent: None,
    ) -> None:
        """Greet all workers. `vendor` names the MPI, if any; `farewell` ends `close`."""
        if threads < 1 or cache_bytes < 0:
            raise UsageError("a worker needs at least one thread and a cache of 0 bytes or more")
        self._transport = transport
        self._farewell = farewell
        self._patience = environment.patience()
        self.threads = threads
        self.losses: list[Loss] = []  # in the order in which they were noticed
        knobs = environment.knobs()
        self.hosts = self._greet()
        self._silence: dict[Rank, float] = dict.fromkeys(self.hosts, 0.0)
        self._welcome(knobs, cache_bytes)
        self.description = self._describe(vendor)
        self._master = Master(self.hosts, threads=threads, knobs=knobs)
        self._reader = Reader(transport.wake)
        self._source: BlockSource | None = None
        self._ticked = time.monotonic()
        self._closed = False

    @property
    def workers(self) -> int:
        """How many there are now."""
        return len(self._master.ranks)

    # Greeting

    def _greet(self) -> dict[Rank, Hello]:
        """Wait for every worker's hello."""
        transport, hellos = self._transport, dict[int, Hello]()
        awaited = set(range(1, transport.size))
        until = time.monotonic() + self._patience
        while awaited - hellos.keys():
            arrived = transport.receive()
            for source, message in arrived:
                if isinstance(message, Hello):
                    hellos[source] = message
            for rank in transport.lost():
                awaited.discard(rank)
                self.losses.append(Loss(rank, hellos.pop(rank, None), 0, len(awaited)))
            if time.monotonic() > until:
                silent = sorted(awaited - hellos.keys())
                raise UnavailableError(
                    f"ranks {', '.join(map(str, silent))} have not said hello within "
                    f"{self._patience:.0f} s; look at their nodes, or give a slow file system "
                    "more time with MPIPAR_PATIENCE=seconds"
                )
            transport.pause(moved=bool(arrived))
        if not hellos:
            raise RequeueError("; ".join(map(str, self.losses)))
        return hellos

    def _welcome(self, knobs: Knobs, cache_bytes: int) -> None:
        hosts = [hello.host for hello in self.hosts.values()]
        for rank, hello in self.hosts.items():
            crowding = hosts.count(hello.host) / hello.cores
            welcome = Welcome(self.threads, cache_bytes, knobs, crowding)
            self._transport.send(rank, welcome)

    def _describe(self, vendor: str | None) -> str:
        each = f", {self.threads} threads each" if self.threads > 1 else ""
        workers = len(self.hosts)
        if vendor is None:
            if workers > 1:
                return f"{workers} threads" if not each else f"{workers} workers{each}"
            return f"{self.threads} threads" if each else "serial"
        names = sorted({hello.host for hello in self.hosts.values()})
        nodes = f"{len(names)} node{'s' * (len(names) > 1)}"
        if len(names) <= 4:  # noqa: PLR2004 - a line's worth
            nodes += f" {', '.join(names)}"
        crew = f"{workers} worker{'s' * (workers > 1)}"
        return f"mpi: 1 master + {crew}{each} on {nodes} ({vendor})"

    # Runs

    def serve(self, source: BlockSource) -> None:
        """Take blocks from this source from now on; what workers have cached is void."""
        self._source = source
        self._master.renew_source()

    def run(
        self,
        stage: Stage,
        shared: Mapping[str, Any],
        tasks: Sequence[Task],
        *,
        watch: Callable[[Snapshot], None] | None = None,
    ) -> Outcome:
        """Compute all tasks; return results by task id, and the sum of the workers' partials.

        Raises TaskFailedError if a task failed on every try, and the source's own error if a
        block could not be read, RequeueError if no worker is left. The pool can be used again
        after an error.
        """
        self._check(tasks)
        self._turn()  # who was lost since the last run gets no task
        if not self._master.ranks:
            raise RequeueError("no worker is left; resume the run to go on")
        start, losses = time.monotonic(), len(self.losses)
        served = self._master.files.blocks_served, self._master.files.bytes_served
        try:
            sends = self._master.begin(stage, frozen(shared), tasks)
            run = self._master.run
            assert run is not None
            self._silence = dict.fromkeys(self._silence, 0.0)
            self._ticked = start
            self._send(sends)
            self._loop(run, start, watch)
        finally:
            self._send(self._master.end())
        self._drain()
        if run.error is not None:
            raise run.error
        return self._outcome(run, start, served, self.losses[losses:])

    def _check(self, tasks: Sequence[Task]) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")
        if sorted(task.id for task in tasks) != list(range(len(tasks))):
            raise ValueError("the ids of the tasks of a run must be 0 .. n-1, each once")
        if self._source is None and any(task.block is not None for task in tasks):
            raise ValueError("a task needs a block, but the pool serves no source")

    def _loop(self, run: Run, start: float, watch: Callable[[Snapshot], None] | None) -> None:
        shown = start
        while not run.over:
            self._transport.pause(moved=self._turn())
            now = time.monotonic()
            if watch is not None and now - shown >= WATCH_SECONDS:
                shown = now
                watch(self._snapshot(run, now - start))
        if watch is not None and run.error is None:
            watch(self._snapshot(run, time.monotonic() - start))

    def _snapshot(self, run: Run, elapsed: float) -> Snapshot:
        scheduler = run.scheduler
        running = sum(bool(load.placed) for load in scheduler.loads.values())
        total = len(scheduler.entries)
        lost = len(self.losses)
        return Snapshot(scheduler.finished, total, scheduler.stolen, running, elapsed, lost)

    def _outcome(
        self, run: Run, start: float, served: tuple[int, int], losses: Sequence[Loss]
    ) -> Outcome:
        files, scheduler = self._master.files, run.scheduler
        statistics = StageStatistics(
            wall=time.monotonic() - start,
            blocks_served=files.blocks_served - served[0],
            bytes_served=files.bytes_served - served[1],
            steals=scheduler.steals,
            tasks_stolen=scheduler.stolen,
            tasks_per_rank=run.done,
            busy_seconds_per_rank=run.seconds,
            peer_blocks=run.peer_blocks,
            lost=tuple(loss.rank for loss in losses),
            tasks_run_again=scheduler.rerun,
        )
        results = [run.results[task] for task in range(len(scheduler.entries))]
        return Outcome(results, run.sums, statistics)

    # One turn of the loop

    def _turn(self) -> bool:
        """Take what has arrived, and let time pass; return whether there was anything."""
        arrived = self._transport.receive()
        for source, message in arrived:
            self._silence[source] = 0.0
            self._send(self._master.handle(source, message))  # type: ignore[arg-type]
        lost = self._transport.lost()
        for rank in lost:
            self._lose(rank)
        events = self._reader.events()
        for event in events:
            if isinstance(event, Loaded):
                self._send(self._master.loaded(event.generation, event.block, event.arrays))
            else:
                self._master.unreadable(event.generation, event.block, event.error)
        self._start_reads()
        now = time.monotonic()
        if now - self._ticked >= TICK_SECONDS:
            self._tick(now - self._ticked)
            self._ticked = now
        return bool(arrived or lost or events)

    def _lose(self, rank: Rank) -> None:
        run = self._master.run
        before = run.scheduler.rerun if run else 0
        sends = self._master.rank_lost(rank)
        again = run.scheduler.rerun - before if run else 0
        self.losses.append(Loss(rank, self.hosts.get(rank), again, self.workers))
        self._send(sends)

    def _start_reads(self) -> None:
        files = self._master.files
        while self._source is not None and self._transport.backlog() < BACKLOG_BYTES:
            block = files.next_read()
            if block is None:
                return
            self._reader.read(self._source, files.generation, block)

    def _tick(self, seconds: float) -> None:
        self._send(self._master.tick(seconds))
        # If this process itself was stopped for a while, that is nobody's silence.
        seconds = min(seconds, 1.0)
        for rank in self._silence:
            self._silence[rank] += seconds
        silent = [r for r in self._master.ranks if self._silence[r] > self._patience]
        if silent and self._master.run is not None:
            names = ", ".join(_name(rank, self.hosts[rank]) for rank in silent)
            self._master.run.error = RequeueError(
                f"no sign of life for {self._patience:.0f} s from {names}: hung, or cut off; "
                "resume the run (MPIPAR_PATIENCE=seconds sets the time)"
            )

    def _send(self, sends: list[Send]) -> None:
        for send in sends:
            self._transport.send(send.rank, send.message)

    def _drain(self) -> None:
        """Let what is on its way leave before the program goes on without the loop."""
        until = time.monotonic() + self._patience
        while self._transport.backlog() and time.monotonic() < until:
            self._transport.pause(moved=self._turn())

    # The end

    def close(self) -> None:
        """Stop all workers and leave. Never waits for long."""
        if self._closed:
            return
        self._closed = True
        silent = stop_workers(self._transport, self._master.ranks)
        self._reader.close(patience=1.0)
        self._farewell(silent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
