"""A stream: a run to which tasks are added while it goes on, driven by a thread of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from mpipar.runtime.process import signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.runtime.loops.master_loop import MasterLoop
    from mpipar.runtime.machines.master import MasterRun
    from mpipar.runtime.stage import Task

AHEAD_SECONDS = 0.02
"""Each thread is given tasks for so many seconds ahead: longer than a message takes, but short
enough that a task which is cancelled has mostly not been given out yet."""
AHEAD_TASKS = 2, 2000  # limits of that, in tasks for each compute thread
LONG_SECONDS = 1.0
"""Tasks that take so long are not given out ahead: to wait for the next one costs little, and
while a task holds the interpreter lock no thief gets the tasks behind it."""


class StreamClient(Protocol):
    """The program's side of a stream: it has the tasks. Called in the stream's thread only."""

    def supply(self, limit: int) -> Sequence[Task]:
        """Return up to `limit` tasks to run now; each id is larger than those before."""
        ...

    def deliver(self, results: Sequence[tuple[int, Any]]) -> None:
        """Take results by task id, each once; a GivenUpTask is the result of a failed task."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Take note that the stream is over: the last call. `error`: what ended it early."""
        ...


class Stream:
    """A run under way in a thread of its own; no other thread may use the pool meanwhile."""

    def __init__(
        self, loop: MasterLoop, run: MasterRun, client: StreamClient, *, threads: int
    ) -> None:
        """`run` has just begun; each worker has so many compute threads."""
        self._loop = loop
        self._run = run
        self._client = client
        self._threads = threads
        self._supplied = 0
        self._delivered = 0
        self._notified = True  # whether the client may have tasks
        self._closing = self._aborting = False
        self._thread = threading.Thread(target=self._drive, name="stream", daemon=True)
        self._thread.start()

    # Of any thread

    def notify(self) -> None:
        """Ask the client for tasks soon: it has some, or is to be closed."""
        self._notified = True
        self._loop.transport.wake()

    def close(self) -> None:
        """End the stream when the client has no more tasks; return when all is delivered."""
        self._closing = True
        self.notify()
        self._thread.join()

    def abort(self) -> None:
        """End the stream at once; results that are not delivered yet are dropped."""
        self._aborting = True
        self.close()

    @property
    def is_over(self) -> bool:
        """Whether the client has been told that it ended."""
        return not self._thread.is_alive()

    @property
    def is_current_thread(self) -> bool:
        """Whether this is the thread in which the client is called."""
        return threading.current_thread() is self._thread

    # Of the stream's thread

    def _drive(self) -> None:
        error: BaseException | None = None
        loop, run = self._loop, self._run
        try:
            while not run.over and not self._aborting:
                signals.check()
                moved = loop.turn()
                moved = self._deliver() or moved
                moved = self._supply() or moved
                loop.transport.pause(moved=moved)
            self._deliver()
            error = run.error
        except BaseException as caught:  # the client must hear of it, whatever it is
            error = caught
        try:
            loop.end()
            loop.drain()
        except BaseException as caught:
            error = error or caught
        self._client.ended(error)

    def _deliver(self) -> bool:
        results = self._loop.take_results()
        if results:
            self._delivered += len(results)
            self._notified = True
            self._client.deliver(results)
        return bool(results)

    def _supply(self) -> bool:
        if not self._notified or self._run.over:
            return False
        room = self._window() - (self._supplied - self._delivered)
        if room <= 0:
            return False
        closing = self._closing  # before the client is asked: what came earlier is still taken
        self._notified = False
        tasks = self._client.supply(room)
        if tasks:
            self._notified = True
            self._supplied += len(tasks)
            self._loop.add(tasks)
        elif closing and not self._run.sealed:
            self._loop.seal()
        return bool(tasks)

    def _window(self) -> int:
        """Return how many tasks the workers are to have, together."""
        mean = self._run.mean_seconds
        fewest, most = AHEAD_TASKS
        if not self._delivered or mean > LONG_SECONDS:
            each = 1
        else:
            each = most if mean == 0 else min(most, max(fewest, int(AHEAD_SECONDS / mean)))
        return len(self._loop.ranks) * self._threads * each
