"""The workers of a manager as a group: commands that it has started, or the ranks of the job.

In any process: each worker is a command (`worker_main.py`), and gets tasks once it has connected.

    Manager --start--> StartedWorkers --_start--> the worker's command
    CallRouter -- Pool -- HubTransport <--connects-- the worker

In an MPI job: the other ranks get the tasks; the workers say how many ranks to use.
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

from mpipar.errors import MpiparError, counted
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

__all__ = ["ManagerSettings", "MpiRanks", "StartedWorkers", "WorkerGroup"]

SHORTEST_SILENCE = 10.0  # seconds; workers send something once a second, unless overloaded
UNWATCHED_SECONDS: Final = 2.0  # after so long without `watch`, silence proves nothing
NOTE_SECONDS: Final = 30.0  # until the user is told that no worker has connected
ENDING_SECONDS: Final = 2.0  # for workers that were told to stop, before they are killed
NAMED: Final = 5  # workers in a message


@dataclass(frozen=True)
class ManagerSettings:
    """The arguments and time limits of a manager."""

    python: str | None
    host: str | None
    output: str
    connect_timeout: float
    heartbeat_timeout: float


class WorkerGroup(Protocol):
    """The workers that run the tasks of a manager."""

    @property
    def router(self) -> CallRouter: ...

    @property
    def limit(self) -> int | None:
        """How many tasks of a context may be under way; None: as many as there are workers."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether no worker is left, and none can come."""
        ...

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        """Start workers, each with its number, and arrays of workers."""
        ...

    def watch(self) -> None:
        """Find out which workers are lost. Called often while a result is awaited."""
        ...

    def error(self) -> Error:
        """Return the error that says why no worker is left, or none has connected."""
        ...

    def close(self) -> None:
        """Let all workers go."""
        ...


class MpiRanks:
    """The ranks of this MPI job."""

    def __init__(self, settings: ManagerSettings) -> None:
        self.router = registry.open_router()
        self._settings = settings
        self.limit: int | None = 0

    @property
    def is_over(self) -> bool:
        return _has_failed(self.router)

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        for number, worker in workers:
            worker._state = WorkerState.CONNECTED
            with suppress(OSError):  # nothing depends on that file
                Path(self._settings.output % number).write_text(
                    f"{worker!r} stands for one of the {self.router.workers} worker ranks of the "
                    "MPI job; what tasks print is in the output of that job\n"
                )
            if self.limit is not None:
                self.limit += 1
        if any(isinstance(array, SGEPEWorkerArray) for array in arrays):
            self.limit = None  # the whole allocation
        if self.limit is not None and self.limit < self.router.workers:
            sys.stderr.write(
                f"mpipar: the manager has {counted(self.limit, 'worker')}, so no more of the "
                f"{self.router.workers} of this MPI job work at once\n"
            )

    def watch(self) -> None:
        """The runtime watches the ranks."""

    def error(self) -> Error:
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
        # A worker sends something every second, whatever its task does.
        asked = min(settings.heartbeat_timeout, environment.patience())
        self._patience = max(SHORTEST_SILENCE, asked)
        self._pool = tcp_cluster.open_pool(self._hub, patience=self._patience)
        self.router = CallRouter(self._pool, Policy())
        self._key_files: dict[bool, str] = {}  # for workers on this machine (True), and on others
        self._ports: dict[bool, int] = {}  # likewise
        self._workers: dict[Rank, tuple[int, Worker]] = {}
        self._arrays: list[WorkerArray] = []
        self._reasons: list[str] = []  # why workers are dead
        self._timed_out = False  # whether a worker did not connect, or was silent for too long
        self._began = self._watched = time.monotonic()
        self._note_after = NOTE_SECONDS

    @property
    def is_over(self) -> bool:
        return _has_failed(self.router) or self._hub.is_deserted

    # Starting

    def start(self, workers: Sequence[tuple[int, Worker]], arrays: Sequence[WorkerArray]) -> None:
        self._arrays += arrays
        try:
            for number, worker in workers:
                self._start_one(number, worker)
            for array in arrays:
                array._start(self._command(local=False))
        except BaseException:
            for rank, (number, worker) in self._workers.items():
                if (number, worker) in workers:
                    self._hub.declare_lost(rank)
                    worker._state = WorkerState.DEAD
            raise

    def _start_one(self, number: int, worker: Worker) -> None:
        local = isinstance(worker, LocalWorker) and self._settings.python is None
        letters = "".join(secrets.choice(string.ascii_uppercase) for _ in range(8))
        unique_id = f"{number}:{letters}"
        self._workers[self._hub.expect(unique_id)] = number, worker
        worker._start(self._command(local=local), unique_id, self._settings.output % number)

    def _command(self, *, local: bool) -> str:
        """Return the command of a worker, but for its id; `local`: the worker is on this machine.

        The first such command also listens for the workers, and writes the key for them.
        """
        given, python = self._settings.host, self._settings.python
        if local not in self._ports:
            self._ports[local] = self._listen("127.0.0.1" if local and not given else given or "")
            self._key_files[local] = self._write_key(None if local else str(Path.cwd()))
        host = given or ("127.0.0.1" if local else _primary_address())
        interpreter = shlex.quote(sys.executable) if python is None else python
        return (
            f"{interpreter} -m mpipar.interfaces.imp_parallel.worker_main {shlex.quote(host)} "
            f"{self._ports[local]} {shlex.quote(self._key_files[local])}"
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
        """Write the key into a file that only this user can read; return its name."""
        try:
            handle, name = tempfile.mkstemp(".key", ".mpipar-imp-", folder)
        except OSError as error:
            raise Error(f"cannot write a file for the key of the workers: {error}") from error
        with os.fdopen(handle, "wb") as stream:
            stream.write(self._key)
        return name

    # Watching

    def watch(self) -> None:
        self._update_states()
        self._tell_if_none_connected()

    def _update_states(self) -> None:
        """Find out which workers have connected, and which are lost."""
        now = time.monotonic()
        unwatched, self._watched = now - self._watched > UNWATCHED_SECONDS, now
        present, absent = self._hub.connected, self._hub.expected
        for rank, (number, worker) in list(self._workers.items()):
            if worker._state is WorkerState.DEAD:
                continue
            if rank in self._hub.last_heard:
                worker.last_contact_time = self._hub.last_heard[rank]
                worker._state = WorkerState.CONNECTED
            if rank in absent:
                self._check_absent(rank, worker, number, unwatched=unwatched)
            elif rank not in present:
                self._mark_dead(worker, number, self._why_lost(worker))

    def _check_absent(self, rank: Rank, worker: Worker, number: int, *, unwatched: bool) -> None:
        """Give up a worker that has not connected if it has ended, or takes too long."""
        ended = worker._why_ended()
        bound = self._settings.connect_timeout
        if not (self._hub.last_heard or worker._is_running()):  # no worker has connected so far
            bound = min(bound, self._settings.heartbeat_timeout)
        if ended:
            reason = f"{ended} before it had connected{worker._end_of_output()}"
        elif worker.get_contact_timed_out(bound) and not unwatched:
            reason = f"has not connected within {bound:g} s{worker._end_of_output()}"
        else:
            return
        self._timed_out = True
        self._hub.declare_lost(rank)
        self._mark_dead(worker, number, reason)

    def _why_lost(self, worker: Worker) -> str:
        ended = worker._why_ended()
        if ended:
            return f"{ended}{worker._end_of_output()}"
        if worker.get_contact_timed_out(self._patience):
            self._timed_out = True
            return f"was not heard of for {self._patience:g} s"
        return "its connection broke"

    def _mark_dead(self, worker: Worker, number: int, reason: str) -> None:
        worker._state = WorkerState.DEAD
        self._reasons.append(f"worker {number} {worker!r}: {reason}")

    def _tell_if_none_connected(self) -> None:
        """Tell the user, at ever longer intervals, that no worker has connected."""
        seconds = time.monotonic() - self._began
        if self._hub.connected or seconds < self._note_after:
            return
        self._note_after *= 4
        waiting = [f"{number} {worker!r}" for number, worker in self._workers.values()]
        sys.stderr.write(
            f"mpipar: no worker has connected for {seconds:.0f} s; {len(waiting)} were "
            f"started ({', '.join(waiting[:NAMED])}); see their output "
            f"({self._settings.output % 0}) and the queue\n"
        )

    def error(self) -> Error:
        self._update_states()
        reasons = self._reasons[-NAMED:]
        if len(self._reasons) > NAMED:
            reasons.insert(0, f"of {len(self._reasons)}, the last")
        text = "; ".join(reasons) or "all workers were lost"
        if self._hub.rejected:
            text += f"; {self._hub.rejected} connections of strangers were refused"
        if not self._hub.last_heard:
            return NetworkError(f"no worker has started: {text}")
        if self._timed_out:
            return NetworkError(f"no worker is left that can be heard: {text}")
        return NoMoreWorkersError(f"ran out of workers to run tasks: {text}")

    # The end

    def close(self) -> None:
        self._update_states()
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


def _has_failed(router: CallRouter) -> bool:
    try:
        router.check()
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
