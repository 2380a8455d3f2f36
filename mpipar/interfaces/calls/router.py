"""The workers of this process's job, as everything in `interfaces/` uses them.

    Executor, Context.submit --feeds--> Context --bundles--> Crew --supply--> Stream --> workers
    futures, results <--answers-- Crew <--deliver-- Stream

A crew is one long-lived stream of one stage. Its users never wait for each other: each context has
its turn when a worker has room.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpipar.errors import UsageError
from mpipar.interfaces.calls import user_main
from mpipar.interfaces.calls.answers import GaveUp, Raised, WorkersGone
from mpipar.interfaces.calls.batches import PATIENCE_SECONDS, CallBatch, CallFeed, pack_calls
from mpipar.interfaces.calls.call_queue import CallQueue
from mpipar.interfaces.calls.call_stage import (
    BatchReply,
    CallStage,
    answers_of,
    setup_block,
    values_of,
    with_open,
)
from mpipar.runtime.stage import Policy, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mpipar.runtime.pool import Pool
    from mpipar.runtime.stream import Stream

__all__ = ["CallRouter"]


class CallRouter:
    """The workers of one pool; used by any number of contexts at once, from any thread."""

    def __init__(self, pool: Pool, policy: Policy) -> None:
        """`policy` is that of contexts which do not ask for another."""
        self._pool = pool
        self._policy = policy
        self._opening = threading.Lock()  # held by who opens a context or closes the crew
        self._lock = threading.Condition()
        self._contexts: dict[int, CallQueue] = {}  # open, or with calls on their way
        self._ready: dict[int, CallQueue] = {}  # may have something to send
        self._flying: dict[int, tuple[CallQueue, CallBatch]] = {}
        self._blocks: dict[int, dict[str, NDArray[Any]]] = {}
        self._numbers = itertools.count()
        self._tasks = itertools.count()
        self._touched: dict[CallFeed, None] = {}
        self._supplying = False
        self._closed = False
        self._error: BaseException | None = None
        self._stream: Stream | None = None
        self._running: Policy | None = None
        pool.serve(self)

    @property
    def workers(self) -> int:
        """How many there are now."""
        return self._pool.workers

    @property
    def description(self) -> str:
        """Who they are, in a few words."""
        return self._pool.description

    def context(
        self,
        startup: Callable[[], Any] | None = None,
        *,
        passes_setup: bool = False,
        limit: int | None = None,
        **words: Any,
    ) -> CallQueue:
        """Open a context: calls that share a setup.

        startup       run at most once on each worker, before its first call
        passes_setup  functions get what it returns, a sequence, before their own arguments
        limit         calls under way at once
        words         of `Policy`: tries, deaths, timeout, isolate
        """
        block = None if startup is None else setup_block(startup, passes_setup=passes_setup)
        with self._opening:
            self.check()
            self._start(replace(self._policy, **words))
            context = CallQueue(self, next(self._numbers), has_setup=block is not None, limit=limit)
            with self._lock:
                self._contexts[context.number] = context
                if block is not None:
                    self._blocks[context.number] = block
            return context

    def check(self) -> None:
        """Raise what keeps new calls from being made."""
        if self._error is not None:
            raise self._error
        if self._closed:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def _start(self, policy: Policy) -> None:
        """Have a stream of that policy."""
        if self._stream is not None:
            if policy == self._running:
                return
            if self._contexts:
                raise UsageError(
                    "contexts and executors that are open at once on the same workers must agree "
                    f"on isolate, tries, deaths and timeout: {self._running} is open, not {policy}"
                )
            self._stream.close()
        main = user_main.UserMain.here()
        self._running = policy
        self._stream = self._pool.stream(CallStage(main), {}, self, policy=policy)

    def close(self, *, drop: bool = False) -> None:
        """Let the workers go, after all calls have been answered; or `drop` those calls."""
        with self._opening:
            if self._closed:
                return
            self._closed = True
        if drop and self._stream is not None:
            self._stream.abort()
        with self._lock:
            self._lock.wait_for(lambda: drop or self._error is not None or self._is_quiet)
        if self._stream is not None:
            self._stream.close()
        self._pool.close()

    @property
    def _is_quiet(self) -> bool:
        return not (self._ready or self._flying or self._supplying)

    # Of contexts

    def wake(self, context: CallQueue) -> None:
        """A context may have something to send."""
        with self._lock:
            if context.number in self._ready:
                return  # the stream has been told, and has not come for it yet
            self._ready[context.number] = context
        if self._error is not None:
            context.fail(self._error)
        elif self._stream is not None:
            self._stream.notify()

    def forget(self, context: CallQueue) -> None:
        """A context is closed and all its calls have been answered."""
        with self._lock:
            self._contexts.pop(context.number, None)
            self._blocks.pop(context.number, None)

    # Of the pool's reader

    def read(self, block: int) -> dict[str, NDArray[Any]]:
        """Return what sets up a context on a worker."""
        with self._lock:
            # A closed context's may still be asked for: it was fetched for a task that went away.
            return with_open(self._blocks.get(block, {}), self._blocks)

    # Of the stream

    def supply(self, limit: int) -> Sequence[Task]:
        """Bundle calls of the contexts in turn."""
        tasks = list[Task]()
        with self._lock:
            self._supplying = True
        try:
            while len(tasks) < limit and (context := self._next()) is not None:
                bundle = context.take()
                if bundle is None:
                    continue
                with self._lock:
                    self._ready[context.number] = context  # behind the others
                tasks += self._task_of(context, bundle)
        finally:
            with self._lock:
                self._supplying = False
                self._lock.notify_all()
        self._settle()
        return tasks

    def _next(self) -> CallQueue | None:
        with self._lock:
            number = next(iter(self._ready), None)
            return None if number is None else self._ready.pop(number)

    def _task_of(self, context: CallQueue, bundle: CallBatch) -> list[Task]:
        """Make a task of calls; none if they cannot be pickled."""
        parcel, failed = pack_calls(bundle.calls)
        self._touched[bundle.feed] = None
        for at, error in failed:
            bundle.feed.answered(bundle.keys[at], Raised(error, "", "here, before it was sent"))
        if failed:
            bundle = bundle.without({at for at, _ in failed})
        if not bundle.size:
            context.landed()
            return []
        patience = math.inf if bundle.size <= bundle.feed.chunk else PATIENCE_SECONDS
        task = next(self._tasks)
        self._flying[task] = context, bundle
        payload = context.number, patience, parcel.functions, parcel.together, parcel.pieces
        return [Task(task, context.block, payload)]

    def deliver(self, results: Sequence[tuple[int, Any]]) -> None:
        """Hand out what came of bundles."""
        self._tell_losses()
        for task, result in results:
            context, bundle = self._flying[task]
            self._touched[bundle.feed] = None
            if isinstance(result, BatchReply):
                self._hand_out(context, bundle, result)
            elif bundle.size > 1:
                context.again(bundle, alone=True)  # to find the one that fails
            else:
                bundle.feed.answered(bundle.keys[0], GaveUp(result))
            context.landed()
            with self._lock:
                self._ready[context.number] = context
                del self._flying[task]
                self._lock.notify_all()
        self._settle()

    def _hand_out(self, context: CallQueue, bundle: CallBatch, reply: BatchReply) -> None:
        feed, values = bundle.feed, values_of(reply)
        if values is not None:
            feed.returned(bundle.keys[: len(values)], values)
            made = len(values)
        else:
            answers = answers_of(reply, bundle.size)
            made = len(answers)
            for key, answer in zip(bundle.keys, answers, strict=False):
                feed.answered(key, answer)
        context.pace.note(made, reply.seconds)
        context.again(bundle.part(made), alone=False)

    def _settle(self) -> None:
        touched, self._touched = self._touched, {}
        for feed in touched:
            feed.settle()

    def _tell_losses(self) -> None:
        """Say which workers died: their calls are made again, so nothing else would."""
        for loss in self._pool.new_losses():
            sys.stderr.write(f"mpipar: {loss}\n")

    def ended(self, error: BaseException | None) -> None:
        """No more results will come."""
        self._tell_losses()
        if error is None and not self._flying:
            return
        error = error or RuntimeError("the calls under way were dropped")
        with self._lock:
            self._error = error
            flying, self._flying = self._flying, {}
            contexts = list(self._contexts.values())
            self._ready.clear()
            self._lock.notify_all()
        for context, bundle in flying.values():
            self._touched[bundle.feed] = None
            for key in bundle.keys:
                bundle.feed.answered(key, WorkersGone(error))
            context.landed()
        for context in contexts:
            context.fail(error)
        self._settle()
