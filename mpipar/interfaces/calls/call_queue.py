"""Calls that share a setup, and the order in which they go to the workers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from mpipar.interfaces.calls.answers import Answer, WorkersGone
from mpipar.interfaces.calls.batches import BatchSize, CallBatch, CallFeed, SingleCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


__all__ = ["CallQueue"]


class Router(Protocol):
    """What a queue of calls needs of the router that it belongs to."""

    @property
    def workers(self) -> int:
        """How many there are now."""
        ...

    def check(self) -> None:
        """Raise what keeps new calls from being made."""
        ...

    def wake(self, queue: CallQueue, /) -> None:
        """A queue may have something to send."""
        ...

    def forget(self, queue: CallQueue, /) -> None:
        """A queue is closed and all its calls have been answered."""
        ...


class CallQueue:
    """Calls that share a setup. Open one with `CallRouter.context`."""

    def __init__(self, crew: Router, number: int, *, has_setup: bool, limit: int | None) -> None:
        self.number = number
        self.block = number if has_setup else None
        self.pace = BatchSize()
        self._crew = crew
        self.limit = limit  # bundles under way at once; None: any number
        self._flying = 0  # bundles; or being made
        self._again: deque[tuple[CallBatch, bool]] = deque()
        self._feeds: dict[CallFeed, None] = {}  # that may have calls, next first
        self._singles = SingleCalls()
        self._closing = False
        self._error: BaseException | None = None  # what all calls are answered with

    def submit(
        self,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        claim: Callable[[], bool],
        done: Callable[[Answer], None],
    ) -> None:
        """Have a function called on some worker.

        claim   asked right before the call goes there: False if it shall not, and be forgotten
        done    told once what came of it, in the crew's thread
        """
        self._singles.put(claim, done, (function, args, kwargs or {}))
        self.offer(self._singles)

    def offer(self, feed: CallFeed) -> None:
        """Take calls from this feed, from now on until it has none."""
        if self._closing:
            raise RuntimeError("the context is closed")
        self._crew.check()
        self._feeds[feed] = None
        self._crew.wake(self)

    def close(self) -> None:
        """No more calls will come. Those that were made are answered; workers drop the setup."""
        self._closing = True
        self._forget_if_done()

    # Of the crew's thread

    def take(self) -> CallBatch | None:
        """Return the next bundle; None if there are no calls, or enough under way."""
        if self._error is not None:  # and somebody has offered calls at that very moment
            self.fail(self._error)
            return None
        if self.limit is not None and self._flying >= self.limit:
            return None
        self._flying += 1
        bundle = self._take_again() if self._again else self._take_new()
        if bundle is None:
            self.landed()
        return bundle

    def _take_again(self) -> CallBatch:
        bundle, alone = self._again.popleft()
        size = 1 if alone else self.pace.size(bundle.size, self._workers)
        if bundle.size > size:
            self._again.appendleft((bundle.part(size), alone))
        return bundle.part(0, size)

    def _take_new(self) -> CallBatch | None:
        while feeds := list(self._feeds):  # a copy, made at once: others may add to it meanwhile
            feed = feeds[0]
            del self._feeds[feed]
            size = max(feed.chunk, self.pace.size(feed.waiting(), self._workers))
            keys, calls = feed.take(size)
            if keys:
                self._feeds[feed] = None  # behind the others
                return CallBatch(feed, keys, calls)
        return None

    @property
    def _workers(self) -> int:
        return min(self._crew.workers, self.limit or self._crew.workers) or 1

    def again(self, bundle: CallBatch, *, alone: bool) -> None:
        """Send these calls once more; `alone`: each for itself."""
        if bundle.size:
            self._again.append((bundle, alone))

    def landed(self) -> None:
        """A bundle is answered."""
        self._flying -= 1
        self._forget_if_done()

    def _forget_if_done(self) -> None:
        waiting = self._again or any(feed.waiting() for feed in list(self._feeds))
        over = self._closing or self._error is not None
        if over and not (self._flying or waiting):  # workers may yet ask for the setup of others
            self._crew.forget(self)

    def fail(self, error: BaseException) -> None:
        """Answer all calls that wait, and that will come, with this error."""
        self._error = error
        bundles = [bundle for bundle, _ in self._again]
        self._again.clear()
        feeds, self._feeds = list(self._feeds), {}
        bundles += [CallBatch(feed, *feed.take(feed.waiting())) for feed in feeds]
        for bundle in bundles:
            for key in bundle.keys:
                bundle.feed.answered(key, WorkersGone(error))
        for bundle in bundles:
            bundle.feed.settle()
        self._forget_if_done()
