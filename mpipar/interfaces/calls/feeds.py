"""Where calls come from: what a feed of calls is, and the feed of calls with a future each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from mpipar.interfaces.calls.call_kinds import kind_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from mpipar.interfaces.calls.answers import CallFailure

__all__ = ["Call", "CallFeed", "SubmittedCalls"]

Call: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""A function, its arguments, its keyword arguments."""


class CallFeed(Protocol):
    """A source of calls, which also takes their results. `CallRouter.offer` has the calls made.

    The router uses a feed in the stream's thread only, except for `waiting`.
    """

    chunk: int  # calls that travel together, however long they take

    def waiting(self) -> int:
        """Return how many calls can be taken, at most. Any thread."""
        ...

    def next_kind(self) -> Any:
        """Return the kind of the next call (`call_kinds.kind_of`); None if there is none."""
        ...

    def take(self, limit: int) -> tuple[Sequence[Any], Sequence[Call]]:
        """Remove up to `limit` calls, all of the next one's kind, which now go to a worker.

        returns   keys and calls
        """
        ...

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Take the values of calls that have returned; `keys` are those that `take` gave."""
        ...

    def failed(self, key: Any, failure: CallFailure) -> None:
        """Take the failure of one call; `key` is that which `take` gave."""
        ...

    def notify_waiters(self) -> None:
        """Wake the threads that wait for results, after some were taken."""
        ...


class SubmittedCalls:
    """The feed of calls that were submitted one by one: each call has a future."""

    chunk = 1

    def __init__(self, exception_of: Callable[[CallFailure], BaseException]) -> None:
        """`exception_of` makes the exception that the future of a failed call raises."""
        self._exception_of = exception_of
        self._calls: deque[tuple[Future[Any], Call]] = deque()
        self._has_sent = False

    def append(self, future: Future[Any], call: Call) -> None:
        """Add a call; the feed must then be offered to the router. Any thread."""
        self._calls.append((future, call))

    def cancel(self, first: int) -> None:
        """Cancel the calls that no worker has got, but the `first` ones of all. Any thread.

        Those count as sent: they are just about to be.
        """
        kept = 0 if self._has_sent else first
        while len(self._calls) > kept:
            try:
                future, _ = self._calls.pop()
            except IndexError:  # `take` was faster
                return
            future.cancel()
            future.set_running_or_notify_cancel()

    def waiting(self) -> int:
        return len(self._calls)

    def next_kind(self) -> Any:
        try:
            return kind_of(self._calls[0][1][0])
        except IndexError:
            return None

    def take(self, limit: int) -> tuple[list[Future[Any]], list[Call]]:
        futures, calls = list[Any](), list[Any]()
        self._has_sent = True
        kind = self.next_kind()
        while self._calls and len(futures) < limit and self.next_kind() == kind:
            try:
                future, call = self._calls.popleft()
            except IndexError:  # `cancel` was faster
                break
            if future.set_running_or_notify_cancel():
                futures.append(future)
                calls.append(call)
        return futures, calls

    def returned(self, keys: Sequence[Future[Any]], values: Sequence[Any]) -> None:
        for future, value in zip(keys, values, strict=True):
            future.set_result(value)

    def failed(self, key: Future[Any], failure: CallFailure) -> None:
        key.set_exception(self._exception_of(failure))

    def notify_waiters(self) -> None:
        """Each future has woken those that wait for it."""
