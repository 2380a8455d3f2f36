"""`mpipar.Executor`: the standard library's Executor on the workers of the job.

It is what concurrent.futures says an Executor is, and has the extras of mpi4py.futures. Futures are
the standard library's own, so `wait` and `as_completed` take them.
"""

from __future__ import annotations

import functools
import time
import weakref
from concurrent import futures
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mpipar.errors import StoppedError
from mpipar.interfaces.calls import registry
from mpipar.interfaces.calls.batches import BY_REFERENCE
from mpipar.interfaces.calls.pickling import pack
from mpipar.interfaces.executor.exceptions import BrokenWorkersError
from mpipar.interfaces.executor.map_results import MapOptions, MapResults
from mpipar.interfaces.executor.submissions import SubmittedCalls, UnfinishedCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from mpipar.interfaces.calls.call_queue import CallQueue

__all__ = ["BrokenWorkersError", "Executor"]

T = TypeVar("T")
KEPT_BYTES: Final = 1 << 16
"""A callable object whose pickle is larger goes to each worker once for each `map`."""


def _hold(function: Callable[..., T]) -> tuple[Callable[..., T]]:
    """The setup of a context whose calls are all of one function."""
    return (function,)


def _call(function: Callable[..., T], /, *arguments: Any) -> T:
    return function(*arguments)


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
    ) -> None:
        """Open an executor; any number of them share the workers.

        max_workers   calls under way at once; None: as many as there are workers
        initializer   called with initargs once on each worker, before its first call
        parallel      serial or thread:N; None: what the script was started with, or N processes
        isolate       run calls in supervised child processes; None: if parallel is thread:N
        """
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        crew = registry.crew(parallel, max_workers)
        setup = initializer and functools.partial(initializer, *initargs)
        limit = max_workers if max_workers and max_workers < crew.workers else None
        words: dict[str, Any] = {} if isolate is None else {"isolate": isolate}
        self._crew = crew
        self._words = words
        self._may_keep = limit is None and initializer is None
        self._max_workers = limit or crew.workers
        self._ledger = UnfinishedCalls(crew.context(setup, limit=limit, **words))
        self._submissions = SubmittedCalls(self._ledger)
        self._results: weakref.WeakSet[MapResults] = weakref.WeakSet()
        # An executor that nobody holds any more takes no calls; those that it took are finished.
        weakref.finalize(self, self._ledger.close).atexit = False

    @property
    def num_workers(self) -> int:
        """How many calls can be under way at once; 0 after the shutdown."""
        over = self._ledger.closed or self._ledger.broken
        return 0 if over else min(self._max_workers, self._crew.workers)

    @property
    def _broken(self) -> str:
        return self._ledger.broken

    def bootup(self, wait: bool = True) -> Self:
        """Return this executor: its workers are there from the beginning."""
        del wait
        if self._ledger.closed:
            raise RuntimeError("cannot boot up after shutdown")
        return self

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Have `fn(*args, **kwargs)` called on some worker."""
        future = futures.Future[T]()
        self._submissions.put(future, (fn, args, kwargs))
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
        """Return an iterator like `map(fn, *iterables)`; the calls are made on the workers at once.

        timeout     seconds from now, beyond which waiting for a result raises TimeoutError
        chunksize   calls that travel together; calls known to be short do so anyway
        buffersize  how many calls may be ahead of the results taken; None: all
        unordered   results as they come
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
        shape: MapOptions,
    ) -> Iterator[T]:
        until = None if timeout is None else time.monotonic() + timeout
        context = None if shape.ahead else self._context_of(fn)
        if context is None:
            results = MapResults(self._ledger, fn, arguments, shape)
        else:
            results = MapResults(self._ledger, _call, arguments, shape, context)
        results.fill()
        self._results.add(results)
        return results.iterate(until)

    def _context_of(self, fn: Callable[..., Any]) -> CallQueue | None:
        """Return a context that brings a large function, once, to each worker; None for others.

        Programs give `map` objects and methods that hold all of their data.
        """
        if not self._may_keep or type(fn) in BY_REFERENCE or self._ledger.closed:
            return None
        pieces, failed = pack([fn])
        if failed or len(pieces[0]) + sum(len(view.raw()) for view in pieces[3]) < KEPT_BYTES:
            return None
        return self._crew.context(functools.partial(_hold, fn), passes_setup=True, **self._words)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down. After ^C or SIGTERM, drop what waits, and do not wait for the rest."""
        interrupted = isinstance(error, (KeyboardInterrupt, StoppedError))
        self.shutdown(wait=not interrupted, cancel_futures=interrupted)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; wait until those that were taken are finished.

        cancel_futures   drop the calls that no worker has got yet
        """
        self._ledger.closed = True
        if cancel_futures:
            self._submissions.cancel(self._max_workers)
            for results in list(self._results):
                results.cancel()
        if wait:
            self._ledger.wait()
        self._ledger.close()
