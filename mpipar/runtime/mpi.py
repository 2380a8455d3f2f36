"""The transport over MPI, and how a job of several ranks begins and ends. The one user of mpi4py.

All MPI calls are made by the thread that runs the loop, so MPI_THREAD_FUNNELED is enough.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

import numpy as np

from mpipar.errors import UsageError
from mpipar.runtime import codec, serving
from mpipar.runtime.environment import calm_process
from mpipar.runtime.pool import Pool, stop_workers
from mpipar.runtime.transport import Backoff, UnsendableError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.runtime.messages import Message, Rank

FRAME, BUFFER = 1, 2
PIECE = 1 << 30  # bytes; MPI counts elements in 32 bits
AT_ONCE = 256  # frames taken per turn
WAIT_FOR_FRAME = 1 << 16  # a frame up to this size is received at once, a longer one by and by
UNDER_WAY = 1e-4  # seconds of a pause while a transfer needs this process to go on,
UNDER_WAY_LIMIT = 2e-3  # and where many ranks share a core


@dataclass(slots=True)
class _Incoming:
    """A message of which parts may still be on their way."""

    frame: bytearray
    requests: list[MPI.Request]
    large: list[NDArray[np.uint8]] = field(default_factory=list)
    posted: bool = False  # whether the receives of `large` have been posted


class MpiTransport:
    """One rank's end of a communicator, of which it must be the only user."""

    def __init__(self, communicator: MPI.Intracomm) -> None:
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

    # Sending

    def send(self, rank: Rank, message: Message) -> None:
        try:
            frame, large = codec.encode(message)
        except Exception as error:  # whatever a __reduce__ of a program raises
            name = type(message).__name__
            raise UnsendableError(f"{name} for rank {rank} cannot be pickled: {error}") from error
        self._post(rank, frame, FRAME)
        for view in large:
            for start in range(0, len(view), PIECE):
                self._post(rank, view[start : start + PIECE], BUFFER)

    def _post(self, rank: Rank, buffer: bytearray | memoryview, tag: int) -> None:
        request = self._communicator.Isend([buffer, MPI.BYTE], rank, tag)
        # The buffer is kept here because MPI reads it until the request is complete.
        self._outgoing.setdefault(rank, deque()).append((request, buffer, len(buffer)))
        self._backlog += len(buffer)

    def _move_outgoing(self) -> None:
        for rank, queue in list(self._outgoing.items()):
            while queue and queue[0][0].Test():
                self._backlog -= queue.popleft()[2]
            if not queue:
                del self._outgoing[rank]

    def backlog(self) -> int:
        return self._backlog

    # Receiving

    def receive(self) -> list[tuple[Rank, Message]]:
        self._news.clear()
        self._move_outgoing()
        status = MPI.Status()
        for _ in range(AT_ONCE):
            matched = self._communicator.Improbe(MPI.ANY_SOURCE, FRAME, status)
            if matched is None:
                break
            frame = bytearray(status.Get_count(MPI.BYTE))
            requests = []
            if len(frame) <= WAIT_FOR_FRAME:
                matched.Recv([frame, MPI.BYTE])
            else:
                requests.append(matched.Irecv([frame, MPI.BYTE]))
            arriving = self._incoming.setdefault(status.Get_source(), deque())
            arriving.append(_Incoming(frame, requests))
        return [item for rank in list(self._incoming) for item in self._take(rank)]

    def _take(self, rank: Rank) -> list[tuple[Rank, Message]]:
        """Return what has wholly arrived from a rank, in the order in which it was sent."""
        queue = self._incoming[rank]
        for incoming in queue:
            # Buffers match receives in the order of posting, so in the order of their frames.
            if not incoming.posted and not self._post_buffers(rank, incoming):
                break
        taken: list[tuple[Rank, Message]] = []
        while queue and queue[0].posted and MPI.Request.Testall(queue[0].requests):
            incoming = queue.popleft()
            taken.append((rank, codec.decode(incoming.frame, incoming.large)))
        if not queue:
            del self._incoming[rank]
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


class _Job:
    """This process's part in the job: made once, by all ranks together."""

    def __init__(self) -> None:
        self.transport = MpiTransport(MPI.COMM_WORLD.Dup())
        self.parted = self.transport.rank != 0 or self.transport.size == 1
        self.silent: list[Rank] = []
        atexit.register(self.part, 1)

    def part(self, code: int) -> None:
        """On rank 0: see the workers off, or end them by force with this exit code."""
        if not self.parted:
            self.note(stop_workers(self.transport, range(1, self.transport.size)))
        if self.silent:
            silent, self.silent = self.silent, []
            ranks = ", ".join(map(str, silent))
            sys.stderr.write(f"mpipar: ranks {ranks} do not answer; the job is ended by force\n")
            _flush_output()
            MPI.COMM_WORLD.Abort(code)

    def note(self, silent: list[Rank]) -> None:
        """The workers have been told to stop; these did not answer."""
        self.parted, self.silent = True, silent


@cache
def _job() -> _Job:
    return _Job()


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def world() -> World:
    """Return what this process is. Collective: every rank calls it first."""
    transport = _job().transport
    name, version = MPI.get_vendor()
    return World(transport.rank, transport.size, f"{name} {'.'.join(map(str, version))}")


def open_pool(*, threads: int = 1, cache_bytes: int = 1 << 30) -> Pool:
    """Open the pool of all other ranks. On rank 0 of a world of two or more."""
    here = world()
    if here.rank != 0 or here.size == 1:
        raise UsageError(f"rank {here.rank} of {here.size} cannot open a pool over MPI")
    calm_process()
    job = _job()
    return Pool(
        job.transport,
        threads=threads,
        cache_bytes=cache_bytes,
        vendor=here.vendor,
        farewell=job.note,
    )


def serve() -> int:
    """Work for rank 0 until it says stop; return the exit code. On every other rank."""
    calm_process()
    # ^C goes to every rank; rank 0 alone acts on it, and stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    departure = serving.serve(_job().transport)
    if not departure.threads_ended:
        # A thread inside a task would meet an interpreter that is being taken down.
        MPI.Finalize()
        _flush_output()
        os._exit(departure.code)
    return departure.code


def finish(code: int) -> None:
    """End the job from rank 0, whatever state it is in; does nothing on other ranks.

    Call it last, also after an error before the pool was opened. Returns if all workers have left
    in good order, so that the process can exit with `code`; else ends them by force with it.
    """
    _job().part(code)
