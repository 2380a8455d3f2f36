"""Where the tasks of a manager run: on workers that it has started, or on the ranks of the job.

    Manager --start--> Fleet --_start--> worker's command ... connects back --> Hub -- Pool -- Crew

Any process: each worker is a command (`imp_workers.py`), and joins the crew when it connects.
A rank of an MPI job: the other ranks are the crew, and the workers say how many of them to use.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import string
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from mpipar.errors import MpiparError
from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.router import CallRouter
from mpipar.interfaces.imp_parallel.imp_errors import Error, NetworkError, NoMoreWorkersError
from mpipar.interfaces.imp_parallel.workers import (
    LocalWorker,
    SGEPEWorkerArray,
    Worker,
    WorkerState,
)
from mpipar.runtime.clusters import tcp_cluster
from mpipar.runtime.process import environment
from mpipar.runtime.stage import Policy
from mpipar.runtime.transports import tcp_handshake
from mpipar.runtime.transports.tcp_transport import HubTransport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.interfaces.imp_parallel.workers import WorkerArray
    from mpipar.runtime.machines.messages import Rank

__all__ = ["ManagerSettings", "MpiRanks", "StartedWorkers", "TaskSite"]

SHORTEST_SILENCE = 10.0  # workers say something once a second, if their host is not overloaded
UNWATCHED: Final = 2.0  # seconds without a look at the workers, after which silence proves nothing
NOTE_SECONDS: Final = 30.0  # until the user is told that no worker has connected
ENDING_SECONDS: Final = 2.0  # for workers that were told to stop, before they are killed
NAMED: Final = 5  # workers in a message


@dataclass(frozen=True)
class ManagerSettings:
    """How a manager was made."""

    python: str | None
    host: str | None
    output: str
    connect_timeout: float
    heartbeat_timeout: float


class TaskSite(Protocol):
    """Where tasks run."""

    @property
    def crew(self) -> CallRouter: ...

    @property
    def limit(self) -> int | None:
        """How many tasks of a context may be under way; None: as many as there are workers."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether no worker is left, and none can come."""
        ...

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        """Put workers, each with its number, and arrays of them to work."""
        ...

    def watch(self) -> None:
        """Look after the workers. Called often while a result is awaited."""
        ...

    def trouble(self) -> Error:
        """Say why there are no workers (any more)."""
        ...

    def close(self) -> None:
        """Let all workers go."""
        ...


class MpiRanks:
    """The ranks of this MPI job."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.crew = registry.crew()
        self._settings = settings
        self._used: int | None = 0

    @property
    def limit(self) -> int | None:
        return self._used

    @property
    def is_over(self) -> bool:
        return _has_failed(self.crew)

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        for number, worker in workers:
            worker._state = WorkerState.CONNECTED
            with suppress(OSError):  # it is only a courtesy
                Path(self._settings.output % number).write_text(
                    f"{worker!r} stands for one of the {self.crew.workers} worker ranks of the MPI "
                    "job; what tasks print is in the output of that job\n"
                )
            if self._used is not None:
                self._used += 1
        if any(isinstance(array, SGEPEWorkerArray) for array in arrays):
            self._used = None  # the whole allocation
        if self._used is not None and self._used < self.crew.workers:
            sys.stderr.write(
                f"mpipar: {self._used} workers were added to the manager, so no more of the "
                f"{self.crew.workers} of this MPI job work at once\n"
            )

    def watch(self) -> None:
        """The runtime looks after ranks."""

    def trouble(self) -> Error:
        return NoMoreWorkersError("ran out of workers to run tasks: no worker rank is left")

    def close(self) -> None:
        """The ranks belong to the process, not to a manager."""


class StartedWorkers:
    """Workers that were started by commands."""

    limit = None

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._key = tcp_handshake.new_key()
        self._hub = HubTransport(self._key)
        # A worker says something every second, whatever its task does.
        asked = min(settings.heartbeat_timeout, environment.patience())
        self._patience = max(SHORTEST_SILENCE, asked)
        self._pool = tcp_cluster.open_pool(self._hub, patience=self._patience)
        self.crew = CallRouter(self._pool, Policy())
        self._key_files: dict[bool, str] = {}
        self._ports: dict[bool, int] = {}
        self._workers: dict[Rank, tuple[int, Worker]] = {}
        self._arrays: list[WorkerArray] = []
        self._reasons: list[str] = []
        self._missed = False  # whether a worker did not connect, or was silent for too long
        self._began = self._looked = time.monotonic()
        self._note_after = NOTE_SECONDS

    @property
    def is_over(self) -> bool:
        return _has_failed(self.crew) or self._hub.is_deserted

    # Starting

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        self._arrays += arrays
        try:
            for number, worker in workers:
                self._start_one(number, worker)
            for array in arrays:
                array._start(self._command(near=False))
        except BaseException:
            for rank, (number, worker) in self._workers.items():
                if (number, worker) in workers:
                    self._hub.give_up(rank)
                    worker._state = WorkerState.DEAD
            raise

    def _start_one(self, number: int, worker: Worker) -> None:
        near = isinstance(worker, LocalWorker) and self._settings.python is None
        letters = "".join(secrets.choice(string.ascii_uppercase) for _ in range(8))
        unique_id = f"{number}:{letters}"
        self._workers[self._hub.expect(unique_id)] = number, worker
        worker._start(self._command(near=near), unique_id, self._settings.output % number)

    def _command(self, *, near: bool) -> str:
        """Return what starts a worker, but for its id; `near`: on this machine for sure."""
        given, python = self._settings.host, self._settings.python
        if near not in self._ports:
            self._ports[near] = self._listen("127.0.0.1" if near and not given else given or "")
            self._key_files[near] = self._write_key(None if near else str(Path.cwd()))
        host = given or ("127.0.0.1" if near else _primary_address())
        interpreter = shlex.quote(sys.executable) if python is None else python
        return (
            f"{interpreter} -m mpipar.interfaces.imp_parallel.worker_main {shlex.quote(host)} "
            f"{self._ports[near]} {shlex.quote(self._key_files[near])}"
        )

    def _listen(self, host: str) -> int:
        try:
            return self._hub.listen(host)
        except OSError as error:
            raise NetworkError(
                f"cannot listen for workers on {host or 'this machine'}: {error}; "
                "Manager(host=...) must be a name or address of this machine"
            ) from error

    def _write_key(self, folder: str | None) -> str:
        """Write the key where workers can read it, and nobody else."""
        try:
            handle, name = tempfile.mkstemp(".key", ".mpipar-imp-", folder)
        except OSError as error:
            raise Error(f"cannot write a file for the key of the workers: {error}") from error
        with os.fdopen(handle, "wb") as stream:
            stream.write(self._key)
        return name

    # Watching

    def watch(self) -> None:
        self._look()
        self._note()

    def _look(self) -> None:
        """Find out which workers have come, and which are lost."""
        now = time.monotonic()
        rested, self._looked = now - self._looked > UNWATCHED, now
        present, absent = self._hub.present, self._hub.absent
        for rank, (number, worker) in list(self._workers.items()):
            if worker._state is WorkerState.DEAD:
                continue
            if rank in self._hub.heard:
                worker.last_contact_time = self._hub.heard[rank]
                worker._state = WorkerState.CONNECTED
            if rank in absent:
                self._watch_absent(rank, worker, number, rested=rested)
            elif rank not in present:
                self._bury(worker, number, self._why_lost(worker))

    def _watch_absent(self, rank: Rank, worker: Worker, number: int, *, rested: bool) -> None:
        ended = worker._why_ended()
        bound = self._settings.connect_timeout
        if not (self._hub.heard or worker._is_running()):  # nobody has come so far
            bound = min(bound, self._settings.heartbeat_timeout)
        if ended:
            reason = f"{ended} before it had connected{worker._last_words()}"
        elif worker.get_contact_timed_out(bound) and not rested:
            reason = f"has not connected within {bound:g} s{worker._last_words()}"
        else:
            return
        self._missed = True
        self._hub.give_up(rank)
        self._bury(worker, number, reason)

    def _why_lost(self, worker: Worker) -> str:
        ended = worker._why_ended()
        if ended:
            return f"{ended}{worker._last_words()}"
        if worker.get_contact_timed_out(self._patience):
            self._missed = True
            return f"was not heard of for {self._patience:g} s"
        return "its connection broke"

    def _bury(self, worker: Worker, number: int, reason: str) -> None:
        worker._state = WorkerState.DEAD
        self._reasons.append(f"worker {number} {worker!r}: {reason}")

    def _note(self) -> None:
        """Tell the user once in a while that nothing goes on."""
        seconds = time.monotonic() - self._began
        if self._hub.present or seconds < self._note_after:
            return
        self._note_after *= 4
        waiting = [f"{number} {worker!r}" for number, worker in self._workers.values()]
        sys.stderr.write(
            f"mpipar: no worker has connected for {seconds:.0f} s; {len(waiting)} were "
            f"started ({', '.join(waiting[:NAMED])}); see their output "
            f"({self._settings.output % 0}) and the queue\n"
        )

    def trouble(self) -> Error:
        self._look()
        reasons = self._reasons[-NAMED:]
        if len(self._reasons) > NAMED:
            reasons.insert(0, f"of {len(self._reasons)}, the last")
        told = "; ".join(reasons) or "all workers were lost"
        if self._hub.turned_away:
            told += f"; {self._hub.turned_away} connections of strangers were refused"
        if not self._hub.heard:
            return NetworkError(f"no worker has started: {told}")
        if self._missed:
            return NetworkError(f"no worker is left that can be heard: {told}")
        return NoMoreWorkersError(f"ran out of workers to run tasks: {told}")

    # The end

    def close(self) -> None:
        self._look()
        self._pool.close()
        for array in self._arrays:
            array._stop()
        until = time.monotonic() + ENDING_SECONDS
        for _, worker in self._workers.values():
            was_told = worker._state is WorkerState.CONNECTED
            worker._stop(max(0.0, until - time.monotonic()) if was_told else 0.0)
            worker._state = WorkerState.DEAD
        for name in self._key_files.values():
            with suppress(OSError):
                Path(name).unlink()


def _has_failed(crew: CallRouter) -> bool:
    try:
        crew.check()
    except (MpiparError, RuntimeError):
        return True
    return False


def _primary_address() -> str:
    """Return the address of this machine that others are most likely to reach."""
    with suppress(OSError):
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            return address
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing, but chooses an interface
        return str(probe.getsockname()[0])
    return "127.0.0.1"
