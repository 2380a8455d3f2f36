"""The pool: the one object through which a program uses all workers."""

from __future__ import annotations

import socket
import time
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import RequeueError, UnavailableError, UsageError
from mpipar.runtime.loops.late_workers import ExternalWorkers, WelcomedWorkers
from mpipar.runtime.loops.master_loop import MasterLoop
from mpipar.runtime.loops.respawning import RespawnedWorkers
from mpipar.runtime.machines.master import MasterMachine
from mpipar.runtime.machines.messages import MASTER, POLICY, Bye, Hello, Stop, Welcome
from mpipar.runtime.node_memory.shared_arrays import memory_name
from mpipar.runtime.process import environment, signals
from mpipar.runtime.reports import LostWorker
from mpipar.runtime.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from mpipar.runtime.loops.respawning import Starter
    from mpipar.runtime.machines.master import MasterRun
    from mpipar.runtime.machines.messages import Knobs, Rank
    from mpipar.runtime.reports import NewWorker, PoolStatistics, RunResult
    from mpipar.runtime.stage import BlockSource, Policy, Stage, Task
    from mpipar.runtime.stream import StreamClient
    from mpipar.runtime.transports.transport import MasterTransport

WATCH_SECONDS = 0.1
STOP_SECONDS = 5.0
NOTHING: Final[Mapping[Rank, tuple[int, ...]]] = {}


def stop_workers(
    transport: MasterTransport,
    ranks: Sequence[Rank],
    kill: Mapping[Rank, tuple[int, ...]] = NOTHING,
) -> list[Rank]:
    """Tell workers to stop; return those that have not answered after STOP_SECONDS.

    kill   for some workers, the hung processes on their host that they are to kill
    """
    for rank in ranks:
        transport.send(rank, Stop(kill=kill.get(rank, ())))
    silent = set(ranks)
    until = time.monotonic() + STOP_SECONDS
    while silent and time.monotonic() < until:
        arrived = transport.receive()
        silent -= {source for source, message in arrived if isinstance(message, Bye)}
        silent.difference_update(transport.lost())
        transport.pause(moved=bool(arrived))
    return sorted(silent)


class Pool:
    """The workers, as seen from rank 0. A context manager that stops them at its end."""

    _losses_told = _gains_told = 0  # how many `new_losses` and `new_gains` have returned

    def __init__(
        self,
        transport: MasterTransport,
        *,
        threads: int,
        cache_bytes: int,
        vendor: str | None = None,
        on_close: Callable[[list[Rank]], None] = lambda silent: None,
        late_workers: ExternalWorkers | Starter | None = None,
    ) -> None:
        """Wait until all workers have come, unless they are external: these may come later.

        threads       of each worker, for tasks
        cache_bytes   of blocks that each worker keeps
        vendor        the name of the MPI, if there is one
        on_close      called at the end of `close`, with the workers that did not answer Stop
        late_workers  external workers, or a function that starts a worker in a lost one's place
        """
        if threads < 1 or cache_bytes < 0:
            raise UsageError("a worker needs at least one thread and a cache of 0 bytes or more")
        external = late_workers if isinstance(late_workers, ExternalWorkers) else None
        self._transport = transport
        self._on_close = on_close
        self._patience = environment.patience()
        self.threads = threads
        self.losses: list[LostWorker] = []  # in the order in which they were noticed
        knobs = environment.knobs()
        self.hosts = {} if external else self._await_hellos()
        self._ranks_on = Counter(hello.host for hello in self.hosts.values())
        self._welcome(knobs, cache_bytes)
        self.description = self._describe(vendor)
        patience = external.patience if external else self._patience
        machine = MasterMachine(
            self.hosts,
            threads=threads,
            knobs=knobs,
            memories=self._memories(),
            patience=patience,
        )
        self._loop = MasterLoop(transport, machine, self.losses, patience)
        self._stream: Stream | None = None
        self._closed = False
        self._respawned: RespawnedWorkers | None = None
        welcome = partial(self._welcome_to, knobs=knobs, cache_bytes=cache_bytes)
        if isinstance(late_workers, ExternalWorkers):
            self._loop.late_workers = WelcomedWorkers(late_workers, welcome)
        elif late_workers is not None:
            self._respawned = RespawnedWorkers(late_workers, welcome, self._patience)

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return len(self._loop.ranks)

    @property
    def gains(self) -> list[NewWorker]:
        """The workers that have come after the pool was opened."""
        return self._loop.gains

    def new_losses(self) -> list[LostWorker]:
        """Return the losses since the last call, so that the user is told of each once."""
        new = self.losses[self._losses_told :]
        self._losses_told += len(new)
        return new

    def new_gains(self) -> list[NewWorker]:
        """Return the new workers since the last call, so that the user is told of each once."""
        new = self.gains[self._gains_told :]
        self._gains_told += len(new)
        return new

    def replace_lost(self) -> bool:
        """From now on start a new worker for each one lost; False if that cannot be done here."""
        self._loop.late_workers = self._respawned
        return self._respawned is not None

    # The beginning

    def _await_hellos(self) -> dict[Rank, Hello]:
        """Wait for the Hello of every worker; return these by rank."""
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
                self.losses.append(LostWorker(rank, hellos.pop(rank, None), 0, len(awaited)))
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
        for rank, hello in self.hosts.items():
            self._transport.send(rank, self._welcome_to(hello, knobs, cache_bytes))

    def _welcome_to(self, hello: Hello, knobs: Knobs, cache_bytes: int) -> Welcome:
        crowding = max(1, self._ranks_on[hello.host]) / hello.cores
        return Welcome(self.threads, cache_bytes, knobs, crowding)

    def _memories(self) -> dict[Rank, str]:
        """Return a name for each rank; ranks with the same one can map each other's memory."""
        names = {rank: f"{hello.host} {hello.memory}" for rank, hello in self.hosts.items()}
        return {**names, MASTER: f"{socket.gethostname()} {memory_name()}"}

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
        count = f"{workers} worker{'s' * (workers > 1)}"
        return f"mpi: 1 master + {count}{each} on {nodes} ({vendor})"

    # Runs

    def serve(self, source: BlockSource) -> None:
        """Read blocks from this source from now on; the workers' cached blocks are void."""
        self._loop.serve(source)

    def run(
        self,
        stage: Stage,
        shared: Mapping[str, Any],
        tasks: Sequence[Task],
        *,
        policy: Policy = POLICY,
        watch: Callable[[PoolStatistics], None] | None = None,
    ) -> RunResult:
        """Compute all tasks; return results by task id, and the sum of the workers' partial sums.

        shared   values that every worker gets, once; large arrays are sent once to each host
        tasks    with ids 0 .. n-1, in any order
        watch    called about every WATCH_SECONDS, and at the end

        Raises TaskFailedError if a task was given up, but InputError if the task raised that; the
        source's own error if a block could not be read; RequeueError if no worker is left. The pool
        can be used again after an error.
        """
        self._check(stage, policy)
        self._check_tasks(tasks)
        loop = self._loop
        try:
            run = loop.begin(stage, shared, tasks, policy)
            self._wait(run, watch)
        finally:
            loop.end()
        loop.drain()
        if run.error is not None:
            raise run.error
        return loop.result(run)

    def stream(
        self,
        stage: Stage,
        shared: Mapping[str, Any],
        client: StreamClient,
        *,
        policy: Policy = POLICY,
    ) -> Stream:
        """Begin a run to which the client adds tasks while it goes on; the stage has no sums.

        Until the stream is over, nothing else can be done with the pool. Raises RequeueError if no
        worker is left.
        """
        self._check(stage, policy)
        if stage.has_sums:
            raise ValueError("a stream has no end at which it could have sums")
        run = self._loop.begin(stage, shared, (), policy, sealed=False)
        self._stream = Stream(self._loop, run, client, threads=self.threads)
        return self._stream

    def statistics(self) -> PoolStatistics:
        """Return how far the run or stream under way is; between runs, how far the last one came.

        This is what `watch` gets. Any thread may ask.
        """
        return self._loop.statistics()

    def _check(self, stage: Stage, policy: Policy) -> None:
        if self._closed:
            raise RuntimeError("the pool is closed")
        if self._stream is not None and not self._stream.is_over:
            raise RuntimeError("a stream is under way on this pool; close it first")
        if policy.isolate and stage.has_sums:
            raise ValueError("the sums of an isolated stage would be lost with its process")

    def _check_tasks(self, tasks: Sequence[Task]) -> None:
        if sorted(task.id for task in tasks) != list(range(len(tasks))):
            raise ValueError("the ids of the tasks of a run must be 0 .. n-1, each once")
        if not self._loop.has_source and any(task.block is not None for task in tasks):
            raise ValueError("a task needs a block, but the pool serves no source")

    def _wait(self, run: MasterRun, watch: Callable[[PoolStatistics], None] | None) -> None:
        shown = time.monotonic()
        while not run.over:
            signals.check()
            self._transport.pause(moved=self._loop.turn())
            now = time.monotonic()
            if watch is not None and now - shown >= WATCH_SECONDS:
                shown = now
                watch(self.statistics())
        if watch is not None and run.error is None:
            watch(self.statistics())

    # The end

    def close(self) -> None:
        """Stop all workers, and abort a stream. Waits for STOP_SECONDS at most."""
        if self._closed:
            return
        if self._stream is not None:
            self._stream.abort()
        self._closed = True
        silent = stop_workers(self._transport, self._loop.ranks, self._kills())
        self._loop.close()
        self._on_close(silent)

    def _kills(self) -> dict[Rank, tuple[int, ...]]:
        """Return, for one worker of each host, the hung processes there that were cut off."""
        where = {self.hosts[rank].host: rank for rank in self._loop.ranks}
        kills: dict[Rank, tuple[int, ...]] = {}
        for lost in self._transport.cut_off_ranks():
            hello = self.hosts.get(lost)
            if hello is not None and hello.host in where:
                rank = where[hello.host]
                kills[rank] = (*kills.get(rank, ()), hello.process)
        return kills

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
