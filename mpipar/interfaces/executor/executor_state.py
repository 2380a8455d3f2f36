"""What an executor shares with its calls: whether it takes calls, and the queues they are in."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from mpipar.errors import LaunchError
from mpipar.interfaces.calls.answers import SetupRaised, WorkersGone
from mpipar.interfaces.calls.call_stage import is_in_call
from mpipar.interfaces.executor.exceptions import BrokenWorkersError, exception_of

if TYPE_CHECKING:
    from mpipar.interfaces.calls.answers import CallFailure
    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.calls.feeds import CallFeed
    from mpipar.interfaces.calls.router import CallRouter

__all__ = ["ExecutorState"]

LOG = logging.getLogger("concurrent.futures")  # where the standard library's executors write


class ExecutorState:
    """Whether an executor takes calls, and its queues. Outlives an executor that is deleted."""

    def __init__(self, router: CallRouter, queue: CallQueue) -> None:
        """`queue` takes all calls for which `add_queue` opened no queue of their own."""
        self.closed = False
        self.broken = ""  # why, if it is
        self._router = router
        self._queue = queue
        self._queues = weakref.WeakSet([queue])  # the router holds those that are not over

    def add_queue(self, queue: CallQueue) -> None:
        """Count a queue among those that must be over before the executor is."""
        self._queues.add(queue)

    def check(self) -> None:
        """Raise what keeps new calls from being made."""
        if is_in_call():  # the worker would wait for itself
            raise LaunchError(
                "a call cannot use an executor, also not the script's own: return the arguments of "
                "further calls to the script, and let the script make them"
            )
        if self.broken:
            raise BrokenWorkersError(self.broken)
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def offer(self, feed: CallFeed, queue: CallQueue | None = None) -> None:
        """Have the calls of a feed made, in a queue of their own if there is one.

        Raises RuntimeError after the shutdown, BrokenWorkersError if the workers are gone.
        """
        try:
            self._router.offer(queue or self._queue, feed)
        except RuntimeError:  # closed meanwhile
            raise
        except Exception as error:
            self.broken = str(error)
            raise BrokenWorkersError(self.broken) from error

    def exception_of(self, failure: CallFailure) -> BaseException:
        """Return what to raise for a failed call, which may break the executor."""
        exception = exception_of(failure)
        if not self.broken and isinstance(failure, SetupRaised | WorkersGone):
            self.broken = str(exception)
            if isinstance(failure, SetupRaised):
                LOG.critical("Exception in initializer:\n%s", failure.traceback)
                self._router.fail_queue(self._queue, exception)
        return exception

    def calls_dropped(self) -> None:
        """Release the queues that are over now that some calls were dropped."""
        for queue in list(self._queues):
            self._router.release(queue)

    def close(self) -> None:
        """Take no more calls."""
        self.closed = True
        for queue in list(self._queues):
            self._router.close_queue(queue)

    def wait(self) -> None:
        """Wait until all calls are finished; return at once in the thread that finishes them."""
        if not self._router.is_delivering:
            for queue in list(self._queues):
                queue.finished.wait()
