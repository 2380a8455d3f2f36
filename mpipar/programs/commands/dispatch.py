"""The queue of commands: which command goes to the workers next, and what has come back.

    commands --supply--> stream --> workers --> deliver --> take --> the program
    waiting again <---------------------------- retry -----------------'

`supply`, `deliver` and `ended` are called by the stream's thread, the rest by the program's.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from mpipar.programs.commands.command_stage import CommandTask, CommandTry
from mpipar.runtime.stage import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mpipar.programs.commands.command_stage import Place
    from mpipar.programs.commands.listing import Command
    from mpipar.runtime.stage import GivenUpTask

__all__ = ["BACKLOG_BYTES", "Dispatch", "PendingCommand"]

BACKLOG_BYTES: Final = 64 << 20
"""No command is handed out while this much output waits to be written."""


@dataclass
class PendingCommand:
    """A command that is not done yet."""

    command: Command
    tries_before: int = 0  # in earlier runs
    tries: int = 0  # in this run
    avoid: tuple[Place, ...] = ()  # workers on which the command has failed
    log_name: str = ""  # of the file for its output; empty: of its line


class CommandSlots(Protocol):
    """How many commands can run at a time: the part of a Pool that `Dispatch` looks at."""

    @property
    def workers(self) -> int:
        """Workers there are now."""

    threads: int
    """Commands at a time on each worker."""


class Dispatch:
    """The commands of a run on their way to the workers and back. Safe to use from any thread.

    To the runtime, this is a `StreamClient`.
    """

    def __init__(
        self, commands: Iterable[PendingCommand], slots: CommandSlots, *, prefetch: bool
    ) -> None:
        """`prefetch`: whether workers are handed more than they can start at once."""
        self._waiting = deque(commands)
        self._slots = slots
        self._prefetch = prefetch
        self._handed_out: dict[int, PendingCommand] = {}  # by task id
        self._next_id = 0
        self._results: list[tuple[PendingCommand, CommandTry | GivenUpTask]] = []
        self._bytes = 0  # of output in `_results`
        self._unhandled = 0  # results delivered, and not yet reported to `handled`
        self._halted = False
        self._ended = False  # the stream
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    # The stream's thread

    def supply(self, limit: int) -> Sequence[Task]:
        """Return up to `limit` tasks for workers that have room."""
        with self._changed:
            if self._halted or self._bytes > BACKLOG_BYTES:
                return []
            if not self._prefetch:
                limit = min(limit, self._capacity - len(self._handed_out) - self._unhandled)
            return [self._next_task() for _ in range(min(limit, len(self._waiting)))]

    @property
    def _capacity(self) -> int:
        """How many commands can run at a time."""
        return self._slots.workers * self._slots.threads

    def _next_task(self) -> Task:
        pending = self._waiting.popleft()
        pending.tries += 1
        try_number = pending.tries_before + pending.tries
        command = pending.command
        task = Task(
            self._next_id, None, CommandTask(command.line, command.text, try_number, pending.avoid)
        )
        self._handed_out[task.id] = pending
        self._next_id += 1
        return task

    def deliver(self, results: Sequence[tuple[int, Any]]) -> None:
        """Take results by task id."""
        with self._changed:
            for task, result in results:
                self._results.append((self._handed_out.pop(task), result))
                self._bytes += _output_bytes(result)
            self._unhandled += len(results)
            self._changed.notify_all()

    def ended(self, error: BaseException | None) -> None:
        """The stream has ended; `error` is why, if it ended too early."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    # The program's thread

    def take(self, seconds: float) -> list[tuple[PendingCommand, CommandTry | GivenUpTask]]:
        """Return the results so far, waiting up to `seconds` for the first.

        raises   the error that ended the stream, once all results are taken
        """
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._ended, seconds)
            taken, self._results, self._bytes = self._results, [], 0
            if not taken and self._error is not None:
                raise self._error
            return taken

    def retry(self, pending: PendingCommand, failed_at: Place | None) -> None:
        """Put a command back, first in the queue, for a worker on which it has not failed.

        failed_at   where it failed last; None: it has failed on all workers, so take any
        """
        with self._changed:
            avoid = {*pending.avoid, failed_at} if failed_at else set()
            pending.avoid = tuple(avoid) if len(avoid) < self._slots.workers else ()
            self._waiting.appendleft(pending)

    def handled(self, count: int) -> None:
        """Report that `count` results are recorded, and their commands put back where due."""
        with self._changed:
            self._unhandled -= count

    def halt(self) -> None:
        """Hand out no more commands."""
        with self._changed:
            self._halted = True

    @property
    def running(self) -> int:
        """How many commands the workers run now."""
        return min(len(self._handed_out), self._capacity)

    @property
    def is_finished(self) -> bool:
        """Whether all results are handled, and no command waits or may be handed out any more."""
        with self._changed:
            in_work = self._handed_out or self._unhandled
            return not in_work and (self._halted or not self._waiting)


def _output_bytes(result: object) -> int:
    return len(result.end.head) + len(result.end.tail) if isinstance(result, CommandTry) else 0
