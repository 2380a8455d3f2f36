"""Jobs of several MPI ranks: how a pool is opened, how a worker serves, and how the job ends.

Where MPI tolerates faults (Open MPI, `mpirun --with-ft ulfm`), the job ends without MPI_Finalize,
which can hang after a failure, and without MPI_Abort, which hangs mpirun.
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
from mpipar.runtime.loops.prepared_stage import await_closed
from mpipar.runtime.machines.messages import Stop
from mpipar.runtime.node_memory.sharing_transport import SharingTransport
from mpipar.runtime.pool import Pool, stop_workers
from mpipar.runtime.process.environment import tune_process
from mpipar.runtime.process.exits import (
    crash,
    die_of_exit_codes,
    end_job,
    end_pools,
    exit_now,
    flush_output,
    force_end_later,
    kill_ranks,
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

BYE_SECONDS = 0.2  # for a worker's Bye to be sent, since MPI_Finalize is not called
SPAWNED_SECONDS = 10.0  # for mpirun to end; it may wait for a spawned rank that died at its start
KILL_SECONDS = 1.0  # for MPI to report killed ranks as dead


@dataclass(frozen=True)
class MpiWorld:
    """The world of ranks, as MPI sees it, and this process in it."""

    rank: int
    size: int
    vendor: str  # such as "Open MPI 5.0.11"
    fault_tolerant: bool = False  # whether the job goes on when a rank dies


class _MpiJob:
    """The transport of this process and the state of the job's end; all ranks make one together."""

    def __init__(self) -> None:
        self.tolerant = wants_fault_tolerance() and _vendor()[0] == "Open MPI"
        # Dup is a call of all ranks together, of which one may be dead by now.
        communicator = MPI.COMM_WORLD if self.tolerant else MPI.COMM_WORLD.Dup()
        # What arrives is for rank 0 or for a worker: which, is known only now.
        self.mpi_transport: MpiTransport[Any] = MpiTransport(
            communicator, fault_tolerant=self.tolerant
        )
        self.transport = SharingTransport(self.mpi_transport)
        self.workers_stopped = self.transport.rank != 0 or self.transport.size == 1
        self.silent: list[Rank] = []
        self.has_ended = False
        self.hosts: Mapping[Rank, Hello] = {}
        atexit.register(self.end, 1)

    def end(self, code: int) -> None:
        """On rank 0: stop the workers, and end those that do not answer by force.

        code   the exit code of the job if it has to be ended by force
        """
        if self.transport.rank or self.has_ended:
            return
        self.has_ended = True
        if not self.workers_stopped:
            self.on_workers_stopped(stop_workers(self.transport, range(1, self.transport.size)))
        self.mpi_transport.stop_cut_off_ranks()
        self._await_killed_ranks()
        if self.mpi_transport.has_spawned:
            force_end_later(SPAWNED_SECONDS)
        rest = sorted({*self.silent, *self.transport.cut_off_ranks()})
        if rest:
            ranks = ", ".join(map(str, rest))
            sys.stderr.write(f"mpipar: ranks {ranks} do not answer; they are ended by force\n")
            flush_output()
            if self.tolerant:
                kill_ranks(rest, self.hosts)
            else:
                force_end_later()
                MPI.COMM_WORLD.Abort(code)

    def _await_killed_ranks(self) -> None:
        """Wait until MPI reports the ranks that other workers kill on their hosts as dead."""
        until = time.monotonic() + KILL_SECONDS
        while self.tolerant and self.transport.cut_off_ranks() and time.monotonic() < until:
            self.transport.pause(moved=bool(self.transport.receive()))

    def on_workers_stopped(self, silent: list[Rank]) -> None:
        """Note that the workers were told to stop, and which of them did not answer."""
        self.workers_stopped, self.silent = True, silent


@cache
def _job() -> _MpiJob:
    return _MpiJob()


def _vendor() -> tuple[str, str]:
    name, version = MPI.get_vendor()
    return name, ".".join(map(str, version))


def world() -> MpiWorld:
    """Return the world of ranks. Collective: every rank calls it first."""
    job = _job()
    return MpiWorld(
        job.transport.rank, job.transport.size, " ".join(_vendor()), fault_tolerant=job.tolerant
    )


def open_pool(*, threads: int = 1, cache_bytes: int = 1 << 30) -> Pool:
    """Open the pool of all other ranks. On rank 0 of a world of two or more."""
    here = world()
    if here.rank != 0 or here.size == 1:
        raise UsageError(f"rank {here.rank} of {here.size} cannot open a pool over MPI")
    tune_process()
    job = _job()
    pool = Pool(
        job.transport,
        threads=threads,
        cache_bytes=cache_bytes,
        vendor=here.vendor,
        on_close=job.on_workers_stopped,
        late_workers=partial(spawn_worker, job.mpi_transport) if job.tolerant else None,
    )
    job.hosts = pool.hosts
    return pool


def serve() -> int:
    """Work for rank 0 until it says stop; return the exit code. On every other rank.

    Does not return where MPI tolerates faults.
    """
    tune_process()
    leave_to_rank_0()
    job = _job()
    if job.tolerant:
        die_of_exit_codes()
    departure = worker_loop.serve(job.transport)
    if job.tolerant:
        if departure.code == worker_loop.ORPHAN_EXIT:
            end_job()  # mpirun tolerates the loss of rank 0 too, and would end with code 0
        _exit_after(departure)
    if departure.reason:
        _await_stop(job.transport)
    if not departure.threads_ended:
        # A thread inside a task would run on while the interpreter is taken down.
        end_pools()
        MPI.Finalize()
        exit_now(departure.code)
    return departure.code


def serve_as(rank: Rank, begun: int) -> NoReturn:
    """Work for rank 0 as a rank that was spawned.

    begun   descriptor of a pipe; see `spawned_transport`
    """
    die_of_exit_codes()
    _exit_after(worker_loop.serve(SharingTransport(spawned_transport(rank, begun))))


def _exit_after(departure: Departure) -> NoReturn:
    if departure.code:
        crash()
    await_closed()
    end_pools()
    time.sleep(BYE_SECONDS)
    exit_now(0)


def _await_stop(transport: WorkerTransport) -> None:
    """Wait for the end of a job that goes on without this rank, whose exit would end the job."""
    while not any(isinstance(message, Stop) for _, message in transport.receive()):
        transport.pause(moved=False)


def finish(code: int) -> None:
    """End the job from rank 0, whatever state it is in; does nothing on other ranks.

    To be called last, also after an error before the pool was opened. Returns if all workers have
    stopped, so that the process can exit with `code`; else ends them by force, and the job with
    `code`. Where MPI tolerates faults, rank 0 exits here.
    """
    job = _job()
    job.end(code)
    if job.tolerant and job.transport.rank == 0:
        exit_now(code)
