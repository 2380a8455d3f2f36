"""The transport over MPI, and how a job of several ranks begins and ends. The one user of mpi4py.

All MPI calls are made by the thread that runs the loop, so MPI_THREAD_FUNNELED is enough.

Where MPI tolerates faults (Open MPI, `mpirun --with-ft ulfm`), a dead rank is told by `lost`, what
was on its way to or from it is dropped, and the job ends without MPI_Finalize and MPI_Abort: the
one can hang after a failure, the other hangs mpirun.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np

from mpipar.errors import UsageError
from mpipar.runtime import codec, serving
from mpipar.runtime.ending import end_job, flush_output, give_up, kill_ranks, leave
from mpipar.runtime.environment import calm_process, wants_fault_tolerance
from mpipar.runtime.interruption import leave_to_rank_0
from mpipar.runtime.pool import Pool, stop_workers
from mpipar.runtime.sharing import SharingTransport
from mpipar.runtime.transport import Backoff, UnsendableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mpipar.runtime.messages import Hello, Message, Rank

FRAME, BUFFER = 1, 2
PIECE = 1 << 30  # bytes; MPI counts elements in 32 bits
AT_ONCE = 256  # frames taken per turn
WAIT_FOR_FRAME = 1 << 16  # a frame up to this size is received at once, a longer one by and by
UNDER_WAY = 1e-4  # seconds of a pause while a transfer needs this process to go on,
UNDER_WAY_LIMIT = 2e-3  # and where many ranks share a core
LOOK_SECONDS = 0.05  # between two looks for dead ranks
SUSPICION_SECONDS = 10.0  # in which a rank that a transfer failed with must be found dead
LAST_WORD_SECONDS = 0.2  # for a worker's Bye to leave: MPI holds it, and is not finalised


@dataclass(slots=True)
class _Incoming:
    """A message of which parts may still be on their way."""

    frame: bytearray
    requests: list[MPI.Request]
    large: list[NDArray[np.uint8]] = field(default_factory=list)
    posted: bool = False  # whether the receives of `large` have been posted


class MpiTransport:
    """One rank's end of a communicator, of which it must be the only user."""

    def __init__(self, communicator: MPI.Intracomm, *, fault_tolerant: bool = False) -> None:
        communicator.Set_errhandler(MPI.ERRORS_RETURN)
        self.rank: Rank = communicator.rank
        self.size = communicator.size
        self._communicator = communicator
        self._outgoing: dict[Rank, deque[tuple[MPI.Request, Any, int]]] = {}
        self._incoming: dict[Rank, deque[_Incoming]] = {}
        self._backlog = 0
        self._backoff = Backoff()
        self._under_way = UNDER_WAY
        self._news = threading.Event()
        self._fault_tolerant = fault_tolerant
        self._dead: set[Rank] = set()
        self._lost: list[Rank] = []  # those of the dead that `lost` has not told yet
        self._suspects: dict[Rank, tuple[float, MPI.Exception]] = {}
        self._abandoned: list[tuple[MPI.Request, Any]] = []
        self._look_at = 0.0

    # Sending

    def send(self, rank: Rank, message: Message) -> None:
        if self._is_cut_off(rank):
            return
        try:
            frame, large = codec.encode(message)
        except Exception as error:  # whatever a __reduce__ of a program raises
            name = type(message).__name__
            raise UnsendableError(f"{name} for rank {rank} cannot be pickled: {error}") from error
        try:
            self._post(rank, frame, FRAME)
            for view in large:
                for start in range(0, len(view), PIECE):
                    self._post(rank, view[start : start + PIECE], BUFFER)
        except MPI.Exception as error:
            self._suspect(rank, error)

    def _post(self, rank: Rank, buffer: bytearray | memoryview, tag: int) -> None:
        request = self._communicator.Isend([buffer, MPI.BYTE], rank, tag)
        # The buffer is kept here because MPI reads it until the request is complete.
        self._outgoing.setdefault(rank, deque()).append((request, buffer, len(buffer)))
        self._backlog += len(buffer)

    def _move_outgoing(self) -> None:
        for rank, queue in list(self._outgoing.items()):
            try:
                while queue and queue[0][0].Test():
                    self._backlog -= queue.popleft()[2]
            except MPI.Exception as error:
                self._suspect(rank, error)
            if not queue:
                self._outgoing.pop(rank, None)

    def backlog(self) -> int:
        return self._backlog

    # Receiving

    def receive(self) -> list[tuple[Rank, Message]]:
        self._news.clear()
        self._move_outgoing()
        self._take_frames()
        arrived = [item for rank in list(self._incoming) for item in self._take(rank)]
        if self._fault_tolerant and time.monotonic() >= self._look_at:
            self._look_for_the_dead()
        return arrived

    def _take_frames(self) -> None:
        status = MPI.Status()
        for _ in range(AT_ONCE):
            try:
                matched = self._communicator.Improbe(MPI.ANY_SOURCE, FRAME, status)
            except MPI.Exception as error:
                self._excuse(error)
                return
            if matched is None:
                return
            source, frame = status.Get_source(), bytearray(status.Get_count(MPI.BYTE))
            try:
                self._take_frame(source, frame, matched)
            except MPI.Exception as error:
                self._suspect(source, error)

    def _take_frame(self, source: Rank, frame: bytearray, matched: MPI.Message) -> None:
        requests = []
        if len(frame) <= WAIT_FOR_FRAME and not self._fault_tolerant:
            matched.Recv([frame, MPI.BYTE])
        else:
            requests.append(matched.Irecv([frame, MPI.BYTE]))
        if self._is_cut_off(source):
            self._abandoned += [(request, frame) for request in requests]
        else:
            self._incoming.setdefault(source, deque()).append(_Incoming(frame, requests))

    def _take(self, rank: Rank) -> list[tuple[Rank, Message]]:
        """Return what has wholly arrived from a rank, in the order in which it was sent."""
        queue = self._incoming[rank]
        taken: list[tuple[Rank, Message]] = []
        try:
            for incoming in queue:
                # Buffers match receives in the order of posting, so in the order of their frames.
                if not incoming.posted and not self._post_buffers(rank, incoming):
                    break
            while queue and queue[0].posted and MPI.Request.Testall(queue[0].requests):
                incoming = queue.popleft()
                taken.append((rank, codec.decode(incoming.frame, incoming.large)))
        except MPI.Exception as error:
            self._suspect(rank, error)
        if not queue:
            self._incoming.pop(rank, None)
        return taken

    def _post_buffers(self, rank: Rank, incoming: _Incoming) -> bool:
        if not MPI.Request.Testall(incoming.requests):
            return False
        incoming.requests.clear()
        for size in codec.large_sizes(incoming.frame):
            array = np.empty(size, np.uint8)
            incoming.large.append(array)
            for start in range(0, size, PIECE):
                piece = array[start : start + PIECE]
                incoming.requests.append(self._communicator.Irecv([piece, MPI.BYTE], rank, BUFFER))
        incoming.posted = True
        return True

    # Losing

    def lost(self) -> list[Rank]:
        lost, self._lost = self._lost, []
        return lost

    def _is_cut_off(self, rank: Rank) -> bool:
        return rank in self._dead or rank in self._suspects

    def _look_for_the_dead(self) -> None:
        """Ask MPI who has failed; it tells nobody of its own accord."""
        now = time.monotonic()
        self._look_at = now + LOOK_SECONDS
        failed = self._communicator.Get_failed()
        if failed.size > len(self._dead):
            ranks = MPI.Group.Translate_ranks(failed, None, self._communicator.group)
            for rank in set(ranks) - self._dead:
                self._dead.add(rank)
                self._lost.append(rank)
                self._suspects.pop(rank, None)
                self._drop(rank)
            # Receives from any rank go on without it.
            self._communicator.Ack_failed()
        failed.Free()
        for until, error in self._suspects.values():
            if now > until:
                raise error
        self._abandoned = [item for item in self._abandoned if not _is_over(item[0])]

    def _excuse(self, error: MPI.Exception) -> None:
        """Raise an error unless it only says that some rank is dead."""
        failures = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING}
        if not self._fault_tolerant or error.Get_error_class() not in failures:
            raise error
        self._look_at = 0.0

    def _suspect(self, rank: Rank, error: MPI.Exception) -> None:
        """Break off with a rank after a failed transfer; that it is dead must turn out soon."""
        if not self._fault_tolerant:
            raise error
        if rank not in self._dead:
            self._suspects.setdefault(rank, (time.monotonic() + SUSPICION_SECONDS, error))
        self._drop(rank)
        self._look_at = 0.0

    def _drop(self, rank: Rank) -> None:
        """Drop what is on its way to or from a rank, but not the memory that MPI may still use."""
        outgoing = self._outgoing.pop(rank, deque())
        for request, buffer, size in outgoing:
            self._backlog -= size
            self._abandoned.append((request, buffer))
        outgoing.clear()
        incoming = self._incoming.pop(rank, deque())
        for message in incoming:
            self._abandoned += [(request, message) for request in message.requests]
        incoming.clear()

    # Waiting

    def pause(self, *, moved: bool, relaxed: bool = False) -> None:
        if moved:
            self._backoff.reset()
            return
        seconds = self._backoff.next(relaxed=relaxed)
        if self._outgoing or self._incoming:
            seconds = min(seconds, self._under_way)
        if seconds:
            self._news.wait(seconds)

    def wake(self) -> None:
        self._news.set()

    def crowd(self, crowding: float) -> None:
        self._backoff.crowd(crowding)
        self._under_way = min(UNDER_WAY_LIMIT, UNDER_WAY * max(1.0, crowding))


# The job


@dataclass(frozen=True)
class World:
    """What MPI says this process is."""

    rank: int
    size: int
    vendor: str  # such as "Open MPI 5.0.11"
    fault_tolerant: bool = False  # whether the job goes on when a rank dies


class _Job:
    """This process's part in the job: made once, by all ranks together."""

    def __init__(self) -> None:
        self.tolerant = wants_fault_tolerance() and _vendor()[0] == "Open MPI"
        # A communicator of our own is made by all ranks together, of which one may be dead by now.
        communicator = MPI.COMM_WORLD if self.tolerant else MPI.COMM_WORLD.Dup()
        plain = MpiTransport(communicator, fault_tolerant=self.tolerant)
        self.transport = SharingTransport(plain)
        self.parted = self.transport.rank != 0 or self.transport.size == 1
        self.silent: list[Rank] = []
        self.crew: Mapping[Rank, Hello] = {}
        atexit.register(self.part, 1)

    def part(self, code: int) -> None:
        """On rank 0: see the workers off, or end them by force with this exit code."""
        if not self.parted:
            self.note(stop_workers(self.transport, range(1, self.transport.size)))
        if self.silent:
            silent, self.silent = self.silent, []
            ranks = ", ".join(map(str, silent))
            sys.stderr.write(f"mpipar: ranks {ranks} do not answer; the job is ended by force\n")
            flush_output()
            if self.tolerant:
                kill_ranks(silent, self.crew)
            else:
                MPI.COMM_WORLD.Abort(code)

    def note(self, silent: list[Rank]) -> None:
        """The workers have been told to stop; these did not answer."""
        self.parted, self.silent = True, silent


@cache
def _job() -> _Job:
    return _Job()


def _vendor() -> tuple[str, str]:
    name, version = MPI.get_vendor()
    return name, ".".join(map(str, version))


def _is_over(request: MPI.Request) -> bool:
    """Whether MPI is done with a request, well or not."""
    try:
        return request.Test()
    except MPI.Exception:
        return True


def world() -> World:
    """Return what this process is. Collective: every rank calls it first."""
    job = _job()
    return World(
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
    departure = serving.serve(job.transport)
    if job.tolerant:
        if departure.code == serving.ORPHAN_EXIT:
            end_job()  # mpirun tolerates the loss of rank 0 too, and would end with code 0
        if departure.code:
            give_up()
        time.sleep(LAST_WORD_SECONDS)
        leave(0)
    if not departure.threads_ended:
        # A thread inside a task would meet an interpreter that is being taken down.
        MPI.Finalize()
        leave(departure.code)
    return departure.code


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
