"""The router of calls: it brings the calls of all queues to the workers of one pool, and back.

    feed --take--> CallQueue --batches--> CallRouter --supply--> Stream --> CallStage on a worker
    feed <--returned, failed------------- CallRouter <--deliver-- Stream <-- BatchReply

The router has one long-lived stream, of one stage. The queues have their turn one after the other
when a worker has room, so none waits for the calls of another.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mpipar.errors import UsageError
from mpipar.interfaces.calls.answers import GivenUp, Raised, Returned, WorkersGone
from mpipar.interfaces.calls.batches import LONGEST_BATCH_SECONDS, CallBatch, pack_calls
from mpipar.interfaces.calls.call_queue import CallQueue
from mpipar.interfaces.calls.call_stage import (
    BatchReply,
    CallStage,
    is_setup_of_main,
    setup_block,
    with_open_queues,
)
from mpipar.interfaces.calls.definition_blocks import DefinitionBlocks
from mpipar.interfaces.calls.definitions import names_needed_by
from mpipar.interfaces.calls.pickling import is_of_main
from mpipar.interfaces.calls.user_main import UserMain
from mpipar.runtime.stage import Policy, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mpipar.interfaces.calls.batches import PackedCalls
    from mpipar.interfaces.calls.definitions import Definition
    from mpipar.interfaces.calls.feeds import CallFeed
    from mpipar.runtime.pool import Pool
    from mpipar.runtime.stream import Stream

__all__ = ["CallRouter"]


class CallRouter:
    """Brings calls to the workers of one pool; for any number of queues, from any thread."""

    def __init__(self, pool: Pool, policy: Policy) -> None:
        """`policy` is that of queues which do not ask for another."""
        self._pool = pool
        self._policy = policy
        self._open_lock = threading.Lock()  # held while a queue is opened or the router closed
        self._lock = threading.Condition()  # of the five dicts; notified when calls are answered
        self._queues: dict[int, CallQueue] = {}  # not over
        self._ready: dict[int, CallQueue] = {}  # may have something to send
        self._setup_blocks: dict[int, dict[str, NDArray[Any]]] = {}
        self._under_way: dict[int, tuple[CallQueue, CallBatch]] = {}  # by task
        self._blocks: dict[int, int | None] = {}  # by task under way: its block
        self._answered_feeds: dict[CallFeed, None] = {}  # whose waiters are not notified yet
        self._queue_numbers = itertools.count()
        self._task_numbers = itertools.count()
        self._supplying = False
        self._closed = False
        self._error: BaseException | None = None
        self._stream: Stream | None = None
        self._stream_policy: Policy | None = None
        self._main: UserMain | None = None  # as the workers of the stream know it
        self._definitions: DefinitionBlocks | None = None  # what they lack of it
        pool.serve(self)

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        return self._pool.workers

    @property
    def is_delivering(self) -> bool:
        """Whether this thread brings the answers, and so must not wait for one."""
        return self._stream is not None and self._stream.is_current_thread

    # Of any thread

    def open_queue(
        self,
        setup: Callable[[], Any] | None = None,
        *,
        passes_setup: bool = False,
        limit: int | None = None,
        needs: Sequence[Any] = (),
        **policy: Any,
    ) -> CallQueue:
        """Open a queue of calls that share a setup.

        setup         run at most once on each worker, before its first call of the queue
        passes_setup  functions get what the setup returns, a sequence, before their own arguments
        limit         batches under way at once
        needs         what the setup has pickled inside it
        policy        of `Policy`: tries, deaths, timeout, isolate
        """
        block = None if setup is None else setup_block(setup, passes_setup=passes_setup)
        with self._open_lock:
            self.check()
            self._start(replace(self._policy, **policy))
            number = next(self._queue_numbers)
            needs_main = block is not None and is_setup_of_main(block)
            names = names_needed_by([setup, *needs]) if needs_main else ()
            queue = CallQueue(number, has_setup=block is not None, limit=limit, names=names)
            with self._lock:
                self._queues[number] = queue
                if block is not None:
                    self._setup_blocks[number] = block
            return queue

    def _start(self, policy: Policy) -> None:
        """Have a stream of that policy."""
        if self._stream is not None:
            if policy == self._stream_policy:
                return
            if self._queues:
                raise UsageError(
                    "contexts and executors that are open at once on the same workers must agree "
                    f"on isolate, tries, deaths and timeout: {self._stream_policy} is open, not "
                    f"{policy}"
                )
            self._stream.close()
        main = self._main = UserMain.here()
        self._definitions = DefinitionBlocks(main)
        self._stream_policy = policy
        self._stream = self._pool.stream(CallStage(main), {}, self, policy=policy)

    def check(self) -> None:
        """Raise what keeps new calls from being made."""
        if self._error is not None:
            raise self._error
        if self._closed:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def offer(self, queue: CallQueue, feed: CallFeed) -> None:
        """Have the calls of a feed made, from now on until it has none."""
        if queue.closed:
            raise RuntimeError("the context is closed")
        self.check()
        if not queue.has_surroundings and self._main is not None:
            queue.set_surroundings(self._main)
            if self._definitions is not None:
                self._definitions.definitions.look_again()
        queue.offer(feed)
        with self._lock:
            if queue.number in self._ready:
                return  # the stream was notified, and has not asked this queue yet
            self._ready[queue.number] = queue
        if self._error is not None:
            self.fail_queue(queue, self._error)
        elif self._stream is not None:
            self._stream.notify()

    def close_queue(self, queue: CallQueue) -> None:
        """Take no more calls. Those that were taken are answered; then workers drop the setup."""
        queue.closed = True
        self.release(queue)

    def fail_queue(self, queue: CallQueue, error: BaseException) -> None:
        """Answer all calls that wait in a queue, and that will come, with this error."""
        queue.fail(error)
        self.release(queue)

    def release(self, queue: CallQueue) -> None:
        """Forget a queue if it is over: until then a worker may ask for its setup."""
        if queue.is_over:
            with self._lock:
                self._queues.pop(queue.number, None)
                self._setup_blocks.pop(queue.number, None)
            if self._definitions is not None:
                self._definitions.release(queue.number)
            queue.finished.set()

    def close(self, *, drop: bool = False) -> None:
        """Let the workers go, after all calls have been answered; or `drop` those calls."""
        with self._open_lock:
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
        return not (self._ready or self._under_way or self._supplying)

    # Of the pool's reader

    def read(self, block: int) -> dict[str, NDArray[Any]]:
        """Return the block that sets up a queue on a worker; without a setup if it is released.

        A worker may have asked for the block of a task that another worker has finished.
        """
        with self._lock:
            found = self._setup_blocks.get(block, {})
            if not found and self._definitions is not None:
                queue, definitions = self._definitions.read(block)
                found = {**self._setup_blocks.get(queue, {}), **definitions}
            return with_open_queues(found, self._setup_blocks)

    # Of the stream

    def supply(self, limit: int) -> Sequence[Task]:
        """Return up to `limit` tasks, each a batch of calls, of the queues in turn."""
        tasks = list[Task]()
        with self._lock:
            self._supplying = True
        try:
            while len(tasks) < limit and (queue := self._next_ready()) is not None:
                batch = queue.take(self.workers or 1)
                if batch is None:
                    self.release(queue)
                    continue
                with self._lock:
                    self._ready[queue.number] = queue  # behind the others
                tasks += self._task_of(queue, batch)
        finally:
            with self._lock:
                self._supplying = False
                self._lock.notify_all()
        self._notify_waiters()
        return tasks

    def _next_ready(self) -> CallQueue | None:
        with self._lock:
            number = next(iter(self._ready), None)
            return None if number is None else self._ready.pop(number)

    def _task_of(self, queue: CallQueue, batch: CallBatch) -> list[Task]:
        """Make a task of a batch; none if no call of it can be pickled."""
        packed, failed = pack_calls(batch.calls)
        if failed:
            self._answered_feeds[batch.feed] = None
            for position, error in failed:
                failure = Raised(error, "", "here, before it was sent")
                batch.feed.failed(batch.keys[position], failure)
            batch = batch.without({position for position, _ in failed})
            if not batch.size:
                self._batch_answered(queue)
                return []
        seconds = math.inf if batch.size <= batch.feed.chunk else LONGEST_BATCH_SECONDS
        number = next(self._task_numbers)
        definitions, block = self._definitions_for(queue, batch, packed)
        self._under_way[number] = queue, batch
        self._blocks[number] = block
        calls = packed.functions, packed.together, packed.pickled
        payload = queue.number, queue.surroundings, definitions, seconds, *calls
        return [Task(number, block, payload)]

    def _definitions_for(
        self, queue: CallQueue, batch: CallBatch, packed: PackedCalls
    ) -> tuple[Sequence[Definition], int | None]:
        """Return what a batch needs of the user's main module, and the block that it needs."""
        names = list(queue.names)
        if is_of_main(packed.pickled):
            plain = packed.together  # arguments that need nothing
            names += names_needed_by([batch.calls[0][0]] if plain else batch.calls)
        if not names or self._definitions is None:
            return (), queue.block
        number = next(self._queue_numbers)
        definitions, block = self._definitions.pack(queue.number, names, number, self._blocks)
        return definitions, queue.block if block is None else block

    def deliver(self, results: Sequence[tuple[int, Any]]) -> None:
        """Tell feeds what became of the calls of batches."""
        self._tell_losses()
        for task, result in results:
            queue, batch = self._under_way[task]
            self._answered_feeds[batch.feed] = None
            if isinstance(result, BatchReply):
                self._answer(queue, batch, result)
            elif batch.size > 1:
                queue.send_again(batch, one_by_one=True)  # to find the call that fails
            else:
                batch.feed.failed(batch.keys[0], GivenUp(result))
            self._batch_answered(queue)
            with self._lock:
                self._ready[queue.number] = queue
                del self._under_way[task]
                self._blocks.pop(task, None)
                self._lock.notify_all()
        self._notify_waiters()

    def _answer(self, queue: CallQueue, batch: CallBatch, reply: BatchReply) -> None:
        """Tell a feed what a worker replied; calls that were not made are sent again."""
        feed, values = batch.feed, reply.values()
        if values is not None:
            feed.returned(batch.keys[: len(values)], values)
            answered = len(values)
        else:
            answers = reply.answers(batch.size)
            answered = len(answers)
            for key, answer in zip(batch.keys, answers, strict=False):
                if isinstance(answer, Returned):
                    feed.returned((key,), (answer.value,))
                else:
                    feed.failed(key, answer)
        queue.batch_size(batch.kind).record(answered, reply.seconds)
        queue.send_again(batch.part(answered), one_by_one=False)

    def _batch_answered(self, queue: CallQueue) -> None:
        queue.batch_answered()
        self.release(queue)

    def _notify_waiters(self) -> None:
        feeds, self._answered_feeds = self._answered_feeds, {}
        for feed in feeds:
            feed.notify_waiters()

    def _tell_losses(self) -> None:
        """Say which workers died: their calls are made again, so nothing else tells the user."""
        for loss in self._pool.new_losses():
            sys.stderr.write(f"mpipar: {loss}\n")

    def ended(self, error: BaseException | None) -> None:
        """Fail all calls if the stream ended early: no more results will come."""
        self._tell_losses()
        if error is None and not self._under_way:
            return
        error = error or RuntimeError("the calls under way were dropped")
        with self._lock:
            self._error = error
            under_way, self._under_way = self._under_way, {}
            queues = list(self._queues.values())
            self._ready.clear()
            self._lock.notify_all()
        for queue, batch in under_way.values():
            self._answered_feeds[batch.feed] = None
            for key in batch.keys:
                batch.feed.failed(key, WorkersGone(error))
            self._batch_answered(queue)
        for queue in queues:
            self.fail_queue(queue, error)
        self._notify_waiters()
