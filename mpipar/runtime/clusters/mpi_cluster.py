"""How a job of several MPI ranks begins and ends.

Where MPI tolerates faults (Open MPI, `mpirun --with-ft ulfm`), the job ends without MPI_Finalize
and MPI_Abort: the one can hang after a failure, the other hangs mpirun.
"""

from __future__ import annotations

import atexit
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

from mpi4py import MPI

from mpipar.errors import UsageError
from mpipar.runtime.clusters.mpi_spawn import spawn_worker, spawned_transport
from mpipar.runtime.loops import worker_loop
from mpipar.runtime.machines.messages import Stop
from mpipar.runtime.node_memory.sharing_transport import SharingTransport
from mpipar.runtime.pool import Pool, stop_workers
from mpipar.runtime.process.environment import calm_process
from mpipar.runtime.process.exits import (
    end_job,
    flush_output,
    give_up,
    insist_on_end,
    kill_ranks,
    leave,
)
from mpipar.runtime.process.launcher_variables import wants_fault_tolerance
from mpipar.runtime.process.signals import leave_to_rank_0
from mpipar.runtime.transports.mpi_transport import MpiTransport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mpipar.runtime.loops.worker_loop import Departure
    from mpipar.runtime.machines.messages import Hello, Rank
    from mpipar.runtime.transports.transport import WorkerTransport

__all__ = ["MpiTransport", "MpiWorld", "finish", "open_pool", "serve", "serve_as", "world"]

LAST_WORD_SECONDS = 0.2  # for a worker's Bye to leave: MPI holds it, and is not finalised
SPAWNED_SECONDS = 10.0  # for mpirun to end; it may wait for a spawned rank that died at its start
KILL_SECONDS = 1.0  # for ranks that were killed to be seen dead


@dataclass(frozen=True)
class MpiWorld:
    """What MPI says this process is."""

    rank: int
    size: int
    vendor: str  # such as "Open MPI 5.0.11"
    fault_tolerant: bool = False  # whether the job goes on when a rank dies


class _MpiJob:
    """This process's part in the job: made once, by all ranks together."""

    def __init__(self) -> None:
        self.tolerant = wants_fault_tolerance() and _vendor()[0] == "Open MPI"
        # A communicator of our own is made by all ranks together, of which one may be dead by now.
        communicator = MPI.COMM_WORLD if self.tolerant else MPI.COMM_WORLD.Dup()
        # What arrives is for rank 0 or for a worker: which, is known only now.
        self.plain: MpiTransport[Any] = MpiTransport(communicator, fault_tolerant=self.tolerant)
        self.transport = SharingTransport(self.plain)
        self.parted = self.transport.rank != 0 or self.transport.size == 1
        self.silent: list[Rank] = []
        self.over = False
        self.crew: Mapping[Rank, Hello] = {}
        atexit.register(self.part, 1)

    def part(self, code: int) -> None:
        """On rank 0: see the workers off, or end them by force with this exit code."""
        if self.transport.rank or self.over:
            return
        self.over = True
        if not self.parted:
            self.note(stop_workers(self.transport, range(1, self.transport.size)))
        self.plain.dismiss()
        self._await_strays()
        if self.plain.has_spawned:
            insist_on_end(SPAWNED_SECONDS)
        rest = sorted({*self.silent, *self.transport.strays()})
        if rest:
            ranks = ", ".join(map(str, rest))
            sys.stderr.write(f"mpipar: ranks {ranks} do not answer; they are ended by force\n")
            flush_output()
            if self.tolerant:
                kill_ranks(rest, self.crew)
            else:
                insist_on_end()
                MPI.COMM_WORLD.Abort(code)

    def _await_strays(self) -> None:
        """Workers kill those of their own host that were written off; let that be seen."""
        until = time.monotonic() + KILL_SECONDS
        while self.tolerant and self.transport.strays() and time.monotonic() < until:
            self.transport.pause(moved=bool(self.transport.receive()))

    def note(self, silent: list[Rank]) -> None:
        """The workers have been told to stop; these did not answer."""
        self.parted, self.silent = True, silent


@cache
def _job() -> _MpiJob:
    return _MpiJob()


def _vendor() -> tuple[str, str]:
    name, version = MPI.get_vendor()
    return name, ".".join(map(str, version))


def world() -> MpiWorld:
    """Return what this process is. Collective: every rank calls it first."""
    job = _job()
    return MpiWorld(
        job.transport.rank, job.transport.size, " ".join(_vendor()), fault_tolerant=job.tolerant
    )


def open_pool(*, threads: int = 1, cache_bytes: int = 1 << 30) -> Pool:
    """Open the pool of all other ranks. On rank 0 of a world of two or more."""
    here = world()
    if here.rank != 0 or here.size == 1:
        raise UsageError(f"rank {here.rank} of {here.size} cannot open a pool over MPI")
    calm_process()
    job = _job()
    pool = Pool(
        job.transport,
        threads=threads,
        cache_bytes=cache_bytes,
        vendor=here.vendor,
        farewell=job.note,
        newcomers=partial(spawn_worker, job.plain) if job.tolerant else None,
    )
    job.crew = pool.hosts
    return pool


def serve() -> int:
    """Work for rank 0 until it says stop; return the exit code. On every other rank.

    Does not return where MPI tolerates faults.
    """
    calm_process()
    leave_to_rank_0()
    job = _job()
    departure = worker_loop.serve(job.transport)
    if job.tolerant:
        if departure.code == worker_loop.ORPHAN_EXIT:
            end_job()  # mpirun tolerates the loss of rank 0 too, and would end with code 0
        _depart(departure)
    if departure.reason:
        _stand_by(job.transport)
    if not departure.threads_ended:
        # A thread inside a task would meet an interpreter that is being taken down.
        MPI.Finalize()
        leave(departure.code)
    return departure.code


def serve_as(rank: Rank, begun: int) -> NoReturn:
    """Work for rank 0 as a rank that was spawned. `begun`: see `spawned_transport`."""
    _depart(worker_loop.serve(SharingTransport(spawned_transport(rank, begun))))


def _depart(departure: Departure) -> NoReturn:
    if departure.code:
        give_up()
    time.sleep(LAST_WORD_SECONDS)
    leave(0)


def _stand_by(transport: WorkerTransport) -> None:
    """Wait for the end of a job that goes on without us: an exit now would end it."""
    while not any(isinstance(message, Stop) for _, message in transport.receive()):
        transport.pause(moved=False)


def finish(code: int) -> None:
    """End the job from rank 0, whatever state it is in; does nothing on other ranks.

    Call it last, also after an error before the pool was opened. Returns if all workers have left
    in good order, so that the process can exit with `code`; else ends them by force with it. Where
    MPI tolerates faults, rank 0 exits here.
    """
    job = _job()
    job.part(code)
    if job.tolerant and job.transport.rank == 0:
        leave(code)
