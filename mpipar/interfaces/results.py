"""The results of one `map`: one object for all of its calls, with no future for each."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from concurrent import futures
from typing import TYPE_CHECKING, Any, NamedTuple

from mpipar.interfaces.answers import Returned
from mpipar.interfaces.calls import Call
from mpipar.interfaces.outcomes import exception_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mpipar.interfaces.answers import Answer
    from mpipar.interfaces.submissions import Ledger

__all__ = ["Results"]

NO_KEYWORDS: dict[str, Any] = {}


class Shape(NamedTuple):
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


class Results:
    """A feed of calls of one function, and the iterator over what they return.

    The caller's thread adds calls and takes results; the crew's takes calls and adds results.
    """

    def __init__(
        self,
        ledger: Ledger,
        function: Callable[..., Any],
        arguments: Iterator[tuple[Any, ...]],
        shape: Shape,
    ) -> None:
        """`arguments` are read by `fill`, all of them unless `shape` has a bound."""
        shape.check()
        ledger.check()
        self.chunk = shape.chunk
        self._shape = shape
        self._ledger = ledger
        self._function = function
        self._arguments = arguments
        self._calls: deque[tuple[int, Call]] = deque()
        self._answers: dict[int, Answer] = {}  # that have not been yielded
        self._order: deque[int] = deque()  # in which they came; if unordered
        self._made = 0  # calls
        self._taken = 0  # results that the caller has got
        self._answered = 0  # since the last `settle`
        self._dropped_from = math.inf  # the first call that was cancelled
        self._awaited: int | None = None
        self._change = threading.Condition(threading.Lock())

    # The caller's

    def fill(self) -> None:
        """Make as many calls as may be made now."""
        function, made = self._function, self._made
        room = self._shape.ahead
        calls = list[tuple[int, Call]]()
        for arguments in self._arguments if room is None or room > made - self._taken else ():
            calls.append((made, (function, arguments, NO_KEYWORDS)))
            made += 1
            if room is not None and made - self._taken >= room:
                break
        if calls:
            self._ledger.open(len(calls))
            self._calls.extend(calls)
            self._ledger.offer(self, len(calls))
            self._made = made

    def iterate(self, until: float | None) -> Iterator[Any]:
        """Yield the results, in order unless told otherwise; raise what a call raised."""
        try:
            while self._taken < self._made:
                answer = self._next(until)
                self._taken += 1
                if self._shape.ahead is not None:
                    self.fill()
                if type(answer) is not Returned:
                    raise exception_of(answer)
                yield answer.value
                del answer
        finally:
            self.cancel()

    def _next(self, until: float | None) -> Answer:
        if self._shape.unordered:
            if not self._order:
                self._wait(self._order.__len__, until)
            return self._answers.pop(self._order.popleft())
        answer = self._answers.pop(self._taken, None)
        if answer is None:
            index = self._awaited = self._taken
            self._wait(lambda: index in self._answers, until)
            answer = self._answers.pop(index)
        return answer

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
        while self._calls:
            try:
                self._calls.pop()
            except IndexError:  # the crew has just taken it
                break
            dropped += 1
        with self._change:
            self._dropped_from = min(self._dropped_from, self._made - dropped)
            self._change.notify_all()
        self._ledger.finish(dropped)

    # The crew's

    def waiting(self) -> int:
        return len(self._calls)

    def take(self, limit: int) -> list[tuple[Any, Call]]:
        taken, calls = list[tuple[Any, Call]](), self._calls
        try:
            for _ in range(min(limit, len(calls))):
                taken.append(calls.popleft())
        except IndexError:  # cancelled at this very moment
            pass
        return taken

    def answer(self, key: Any, answer: Answer) -> None:
        if type(answer) is not Returned:
            self._ledger.note(answer)
        self._answers[key] = answer
        self._answered += 1
        if self._shape.unordered:
            self._order.append(key)

    def settle(self) -> None:
        answered, self._answered = self._answered, 0
        with self._change:
            self._change.notify_all()
        self._ledger.finish(answered)
