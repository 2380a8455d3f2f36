"""Which command goes to the workers next, and what they have answered.

    commands --supply--> stream --> workers --> deliver --> `arrived` --> the program
    waiting again <---------------------------- again --------------------'

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

__all__ = ["BACKLOG_BYTES", "Dispatch", "PendingCommand", "UnrunCommand"]

BACKLOG_BYTES: Final = 64 << 20
"""No command is handed out while this much output waits to be written."""


@dataclass
class PendingCommand:
    """A command that is not done yet."""

    command: Command
    tries_before: int = 0  # in earlier runs
    tries: int = 0  # in this run
    avoid: tuple[Place, ...] = ()


class UnrunCommand(Protocol):
    """A failure as the runtime reports it: the task itself could not be run."""

    kind: str
    text: str


class CommandSlots(Protocol):
    """What is to be known of the workers: how many there are now, and commands at a time each."""

    @property
    def workers(self) -> int: ...

    threads: int


class Dispatch:
    """The commands of a run on their way to the workers and back. Any thread may call."""

    def __init__(
        self, commands: Iterable[PendingCommand], crew: CommandSlots, *, ahead: bool
    ) -> None:
        """`ahead`: whether workers are handed more than they can start at once."""
        self._waiting = deque(commands)
        self._crew = crew
        self._ahead = ahead
        self._out: dict[int, PendingCommand] = {}
        self._next_id = 0
        self._arrived: list[tuple[PendingCommand, CommandTry | UnrunCommand]] = []
        self._bytes = 0  # of output in `_arrived`
        self._unsettled = 0  # have arrived, and the program has not yet said what follows
        self._halted = False
        self._over = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    # The stream's thread

    def supply(self, limit: int) -> Sequence[Task]:
        """Tasks for workers that have room."""
        with self._changed:
            if self._halted or self._bytes > BACKLOG_BYTES:
                return []
            if not self._ahead:
                limit = min(limit, self._slots - len(self._out) - self._unsettled)
            return [self._task() for _ in range(min(limit, len(self._waiting)))]

    @property
    def _slots(self) -> int:
        return self._crew.workers * self._crew.threads

    def _task(self) -> Task:
        pending = self._waiting.popleft()
        pending.tries += 1
        number = pending.tries_before + pending.tries
        command = pending.command
        task = Task(
            self._next_id, None, CommandTask(command.line, command.text, number, pending.avoid)
        )
        self._out[task.id] = pending
        self._next_id += 1
        return task

    def deliver(self, results: Sequence[tuple[int, Any]]) -> None:
        """Results by task id."""
        with self._changed:
            for task, result in results:
                self._arrived.append((self._out.pop(task), result))
                self._bytes += _size(result)
            self._unsettled += len(results)
            self._changed.notify_all()

    def ended(self, error: BaseException | None) -> None:
        """The stream is over; an error says why too early."""
        with self._changed:
            self._over, self._error = True, error
            self._changed.notify_all()

    # The program's thread

    def take(self, seconds: float) -> list[tuple[PendingCommand, CommandTry | UnrunCommand]]:
        """What has arrived; waits so long for the first. Raises what has ended the stream."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._over, seconds)
            taken, self._arrived, self._bytes = self._arrived, [], 0
            if not taken and self._error is not None:
                raise self._error
            return taken

    def again(self, pending: PendingCommand, failed_at: Place | None) -> None:
        """Try once more, next; elsewhere if there is a worker where it has not failed.

        failed_at   None: there is no such worker, take any
        """
        with self._changed:
            avoid = {*pending.avoid, failed_at} if failed_at else set()
            pending.avoid = tuple(avoid) if len(avoid) < self._crew.workers else ()
            self._waiting.appendleft(pending)

    def settled(self, count: int) -> None:
        """So many of those taken have been dealt with."""
        with self._changed:
            self._unsettled -= count

    def halt(self) -> None:
        """Hand out no more."""
        with self._changed:
            self._halted = True

    @property
    def running(self) -> int:
        """How many the workers have now."""
        return min(len(self._out), self._slots)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be expected any more."""
        with self._changed:
            return not self._out and not self._unsettled and (self._halted or not self._waiting)


def _size(result: object) -> int:
    return len(result.ended.head) + len(result.ended.tail) if isinstance(result, CommandTry) else 0
