"""`mpipar.Executor`: the standard library's Executor on the workers of the job.

The class is what concurrent.futures says an Executor is, and has the extras of mpi4py.futures. Its
futures are the standard library's own, so `wait` and `as_completed` take them.
"""

from __future__ import annotations

import functools
import time
import weakref
from concurrent import futures
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from mpipar.errors import StoppedError
from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.call_kinds import PICKLED_BY_NAME
from mpipar.interfaces.calls.feeds import SubmittedCalls
from mpipar.interfaces.calls.pickling import object_or_raise, pickle_each, unpickle_each
from mpipar.interfaces.executor.exceptions import BrokenWorkersError
from mpipar.interfaces.executor.executor_state import ExecutorState
from mpipar.interfaces.executor.map_results import MapOptions, MapResults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.calls.pickling import PickledObjects

__all__ = ["BrokenWorkersError", "Executor"]

T = TypeVar("T")
LARGE_FUNCTION_BYTES: Final = 1 << 16
"""A callable object whose pickle is larger goes to each worker once for each `map`."""


def _pickle_as_setup(pickled: PickledObjects) -> tuple[PickledObjects]:
    """Return the result of a setup that gives the pickle of a function to each call."""
    return (pickled,)


def _call(pickled: PickledObjects, /, *arguments: Any) -> Any:
    """Call a fresh copy of a function whose pickle a setup gave: a call may change its object."""
    (function,) = unpickle_each(pickled, copy=True)
    return object_or_raise(function)(*arguments)


class Executor(futures.Executor):
    """Calls functions on the workers that mpirun started, or in processes of this machine."""

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        parallel: str | None = None,
        isolate: bool | None = None,
        **of_processes: Any,
    ) -> None:
        """Open an executor; any number of them share the workers.

        max_workers   calls under way at once; None: as many as there are workers
        initializer   called with initargs once on each worker, before its first call
        parallel      serial or thread:N; None: what the script was started with, or N processes
        isolate       run calls in supervised child processes; None: if parallel is thread:N
        of_processes  mp_context and max_tasks_per_child of ProcessPoolExecutor: without effect,
                      because the workers are there already, and stay
        """
        for name in of_processes.keys() - {"mp_context", "max_tasks_per_child"}:
            raise TypeError(f"Executor() has no argument {name!r}; see docs/executor.md")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        router = registry.open_router(parallel, max_workers)
        setup = initializer and functools.partial(initializer, *initargs)
        limit = max_workers if max_workers and max_workers < router.workers else None
        self._policy: dict[str, Any] = {} if isolate is None else {"isolate": isolate}
        self._router = router
        self._has_limit_or_setup = limit is not None or setup is not None
        self._max_workers = limit or router.workers
        queue = router.open_queue(setup, limit=limit, **self._policy)
        self._state = ExecutorState(router, queue)
        self._submitted = SubmittedCalls(self._state.exception_of)
        self._maps: weakref.WeakSet[MapResults] = weakref.WeakSet()
        # An executor that nobody holds any more takes no calls; those that it took are finished.
        weakref.finalize(self, self._state.close).atexit = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Executor cannot be sent to a call, which could not use it")

    @property
    def num_workers(self) -> int:
        """How many calls can be under way at once; 0 after the shutdown."""
        over = self._state.closed or self._state.broken
        return 0 if over else min(self._max_workers, self._router.workers)

    @property
    def _broken(self) -> str:
        return self._state.broken

    def bootup(self, wait: bool = True) -> Self:
        """Return this executor: its workers are there from the beginning."""
        del wait
        if self._state.closed:
            raise RuntimeError("cannot boot up after shutdown")
        return self

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Have `fn(*args, **kwargs)` called on some worker; return the future of the call.

        Raises RuntimeError after the shutdown, BrokenWorkersError if no worker can be used.
        """
        future = futures.Future[T]()
        self._state.check()
        self._submitted.append(future, (fn, args, kwargs))
        self._state.offer(self._submitted)
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """Return an iterator like `map(fn, *iterables)`; the calls start on the workers at once.

        Raises, or its iterator does, what `submit` raises, and what a call raises.

        timeout     seconds from now, beyond which waiting for a result raises TimeoutError
        chunksize   calls that travel together; calls known to be short do so anyway
        buffersize  how many calls may be ahead of the results taken; None: all
        unordered   yield each result when it comes, not in the order of the calls
        """
        return self._iterate(
            fn, zip(*iterables, strict=False), timeout, MapOptions(chunksize, buffersize, unordered)
        )

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """Like `map`, with the arguments of each call together in one tuple."""
        return self._iterate(
            fn, map(tuple, iterable), timeout, MapOptions(chunksize, buffersize, unordered)
        )

    def _iterate(
        self,
        fn: Callable[..., T],
        arguments: Iterator[tuple[Any, ...]],
        timeout: float | None,
        options: MapOptions,
    ) -> Iterator[T]:
        until = None if timeout is None else time.monotonic() + timeout
        queue = None if options.ahead else self._queue_for(fn)
        try:
            function = fn if queue is None else _call
            results = MapResults(self._state, function, arguments, options, queue)
            results.fill()
        finally:
            if queue is not None:
                self._router.close_queue(queue)
        self._maps.add(results)
        return results.iterate(until)

    def _queue_for(self, fn: Callable[..., Any]) -> CallQueue | None:
        """Return a queue that brings a large function to each worker once; None for other ones.

        Programs give `map` objects and methods that hold all of their data.
        """
        if self._has_limit_or_setup or type(fn) in PICKLED_BY_NAME or self._state.closed:
            return None
        pickled, failed = pickle_each([fn])
        data, _, _, buffers = pickled
        if failed or len(data) + sum(len(view.raw()) for view in buffers) < LARGE_FUNCTION_BYTES:
            return None
        setup = functools.partial(_pickle_as_setup, pickled)
        queue = self._router.open_queue(setup, passes_setup=True, needs=[fn], **self._policy)
        self._state.add_queue(queue)
        return queue

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down. After ^C or SIGTERM drop the calls that wait, and wait for no others."""
        interrupted = isinstance(error, (KeyboardInterrupt, StoppedError))
        self.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait until those that were taken are finished.

        cancel_futures   drop the calls that no worker has got yet
        """
        self._state.closed = True
        if cancel_futures:
            self._submitted.cancel(self._max_workers)
            for results in list(self._maps):
                results.cancel()
        self._state.close()
        if wait:
            self._state.wait()
