"""The calls and results of one `map`: one object for all calls, with no future for each."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from concurrent import futures
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from mpipar.interfaces.calls.answers import Raised, SetupRaised
from mpipar.interfaces.calls.batches import SameCalls
from mpipar.interfaces.calls.call_kinds import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mpipar.interfaces.calls.answers import CallFailure
    from mpipar.interfaces.calls.call_queue import CallQueue
    from mpipar.interfaces.calls.feeds import Call
    from mpipar.interfaces.executor.executor_state import ExecutorState

__all__ = ["MapOptions", "MapResults"]


class MapOptions(NamedTuple):
    """How a `map` sends its calls and yields their results."""

    chunk: int  # calls that travel together, however long they take
    ahead: int | None  # how many calls may be ahead of the results taken; None: all
    unordered: bool  # whether results are yielded as they come

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


class FailedResult(NamedTuple):
    """What is raised in the place of a value."""

    error: BaseException


class MapResults:
    """The feed of the calls of one `map`, and the iterator over what they return.

    The caller's thread adds calls and takes results; the stream's takes calls and adds results.
    """

    def __init__(
        self,
        state: ExecutorState,
        function: Callable[..., Any],
        arguments: Iterator[tuple[Any, ...]],
        options: MapOptions,
        queue: CallQueue | None = None,
    ) -> None:
        """Take the arguments of all calls, one tuple for each; `fill` reads them.

        queue   a queue for these calls alone; None: that of the executor. Not with `options.ahead`
        """
        options.check()
        state.check()
        self.chunk = options.chunk
        self._options = options
        self._state = state
        self._queue = queue
        self._function = function
        self._kind = kind_of(function)
        self._arguments = arguments
        self._waiting: deque[tuple[Any, ...]] = deque()  # arguments that no worker has got
        self._sent = 0  # calls that went to a worker
        self._groups: dict[int, list[Any]] = {}  # results that came together, by the first call
        self._order: deque[int] = deque()  # in which the groups came; if unordered
        self._added = 0  # calls
        self._taken = 0  # results that the caller has got
        self._cancelled_from: float = math.inf  # the first call that was cancelled
        self._change = threading.Condition(threading.Lock())

    # Of the caller's thread

    def fill(self) -> None:
        """Add as many calls as may be added now."""
        most, ahead = self._options.ahead, self._added - self._taken
        calls = list(islice(self._arguments, None if most is None else most - ahead))
        if calls:
            self._state.check()
            self._added += len(calls)
            self._waiting.extend(calls)
            self._state.offer(self, self._queue)

    def iterate(self, until: float | None) -> Iterator[Any]:
        """Yield the results, in order unless told otherwise; raise what a call raised."""
        bounded = self._options.ahead is not None
        try:
            while self._taken < self._added:
                group = self._next_group(until)
                while group:
                    self._taken += 1
                    if bounded:
                        self.fill()
                    if type(group[-1]) is FailedResult:
                        raise group.pop().error
                    yield group.pop()  # so that this frame holds no result that it has yielded
        finally:
            self.cancel()

    def _next_group(self, until: float | None) -> list[Any]:
        """Wait for the next results; return them, the last result first."""
        groups, order, first = self._groups, self._order, self._taken
        if self._options.unordered:
            if not order:
                self._wait(order.__len__, until)
            first = order.popleft()
        elif first not in groups:
            self._wait(lambda: first in groups, until)
        return groups.pop(first)

    def _wait(self, is_here: Callable[[], object], until: float | None) -> None:
        with self._change:
            while not is_here():
                if self._taken >= self._cancelled_from:
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
            except IndexError:  # `take` was faster
                break
            dropped += 1
        with self._change:
            self._cancelled_from = min(self._cancelled_from, self._added - dropped)
            self._change.notify_all()
        if dropped:
            self._state.calls_dropped()

    # Of the stream's thread

    def waiting(self) -> int:
        return len(self._waiting)

    def next_kind(self) -> Any:
        return self._kind

    def take(self, limit: int) -> tuple[Sequence[Any], Sequence[Call]]:
        waiting, arguments = self._waiting, list[Any]()
        try:
            for _ in range(min(limit, len(waiting))):
                arguments.append(waiting.popleft())
        except IndexError:  # `cancel` was faster
            pass
        first = self._sent
        self._sent += len(arguments)
        return range(first, self._sent), SameCalls(self._function, arguments)

    def returned(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Keep results as the groups in which they come, the last result first."""
        if not isinstance(keys, range):  # sent again, with others missing between them
            for key, value in zip(keys, values, strict=True):
                self._groups[key] = [value]
        else:
            self._groups[keys.start] = list(reversed(values))
        if self._options.unordered:
            self._order.extend(keys[:1] if isinstance(keys, range) else keys)

    def failed(self, key: Any, failure: CallFailure) -> None:
        if self._queue is not None and isinstance(failure, SetupRaised):
            failure = Raised(*failure)  # the setup is the function, not an initializer
        self.returned((key,), (FailedResult(self._state.exception_of(failure)),))

    def notify_waiters(self) -> None:
        with self._change:
            self._change.notify_all()
