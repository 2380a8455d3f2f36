"""IMP.parallel's interface: a manager, workers, and contexts in which tasks are run.

m = Manager()
m.add_worker(LocalWorker())
c = m.get_context(setup)          # setup() runs once on each worker, and returns a tuple
c.add_task(task)                  # task(*setup()) runs on one of them
for result in c.get_results_unordered(): ...
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.errors import MpiparError, counted
from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.answers import GivenUp, Raised, SetupRaised, WorkersGone
from mpipar.interfaces.calls.feeds import SubmittedCalls
from mpipar.interfaces.imp_parallel.imp_errors import (
    Error,
    NetworkError,
    NoMoreWorkersError,
    RemoteError,
)
from mpipar.interfaces.imp_parallel.worker_groups import ManagerSettings, MpiRanks, StartedWorkers
from mpipar.interfaces.imp_parallel.workers import (
    LocalWorker,
    SGEPEWorkerArray,
    SGEQsubWorkerArray,
    Worker,
    WorkerArray,
    _SGEPEWorker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

    from mpipar.interfaces.calls.answers import CallFailure
    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.imp_parallel.worker_groups import WorkerGroup

__all__ = [
    "Context",
    "Error",
    "LocalSlave",
    "LocalWorker",
    "Manager",
    "NetworkError",
    "NoMoreSlavesError",
    "NoMoreWorkersError",
    "RemoteError",
    "SGEPESlaveArray",
    "SGEPEWorkerArray",
    "SGEQsubSlaveArray",
    "SGEQsubWorkerArray",
    "Slave",
    "SlaveArray",
    "Worker",
    "WorkerArray",
    "_SGEPEWorker",
]

# The names that IMP used until 2020
Slave = Worker
SlaveArray = WorkerArray
LocalSlave = LocalWorker
SGEQsubSlaveArray = SGEQsubWorkerArray
SGEPESlaveArray = SGEPEWorkerArray
NoMoreSlavesError = NoMoreWorkersError

WATCH_SECONDS = 0.1
ImpTask: TypeAlias = "Callable[..., Any]"


class Manager:
    """Starts workers, and makes contexts whose tasks they run. May be used as a context manager."""

    connect_timeout: float = 7200.0
    """Seconds in which a worker must connect after it was started."""
    heartbeat_timeout: float = 7200.0
    """Seconds of silence after which a worker counts as dead, and its task is run elsewhere (at
    least 10, at most MPIPAR_PATIENCE: a worker sends something every second). Some worker must also
    connect within that time, unless one is seen to be starting on this machine."""

    def __init__(
        self,
        python: str | None = None,
        host: str | None = None,
        output: str = "worker%d.output",
    ) -> None:
        """Make a manager without workers.

        python  shell command that starts the interpreter of the workers; default: this one's
        host    name or address of this machine for workers; "localhost": only workers here connect
        output  the file into which worker number %d writes what it prints
        """
        try:
            distinct = output % 0 != output % 1
        except (TypeError, ValueError):
            distinct = False
        if not distinct:
            raise Error(f"Manager: output={output!r} must contain %d for the worker's number")
        self._python = python
        self._host = host
        self._output = output
        self._all_workers: list[Worker] = []
        self._worker_arrays: list[WorkerArray] = []
        self._added = False  # whether workers were added since the last start
        self._group: WorkerGroup | None = None
        self._lock = threading.Lock()
        self._finalizer: weakref.finalize[[], Manager] | None = None  # closes the group

    def add_worker(self, worker: Worker | WorkerArray) -> None:
        """Add a worker, or an array of them. They start with the next iteration over results."""
        if isinstance(worker, WorkerArray):
            self._worker_arrays.append(worker)
        else:
            self._all_workers.append(worker)
        self._added = True

    add_slave = add_worker

    def get_context(self, startup: Callable[[], Any] | None = None) -> Context:
        """Return a context for tasks.

        startup  called once on each worker before its first task of the context; its return
                 values, a tuple, are the arguments of every task there
        """
        return Context(self, startup)

    def close(self) -> None:
        """Let all workers go. The end of the process does so, too."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._group = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start_workers(self) -> WorkerGroup:
        """Start the workers that are not started yet; return the group of all. Raises Error."""
        with self._lock:
            if self._group is not None and not self._added:
                return self._group
            self._added = False
            arrays, self._worker_arrays = self._worker_arrays, []
            for array in arrays:
                self._all_workers.extend(array._get_workers())
            numbered = enumerate(self._all_workers)
            new = [(number, worker) for number, worker in numbered if worker._ready_to_start()]
            if self._group is None and not new:
                raise NoMoreWorkersError(
                    "there are no workers to run tasks; add some: add_worker(LocalWorker())"
                )
            if self._group is None or (self._group.is_over and new):
                self._group = self._new_group()
            if new:
                self._group.start(new, arrays)
            return self._group

    def _new_group(self) -> WorkerGroup:
        settings = ManagerSettings(
            self._python, self._host, self._output, self.connect_timeout, self.heartbeat_timeout
        )
        if self._finalizer is not None:
            self._finalizer()
        in_mpi_job = registry.resolve(workers=len(self._all_workers)).startswith("mpi")
        group: WorkerGroup = MpiRanks(settings) if in_mpi_job else StartedWorkers(settings)
        self._finalizer = weakref.finalize(self, group.close)
        return group


class Context:
    """Tasks that share a setup."""

    def __init__(self, manager: Manager, startup: Callable[[], Any] | None = None) -> None:
        """Use `Manager.get_context` instead."""
        self._manager = manager
        self._startup = startup
        self._tasks: deque[ImpTask] = deque()  # that are not submitted
        self._submitted: dict[Future[Any], ImpTask] = {}  # until their results are taken
        self._done: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._iterators = 0
        self._lock = threading.RLock()
        self._group: WorkerGroup | None = None  # to which tasks are submitted, by these two
        self._queue: CallQueue | None = None
        self._feed = SubmittedCalls(_exception_of)

    def add_task(self, task: ImpTask) -> None:
        """Add a task: a picklable callable, called with what the setup returned.

        While results are being iterated over it is run at once, else with the next iteration.
        """
        with self._lock:
            self._tasks.append(task)
            if self._iterators:
                self._submit()

    def get_results_unordered(self) -> Iterator[Any]:
        """Run all tasks; yield what each returns, in the order in which they end.

        Raises RemoteError if a task raised: the other tasks are not lost, but go on with the next
        iteration. Raises NoMoreWorkersError, NetworkError if no worker is left, or none connected.
        """
        with self._iterating():
            while True:
                with self._lock:
                    if not (self._tasks or self._submitted):
                        return
                group = self._manager._start_workers()  # may take long, so without the lock
                with self._lock:
                    self._submit_to(group)
                future = self._next_done(group)
                if future is not None:
                    yield future.result()

    @contextmanager
    def _iterating(self) -> Iterator[None]:
        """Count an iteration. At the end of the last one, tasks that no worker has got stay."""
        with self._lock:
            self._iterators += 1
        try:
            yield
        finally:
            with self._lock:
                self._iterators -= 1
                if not self._iterators:
                    self._take_back()

    def _submit_to(self, group: WorkerGroup) -> None:
        """Submit all tasks to a group of workers. Raises Error if it has no worker left."""
        if group.is_over and not self._submitted:
            raise group.error()
        if self._queue is None or group is not self._group:
            self._group = group
            # In a process of its own a task can crash, or keep the interpreter's lock for hours, as
            # C++ code may, and its worker still answers.
            self._queue = group.router.open_queue(
                self._startup, passes_setup=True, limit=group.limit, isolate=True
            )
            weakref.finalize(self, group.router.close_queue, self._queue)
            self._feed = SubmittedCalls(_exception_of)
        self._queue.limit = group.limit
        if not group.is_over:
            self._submit()

    def _submit(self) -> None:
        """Submit all tasks to the group; they stay if its last worker was lost just now."""
        if self._group is None or self._queue is None or not self._tasks:
            return
        while self._tasks:
            task, future = self._tasks.popleft(), Future[Any]()
            self._submitted[future] = task
            future.add_done_callback(partial(_put_unless_cancelled, self._done))
            self._feed.append(future, (task, (), {}))
        try:
            self._group.router.offer(self._queue, self._feed)
        except (MpiparError, RuntimeError):  # seen when the iteration goes on
            self._take_back()

    def _take_back(self) -> None:
        """Cancel the tasks that no worker has got, and keep them."""
        for future, task in list(self._submitted.items()):
            if future.cancel():
                del self._submitted[future]
                self._tasks.append(task)

    def _next_done(self, group: WorkerGroup) -> Future[Any] | None:
        """Wait a little for a task to end; keep the task if its workers are gone."""
        try:
            future = self._done.get(timeout=WATCH_SECONDS)
        except queue.Empty:
            group.watch()
            return None
        with self._lock:
            task = self._submitted.pop(future)
            if isinstance(future.exception(), NoMoreWorkersError):
                self._tasks.append(task)
                return None
        return future


def _put_unless_cancelled(done: queue.SimpleQueue[Future[Any]], future: Future[Any]) -> None:
    if not future.cancelled():
        done.put(future)


def _exception_of(failure: CallFailure) -> Error:
    """Return what the future of a task raises."""
    match failure:
        case Raised(exception, traceback, where) | SetupRaised(exception, traceback, where):
            return RemoteError(exception, traceback, where)
        case GivenUp(task):
            error = Error(f"a task is set aside: {task.kind}: {task.text}")
            return RemoteError(
                error, task.traceback, f"the last of {counted(len(task.ranks), 'try', 'tries')}"
            )
        case WorkersGone(error):
            return NoMoreWorkersError(str(error))
