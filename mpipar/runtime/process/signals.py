"""Signals that ask a run to end: rank 0 ends the run soon, with a verdict on disk, and says why.

    signal --> noted, the grace begins             (rank 0, main thread)
                 |-- check() at a safe point, in any thread: raises StoppedError
                 |-- the grace is over, or a second signal: raised wherever the main thread is,
                 |                                          within `postponed` at the end of that
                 '-- settle(): the end has begun; nothing is raised in the main thread any more

A worker ignores these signals, because rank 0 stops it; but after SIGTERM it ends itself if rank 0
does not stop it in time. Handlers never wake another thread: if the main thread is just clearing
an Event, the handler would wait for the Event's lock for ever. A loop's pause is short, and its
next turn checks.

A process that is forked from this one, by a script or by a task, has the handlers of before: these
here are for a rank of the job, and would keep such a process from being ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mpipar.errors import CancelledError, StoppedError
from mpipar.runtime.process import environment
from mpipar.runtime.process.signal_wakeup import interrupted_waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "Meaning",
    "check",
    "handled",
    "ignore_interrupts",
    "leave_to_rank_0",
    "postponed",
    "raised_at_once",
    "settle",
]

SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
Meaning = Callable[[signal.Signals], signal.Signals]
Handler: TypeAlias = Callable[[int, Any], None] | int
ECHO_SECONDS: Final = 1.0  # within which a second signal counts as the first: both are one order
WORKER_SECONDS: Final = 10.0  # within which rank 0 stops a worker that got SIGTERM


class _StopRequest:
    """The first signal that asked for the end, and whether the main thread has yet to raise it."""

    def __init__(self, meaning: Meaning, grace: float) -> None:
        self.first: signal.Signals | None = None
        self._meaning = meaning
        self._grace = grace
        self._since = 0.0
        self._settled = False
        self._postponed = 0
        self._due = False

    def on_signal(self, number: int, _frame: object) -> None:
        if self._settled:
            return
        if self.first is None:
            self.first = self._meaning(signal.Signals(number))
            self._since = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, self._grace)
        elif number == signal.SIGALRM or time.monotonic() - self._since > ECHO_SECONDS:
            self._raise_soon()

    def _raise_soon(self) -> None:
        if self._postponed:
            self._due = True
            return
        self.settle()
        raise self.error()

    def error(self) -> StoppedError:
        assert self.first is not None
        kind = CancelledError if self.first == signal.SIGINT else StoppedError
        return kind(f"stopped by {self.first.name}")

    def settle(self) -> None:
        self._settled = True
        self._due = False
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def postpone(self) -> None:
        self._postponed += 1

    def end_postponing(self) -> None:
        self._postponed -= 1
        if self._due and not self._postponed:
            self._raise_soon()


_current: _StopRequest | None = None
_installed: dict[int, tuple[Handler, Any]] = {}  # by signal: our handler, and that of before


def _install(number: int, handler: Handler) -> None:
    """Have a signal handled; a process that is forked from this one gets the handler of before."""
    _register_for_forks()
    _, before = _installed.get(number, (handler, signal.getsignal(number)))
    signal.signal(number, handler)
    _installed[number] = handler, before


def _restore(numbers: Iterable[int]) -> None:
    """Have signals handled as before, in this process too."""
    for number in numbers:
        _, before = _installed.pop(number)
        signal.signal(number, signal.SIG_DFL if before is None else before)


@cache
def _register_for_forks() -> None:
    os.register_at_fork(after_in_child=_restore_after_fork)


def _restore_after_fork() -> None:
    """Have all signals handled as before, but those for which a user's code has set a handler."""
    global _current  # noqa: PLW0603 - of the whole process
    _current = None
    installed = dict(_installed)
    _installed.clear()
    signal.set_wakeup_fd(-1)  # the pipe belongs to the parent, too
    for number, (handler, before) in installed.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, signal.SIG_DFL if before is None else before)


def as_sent(arrived: signal.Signals) -> signal.Signals:
    """The meaning of a signal that no launcher has passed on: itself."""
    return arrived


@contextmanager
def raised_at_once(meaning: Meaning = as_sent) -> Iterator[None]:
    """Raise signals at once, wherever the main thread is; for a user's code without safe points.

    ^C is a KeyboardInterrupt, every other signal a StoppedError. For the main thread of rank 0.

    meaning   signal that arrives -> the one that was meant, where it came through a launcher
    """

    def on_signal(number: int, _frame: object) -> None:
        arrived = meaning(signal.Signals(number))
        if arrived == signal.SIGINT:
            raise KeyboardInterrupt
        raise StoppedError(f"stopped by {arrived.name}")

    numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    with interrupted_waits(numbers):
        installed = [n for n in numbers if _in_main_thread()]
        for number in installed:
            _install(number, on_signal)
        try:
            yield
        finally:
            _restore(installed)


@contextmanager
def handled(meaning: Meaning = as_sent) -> Iterator[None]:
    """Have signals end the run in good order; on rank 0. Does nothing in another thread than main.

    meaning   signal that arrives -> the one that was meant, where it came through a launcher
    """
    global _current  # noqa: PLW0603 - signal handlers belong to the whole process
    if not _in_main_thread() or _current is not None:
        yield
        return
    numbers = [*(n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN), signal.SIGALRM]
    with interrupted_waits(numbers):
        _current = stop = _StopRequest(meaning, environment.grace())
        for number in numbers:
            _install(number, stop.on_signal)
        try:
            yield
        finally:
            stop.settle()
            _restore(numbers)
            _current = None


def check() -> None:
    """Raise StoppedError if a signal has asked for the end. A safe point; in any thread."""
    stop = _current
    if stop is not None and stop.first is not None:
        if _in_main_thread():
            stop.settle()
        raise stop.error()


@contextmanager
def postponed() -> Iterator[None]:
    """Raise at the end of this block what would be raised anywhere in it. For the main thread."""
    stop = _current if _in_main_thread() else None
    if stop is None:
        yield
        return
    stop.postpone()
    try:
        yield
    finally:
        stop.end_postponing()


def settle() -> None:
    """Have no signal raise anything in the main thread any more, since the end has begun."""
    if _current is not None:
        _current.settle()


def leave_to_rank_0() -> None:
    """Ignore signals on a worker, because rank 0 gets them too and stops its workers.

    SIGTERM may have come to this worker alone, from a person or a node's watchdog. So it ends this
    worker if rank 0 has not done so within WORKER_SECONDS.
    """
    if not _in_main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            # A function, not SIG_IGN: programs that a task starts would inherit that.
            _install(number, _end_later if number == signal.SIGTERM else _ignore)


def ignore_interrupts() -> None:
    """Ignore ^C in a process whose parent decides what it means, but not in what it forks."""
    _install(signal.SIGINT, signal.SIG_IGN)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _end_later(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGALRM, _end_now)
    signal.setitimer(signal.ITIMER_REAL, WORKER_SECONDS)


def _end_now(_number: int, _frame: object) -> None:
    sys.stderr.write(f"mpipar: process {os.getpid()} ends: SIGTERM, and no word from rank 0\n")
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
