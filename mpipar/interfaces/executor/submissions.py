"""The calls of one executor: how many are unfinished, and those that have a future each."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from mpipar.interfaces.calls.answers import Returned, SetupRaised, WorkersGone
from mpipar.interfaces.executor.exceptions import BrokenWorkersError, exception_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from mpipar.interfaces.calls.answers import Answer
    from mpipar.interfaces.calls.batches import CallFeed
    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.calls.call_stage import Call

__all__ = ["SubmittedCalls", "UnfinishedCalls"]

LOG = logging.getLogger("concurrent.futures")  # where the standard library's executors write


class UnfinishedCalls:
    """Counts the unfinished calls of an executor. It outlives an executor that nobody holds."""

    def __init__(self, context: CallQueue) -> None:
        self.context = context
        self.closed = False
        self.broken = ""  # why, if it is
        self._change = threading.Condition()
        self._unfinished = 0
        self._deliverer = 0  # the thread that tells answers

    def open(self, calls: int) -> None:
        """Count so many more calls. Raises if none are taken any more."""
        with self._change:
            self.check()
            self._unfinished += calls

    def offer(self, feed: CallFeed, calls: int, own: CallQueue | None = None) -> None:
        """Have the crew take counted calls from a feed, in its own context if it has one.

        Raises if the crew is gone.
        """
        try:
            (own or self.context).offer(feed)
        except RuntimeError:  # closed meanwhile
            self.finish(calls)
            raise
        except Exception as error:
            self.finish(calls)
            self.broken = str(error)
            raise BrokenWorkersError(self.broken) from error

    def check(self) -> None:
        """Raise what keeps new calls from being made."""
        if self.broken:
            raise BrokenWorkersError(self.broken)
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def finish(self, calls: int) -> None:
        """So many calls are finished or dropped."""
        with self._change:
            self._unfinished -= calls
            if not self._unfinished:
                self._change.notify_all()

    def note_thread(self) -> None:
        """This is the thread that tells answers."""
        self._deliverer = threading.get_ident()

    def note(self, answer: Answer) -> None:
        """See whether an answer breaks the executor; in the thread that tells answers."""
        self.note_thread()
        if self.broken or not isinstance(answer, SetupRaised | WorkersGone):
            return
        error = exception_of(answer)
        self.broken = str(error)
        if isinstance(answer, SetupRaised):
            LOG.critical("Exception in initializer:\n%s", answer.traceback)
            self.context.fail(error)

    def wait(self) -> None:
        """Wait until all calls are finished; not in the thread that finishes them."""
        if threading.get_ident() != self._deliverer:
            with self._change:
                self._change.wait_for(lambda: not self._unfinished)

    def close(self) -> None:
        """Take no more calls."""
        self.closed = True
        self.context.close()


class SubmittedCalls:
    """The feed of `submit`: calls that have a future each."""

    chunk = 1

    def __init__(self, ledger: UnfinishedCalls) -> None:
        self._ledger = ledger
        self._calls: deque[tuple[Future[Any], Call]] = deque()
        self._sent = False  # any call
        self._answered = 0  # since the last `settle`

    def put(self, future: Future[Any], call: Call) -> None:
        """Add a call. Any thread. Raises if no calls are taken any more."""
        self._ledger.open(1)
        self._calls.append((future, call))
        self._ledger.offer(self, 1)

    def cancel(self, workers: int) -> None:
        """Cancel the calls that no worker has got. Any thread.

        The first calls of all count as got, one for each worker: the crew comes for them just now.
        """
        kept = 0 if self._sent else workers
        while len(self._calls) > kept:
            try:
                future, _ = self._calls.pop()
            except IndexError:  # the crew has just taken it
                return
            future.cancel()
            future.set_running_or_notify_cancel()
            self._ledger.finish(1)

    def waiting(self) -> int:
        return len(self._calls)

    def take(self, limit: int) -> tuple[Sequence[Any], Sequence[Call]]:
        keys, calls, dropped = list[Any](), list[Any](), 0
        self._sent = True
        while self._calls and len(keys) < limit:
            try:
                future, call = self._calls.popleft()
            except IndexError:  # cancelled at this very moment
                break
            if future.set_running_or_notify_cancel():
                keys.append(future)
                calls.append(call)
            else:
                dropped += 1
        if dropped:
            self._ledger.finish(dropped)
        return keys, calls

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self._ledger.note_thread()
        self._answered += len(keys)
        for future, value in zip(keys, values, strict=True):
            future.set_result(value)

    def answered(self, key: Any, answer: Answer) -> None:
        if isinstance(answer, Returned):
            self.returned((key,), (answer.value,))
            return
        self._ledger.note(answer)
        self._answered += 1
        key.set_exception(exception_of(answer))

    def settle(self) -> None:
        answered, self._answered = self._answered, 0
        self._ledger.finish(answered)
