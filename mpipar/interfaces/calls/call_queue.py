"""Calls that share a setup, and the order in which they go to the workers."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from mpipar.interfaces.calls.answers import WorkersGone
from mpipar.interfaces.calls.batches import MOST_KINDS, BatchSize, CallBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.interfaces.calls.feeds import CallFeed
    from mpipar.interfaces.calls.surroundings import Surroundings
    from mpipar.interfaces.calls.user_main import UserMain

__all__ = ["CallQueue"]


class CallQueue:
    """Calls that share a setup: feeds, and batches that must be sent again.

    The router (`CallRouter.open_queue`) makes and drives it. Only the methods that say so may be
    used outside of the stream's thread.
    """

    def __init__(
        self, number: int, *, has_setup: bool, limit: int | None, names: Sequence[str] = ()
    ) -> None:
        """`names` are those in the user's `__main__` that the setup needs."""
        self.number = number
        self.names = names
        self.block = number if has_setup else None  # the block with the setup
        self.limit = limit  # batches under way at once; None: any number
        self._batch_sizes: dict[Any, BatchSize] = {}  # by kind of call
        self.closed = False  # whether no feed may be offered any more
        self.has_surroundings = False  # whether `set_surroundings` was called
        self.surroundings: Surroundings | None = None  # of its calls; None: those of the stream
        self.finished = threading.Event()  # set by the router when the queue is over
        self._feeds: dict[CallFeed, None] = {}  # that may have calls, next first
        self._again: deque[tuple[CallBatch, bool]] = deque()  # to be sent again; call by call?
        self._under_way = 0  # batches that were taken, or are just being, and are not answered
        self._error: BaseException | None = None  # with which all calls fail
        # Held while a feed is asked, and not among the feeds. The garbage collector may close a
        # queue in any thread at any moment, so also in one that holds this lock.
        self._lock = threading.RLock()

    def offer(self, feed: CallFeed) -> None:
        """Take calls from this feed, from now on until it has none. Any thread."""
        self._feeds[feed] = None

    def set_surroundings(self, main: UserMain) -> None:
        """Have calls made in the surroundings of this moment, that of the first call. Any thread.

        As with the standard library, whose processes start with the first call.

        main   as the stream's workers know it
        """
        self.has_surroundings = True
        now = main.surroundings_here()
        self.surroundings = None if now == main.now else now

    @property
    def is_over(self) -> bool:
        """Whether the queue is closed or failed, and no call is left. Any thread."""
        if not self.closed and self._error is None:
            return False
        with self._lock:
            waiting = self._again or any(feed.waiting() for feed in list(self._feeds))
            return not (waiting or self._under_way)

    def batch_size(self, kind: Any) -> BatchSize:
        """Return how many calls of a kind make a batch."""
        if len(self._batch_sizes) >= MOST_KINDS:  # functions that a program makes on and on
            self._batch_sizes.clear()
        return self._batch_sizes.setdefault(kind, BatchSize())

    def take(self, workers: int) -> CallBatch | None:
        """Return the next batch; None if there are no calls, or enough under way."""
        if self._error is not None:  # a feed was offered at the moment of the failure
            self.fail(self._error)
            return None
        if self.limit is not None:
            if self._under_way >= self.limit:
                return None
            workers = min(workers, self.limit)
        with self._lock:
            self._under_way += 1
            batch = self._take_again(workers) if self._again else self._take_new(workers)
            self._under_way -= batch is None
        return batch

    def _take_again(self, workers: int) -> CallBatch:
        batch, one_by_one = self._again.popleft()
        size = 1 if one_by_one else self.batch_size(batch.kind).choose(batch.size, workers)
        if batch.size > size:
            self._again.appendleft((batch.part(size), one_by_one))
        return batch.part(0, size)

    def _take_new(self, workers: int) -> CallBatch | None:
        while feeds := list(self._feeds):  # a copy, made at once: others may add to it meanwhile
            feed = feeds[0]
            batch_size = self.batch_size(feed.next_kind())
            if self._under_way > batch_size.most_batches(workers):  # with the one to be taken
                return None
            del self._feeds[feed]
            size = max(feed.chunk, batch_size.choose(feed.waiting(), workers))
            keys, calls = feed.take(size)
            if keys:
                self._feeds[feed] = None  # behind the others
                return CallBatch(feed, keys, calls)
        return None

    def send_again(self, batch: CallBatch, *, one_by_one: bool) -> None:
        """Send the calls of a batch before any new ones; `one_by_one`: in a batch each."""
        if batch.size:
            self._again.append((batch, one_by_one))

    def batch_answered(self) -> None:
        """Count one batch less under way: its calls are answered, or to be sent again."""
        with self._lock:
            self._under_way -= 1

    def fail(self, error: BaseException) -> None:
        """Answer all calls that wait, and that will come, with this error. Any thread."""
        with self._lock:
            self._under_way += 1  # as one batch, until all are answered
            self._error = error
            batches = [batch for batch, _ in self._again]
            self._again.clear()
            while self._feeds:
                feed, _ = self._feeds.popitem()
                while waiting := feed.waiting():  # calls of one kind at a time
                    batches.append(CallBatch(feed, *feed.take(waiting)))
        for batch in batches:
            for key in batch.keys:
                batch.feed.failed(key, WorkersGone(error))
        for batch in batches:
            batch.feed.notify_waiters()
        self.batch_answered()
