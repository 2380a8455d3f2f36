"""Signals that ask a run to end: rank 0 ends it soon and in good order, and says why.

    signal --> noted, the grace begins             (rank 0, main thread)
                 |-- check() at a safe point, in any thread: raises StoppedError
                 |-- the grace is over, or a second signal: raised wherever the main thread is,
                 |                                          but at the end of `postponed`
                 '-- settle(): it is being dealt with; nothing is raised in the main thread any more

A worker leaves it all to rank 0, which stops it; only if nothing comes of it does it end itself.
Handlers never wake another thread: an Event that the main thread is just clearing would be locked
for ever. A loop's pause is short, and its next turn checks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mpipar.errors import CancelledError, StoppedError
from mpipar.runtime.process import environment
from mpipar.runtime.process.signal_wakeup import nudged

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Meaning",
    "check",
    "handled",
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
ECHO_SECONDS: Final = 1.0  # one order often comes twice: by the scheduler, and by what it stops
WORKER_SECONDS: Final = 10.0  # for rank 0 to stop a worker that was told to end


class _StopRequest:
    """What has been heard, and whether the main thread still has to hear of it."""

    def __init__(self, meaning: Meaning, grace: float) -> None:
        self.noted: signal.Signals | None = None
        self._meaning = meaning
        self._grace = grace
        self._since = 0.0
        self._settled = False
        self._postponed = 0
        self._due = False

    def on_signal(self, number: int, _frame: object) -> None:
        if self._settled:
            return
        if self.noted is None:
            self.noted = self._meaning(signal.Signals(number))
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
        assert self.noted is not None
        kind = CancelledError if self.noted == signal.SIGINT else StoppedError
        return kind(f"stopped by {self.noted.name}")

    def settle(self) -> None:
        self._settled = True
        self._due = False
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0.0)

    def postpone(self) -> None:
        self._postponed += 1

    def go_on(self) -> None:
        self._postponed -= 1
        if self._due and not self._postponed:
            self._raise_soon()


_current: _StopRequest | None = None


def as_sent(heard: signal.Signals) -> signal.Signals:
    """No launcher stands between: a signal means itself."""
    return heard


@contextmanager
def raised_at_once(meaning: Meaning = as_sent) -> Iterator[None]:
    """Be rank 0 with code that has no safe points, a user's: raised as Python does, wherever it is.

    ^C is a KeyboardInterrupt, every other signal a StoppedError. For the main thread.
    """

    def on_signal(number: int, _frame: object) -> None:
        heard = meaning(signal.Signals(number))
        if heard == signal.SIGINT:
            raise KeyboardInterrupt
        raise StoppedError(f"stopped by {heard.name}")

    numbers = [n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
    with nudged(numbers):
        before = {n: signal.signal(n, on_signal) for n in numbers if _in_main_thread()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def handled(meaning: Meaning = as_sent) -> Iterator[None]:
    """Be rank 0: inside, signals end the run in good order. Does nothing but in the main thread.

    meaning   signal that arrives -> the one that was meant, where it came through a launcher
    """
    global _current  # noqa: PLW0603 - signal handlers belong to the whole process
    if not _in_main_thread() or _current is not None:
        yield
        return
    numbers = [*(n for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN), signal.SIGALRM]
    with nudged(numbers):
        _current = stop = _StopRequest(meaning, environment.grace())
        before = {number: signal.signal(number, stop.on_signal) for number in numbers}
        try:
            yield
        finally:
            stop.settle()
            for number, handler in before.items():
                signal.signal(number, handler)
            _current = None


def check() -> None:
    """Raise StoppedError if a signal has asked for the end. A safe point; in any thread."""
    stop = _current
    if stop is not None and stop.noted is not None:
        if _in_main_thread():
            stop.settle()
        raise stop.error()


@contextmanager
def postponed() -> Iterator[None]:
    """Hold what would be raised anywhere back to the end of this block. For the main thread."""
    stop = _current if _in_main_thread() else None
    if stop is None:
        yield
        return
    stop.postpone()
    try:
        yield
    finally:
        stop.go_on()


def settle() -> None:
    """The end is being dealt with: a signal no longer raises anything in the main thread."""
    if _current is not None:
        _current.settle()


def leave_to_rank_0() -> None:
    """Be a worker: pass over signals that rank 0 gets too and acts on.

    With SIGTERM nothing is certain: mpirun tells all ranks, a person or a node's watchdog only this
    one. So it ends this worker if rank 0 has not done so within some seconds.
    """
    if not _in_main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            # A function, not SIG_IGN: programs that a task starts would inherit that.
            signal.signal(number, _end_later if number == signal.SIGTERM else _pass_over)


def _pass_over(_number: int, _frame: object) -> None:
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
