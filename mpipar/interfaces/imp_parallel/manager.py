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
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from mpipar.errors import MpiparError
from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.answers import GaveUp, Raised, Returned, SetupRaised, WorkersGone
from mpipar.interfaces.imp_parallel.imp_errors import (
    Error,
    NetworkError,
    NoMoreWorkersError,
    RemoteError,
)
from mpipar.interfaces.imp_parallel.sites import ManagerSettings, MpiRanks, StartedWorkers
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

    from mpipar.interfaces.calls.answers import Answer
    from mpipar.interfaces.calls.call_queue import CallQueue as Calls
    from mpipar.interfaces.imp_parallel.sites import TaskSite
    from mpipar.runtime.stage import GivenUpTask

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
Outcome: TypeAlias = Returned | Raised | SetupRaised | GaveUp


class Manager:
    """Starts workers, and makes contexts whose tasks they run. May be used as a context manager."""

    connect_timeout: float = 7200.0
    """Seconds in which a worker must connect after it was started."""
    heartbeat_timeout: float = 7200.0
    """Seconds of silence after which a worker counts as dead, and its task is run elsewhere (at
    least 10, at most MPIPAR_PATIENCE, because a worker says something every second); and in which
    some worker must connect, unless one is seen to be starting on this machine."""

    def __init__(
        self,
        python: str | None = None,
        host: str | None = None,
        output: str = "worker%d.output",
    ) -> None:
        """Make a manager without workers.

        python  shell command that starts the interpreter of the workers; default: this one's
        host    name or address of this machine as workers see it; "localhost": for no others
        output  where worker number %d writes what it has to say
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
        self._added = False  # whether a worker may not have been started
        self._site: TaskSite | None = None
        self._lock = threading.Lock()
        self._parting: weakref.finalize[[], Manager] | None = None

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
        """Let all workers go. Done without being asked when the process ends."""
        with self._lock:
            if self._parting is not None:
                self._parting()
            self._site = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ready_site(self) -> TaskSite:
        """Start the workers that are not yet; return where tasks can run. Raises Error."""
        with self._lock:
            if self._site is not None and not self._added:
                return self._site
            self._added = False
            arrays, self._worker_arrays = self._worker_arrays, []
            for array in arrays:
                self._all_workers.extend(array._get_workers())
            numbered = enumerate(self._all_workers)
            new = [(number, worker) for number, worker in numbered if worker._ready_to_start()]
            if self._site is None and not new:
                raise NoMoreWorkersError(
                    "there are no workers to run tasks; add some: add_worker(LocalWorker())"
                )
            if self._site is None or (self._site.is_over and new):
                self._site = self._new_site()
            if new:
                self._site.start(new, arrays)
            return self._site

    def _new_site(self) -> TaskSite:
        settings = ManagerSettings(
            self._python, self._host, self._output, self.connect_timeout, self.heartbeat_timeout
        )
        if self._parting is not None:
            self._parting()
        in_world = registry.resolve(workers=len(self._all_workers)).startswith("mpi")
        site: TaskSite = MpiRanks(settings) if in_world else StartedWorkers(settings)
        self._parting = weakref.finalize(self, site.close)
        return site


class Context:
    """Tasks that share a setup."""

    def __init__(self, manager: Manager, startup: Callable[[], Any] | None = None) -> None:
        """Made by `Manager.get_context`."""
        self._manager = manager
        self._startup = startup
        self._tasks: deque[ImpTask] = deque()  # not handed to the crew
        self._under_way = 0  # handed to the crew, and their answers not taken
        self._answers: queue.SimpleQueue[tuple[ImpTask, Answer]] = queue.SimpleQueue()
        self._iterators = 0
        self._lock = threading.RLock()
        self._site: TaskSite | None = None
        self._calls: Calls | None = None

    def add_task(self, task: ImpTask) -> None:
        """Add a task: a picklable callable, called with what the setup returned.

        While results are being iterated over it is run at once, else with the next iteration.
        """
        with self._lock:
            self._tasks.append(task)
            if self._iterators and self._calls is not None:
                self._submit(self._calls)

    def get_results_unordered(self) -> Iterator[Any]:
        """Run all tasks; yield what each returns, in the order in which they end.

        Raises RemoteError if a task raised: the other tasks are not lost, but go on with the next
        iteration. NoMoreWorkersError and NetworkError: there is nobody to run them.
        """
        with self._iterating():
            while True:
                with self._lock:
                    if not (self._tasks or self._under_way):
                        return
                site = self._manager._ready_site()  # may take long: no lock of ours is held
                with self._lock:
                    self._hand_over(site)
                answer = self._next_answer(site)
                if answer is not None:
                    yield _result(answer)

    @contextmanager
    def _iterating(self) -> Iterator[None]:
        with self._lock:
            self._iterators += 1
        try:
            yield
        finally:
            with self._lock:
                self._iterators -= 1

    def _hand_over(self, site: TaskSite) -> None:
        """Hand all tasks to the workers of a site. Raises Error if there are none left."""
        if site.is_over and not self._under_way:
            raise site.trouble()
        if self._calls is None or site is not self._site:
            self._site = site
            # In a process of its own a task can crash, or keep the interpreter's lock for hours, as
            # C++ code may, without its worker seeming dead.
            self._calls = site.crew.context(
                self._startup, passes_setup=True, limit=site.limit, isolate=True
            )
            weakref.finalize(self, self._calls.close)
        self._calls.limit = site.limit
        if not site.is_over:
            self._submit(self._calls)

    def _submit(self, calls: Calls) -> None:
        while self._tasks:
            task = self._tasks[0]
            try:
                calls.submit(
                    task,
                    claim=partial(self._claim, task),
                    done=partial(self._take_answer, task),
                )
            except (MpiparError, RuntimeError):
                return  # nobody is left: seen when the iteration goes on
            self._tasks.popleft()
            self._under_way += 1

    def _take_answer(self, task: ImpTask, answer: Answer) -> None:
        self._answers.put((task, answer))

    def _claim(self, task: ImpTask) -> bool:
        """Whether a task may start now: it waits if nobody iterates over results."""
        with self._lock:
            if not self._iterators:
                self._tasks.append(task)
                self._under_way -= 1
            return self._iterators > 0

    def _next_answer(self, site: TaskSite) -> Outcome | None:
        """Wait a little for an answer."""
        try:
            task, answer = self._answers.get(timeout=WATCH_SECONDS)
        except queue.Empty:
            site.watch()
            return None
        with self._lock:
            self._under_way -= 1
            if isinstance(answer, WorkersGone):
                self._tasks.append(task)
                return None
        return answer


def _result(answer: Outcome) -> Any:
    match answer:
        case Returned():
            return answer.value
        case Raised() | SetupRaised():
            raise RemoteError(answer.exception, answer.traceback, answer.where)
        case GaveUp():
            raise _given_up(answer.failure)


def _given_up(failure: GivenUpTask) -> RemoteError:
    """What is raised for a task that took down every process that ran it."""
    error = Error(f"a task is set aside: {failure.kind}: {failure.text}")
    return RemoteError(error, failure.traceback, f"the last of {len(failure.ranks)} tries")
