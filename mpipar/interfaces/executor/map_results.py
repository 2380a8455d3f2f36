"""The results of one `map`: one object for all of its calls, with no future for each."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from concurrent import futures
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from mpipar.interfaces.calls.answers import Raised, Returned, SetupRaised
from mpipar.interfaces.calls.batches import SameCalls
from mpipar.interfaces.executor.exceptions import exception_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mpipar.interfaces.calls.answers import Answer
    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.calls.call_stage import Call
    from mpipar.interfaces.executor.submissions import UnfinishedCalls

__all__ = ["MapResults"]


class MapOptions(NamedTuple):
    """How a `map` sends its calls and yields their results."""

    chunk: int
    ahead: int | None
    unordered: bool

    def check(self) -> None:
        """Raise what the standard library raises."""
        if self.chunk < 1:
            raise ValueError("chunksize must be >= 1.")
        if self.ahead is not None and not isinstance(self.ahead, int):
            raise TypeError("buffersize must be an integer or None")
        if self.ahead is not None and self.ahead < 1:
            raise ValueError("buffersize must be None or > 0")
        if self.ahead is not None and self.unordered:
            raise ValueError("buffersize and unordered exclude each other")


class RaisedResult(NamedTuple):
    """In the place of a value: what is raised instead."""

    error: BaseException


class MapResults:
    """A feed of calls of one function, and the iterator over what they return.

    The caller's thread adds calls and takes results; the crew's takes calls and adds results.
    """

    def __init__(
        self,
        ledger: UnfinishedCalls,
        function: Callable[..., Any],
        arguments: Iterator[tuple[Any, ...]],
        shape: MapOptions,
        own: CallQueue | None = None,
    ) -> None:
        """`arguments` are read by `fill`, all of them unless `shape` has a bound.

        own   a context of the executor's for these calls alone; not together with a bound
        """
        shape.check()
        ledger.check()
        self.chunk = shape.chunk
        self._shape = shape
        self._ledger = ledger
        self._own = own
        self._function = function
        self._arguments = arguments
        self._waiting: deque[tuple[Any, ...]] = deque()  # arguments that no worker has got
        self._sent = 0  # calls that went to a worker
        self._groups: dict[int, list[Any]] = {}  # results that are here, by the first one's call
        self._order: deque[int] = deque()  # in which the groups came; if unordered
        self._made = 0  # calls
        self._taken = 0  # results that the caller has got
        self._answered = 0  # since the last `settle`
        self._dropped_from = math.inf  # the first call that was cancelled
        self._change = threading.Condition(threading.Lock())

    # The caller's

    def fill(self) -> None:
        """Make as many calls as may be made now."""
        room, ahead = self._shape.ahead, self._made - self._taken
        calls = list(islice(self._arguments, None if room is None else room - ahead))
        if calls:
            self._ledger.open(len(calls))
            self._made += len(calls)
            self._waiting.extend(calls)
            self._ledger.offer(self, len(calls), self._own)
        if self._own is not None:
            self._own.close()

    def iterate(self, until: float | None) -> Iterator[Any]:
        """Yield the results, in order unless told otherwise; raise what a call raised."""
        bounded = self._shape.ahead is not None
        try:
            while self._taken < self._made:
                group = self._next(until)
                while group:
                    self._taken += 1
                    if bounded:
                        self.fill()
                    if type(group[-1]) is RaisedResult:
                        raise group.pop().error
                    yield group.pop()  # so that this frame holds no result that it has yielded
        finally:
            self.cancel()

    def _next(self, until: float | None) -> list[Any]:
        """The next results, backwards."""
        groups, order, first = self._groups, self._order, self._taken
        if self._shape.unordered:
            if not order:
                self._wait(order.__len__, until)
            first = order.popleft()
        elif first not in groups:
            self._wait(lambda: first in groups, until)
        return groups.pop(first)

    def _wait(self, is_here: Callable[[], object], until: float | None) -> None:
        with self._change:
            while not is_here():
                if self._taken >= self._dropped_from:
                    raise futures.CancelledError
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise futures.TimeoutError
                self._change.wait(left)

    def cancel(self) -> None:
        """Drop the calls that no worker has got. Any thread."""
        dropped = 0
        while self._waiting:
            try:
                self._waiting.pop()
            except IndexError:  # the crew has just taken it
                break
            dropped += 1
        with self._change:
            self._dropped_from = min(self._dropped_from, self._made - dropped)
            self._change.notify_all()
        self._ledger.finish(dropped)

    # The crew's

    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, limit: int) -> tuple[Sequence[Any], Sequence[Call]]:
        waiting, arguments = self._waiting, list[Any]()
        try:
            for _ in range(min(limit, len(waiting))):
                arguments.append(waiting.popleft())
        except IndexError:  # cancelled at this very moment
            pass
        first = self._sent
        self._sent += len(arguments)
        return range(first, self._sent), SameCalls(self._function, arguments)

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self._come(keys, values)

    def answered(self, key: Any, answer: Answer) -> None:
        if isinstance(answer, Returned):
            self._come((key,), (answer.value,))
            return
        if self._own is not None and isinstance(answer, SetupRaised):
            answer = Raised(*answer)  # it was the function, not an initializer
        self._ledger.note(answer)
        self._come((key,), (RaisedResult(exception_of(answer)),))

    def _come(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Keep results as the groups in which they come, backwards: the first is popped first."""
        if not isinstance(keys, range):  # sent again, with others missing between them
            for key, value in zip(keys, values, strict=True):
                self._groups[key] = [value]
        else:
            self._groups[keys.start] = list(reversed(values))
        self._answered += len(keys)
        if self._shape.unordered:
            self._order.extend(keys[:1] if isinstance(keys, range) else keys)

    def settle(self) -> None:
        answered, self._answered = self._answered, 0
        with self._change:
            self._change.notify_all()
        self._ledger.finish(answered)
