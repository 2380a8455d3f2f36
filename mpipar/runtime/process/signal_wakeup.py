"""The main thread handles a signal soon, also if the signal did not interrupt what it waits for.

    signal --> C's handler --number of the signal--> waker thread --SIGURG--> main thread

Python runs its handlers in the main thread, between two steps of Python code. A main thread that
waits for a lock or for a process takes no step until a signal interrupts the wait. A signal does
not interrupt the wait if it arrives just before (Python does not check between releasing the
interpreter and waiting), or if another thread gets it. The handler would then run at the end of the
wait, which may never come.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["interrupted_waits"]

WAKE_SIGNAL: Final = signal.SIGURG  # ignored by default, so it does no harm in any program
AFTER_SECONDS: Final = (0.01, 0.1, 1.0)  # three times, since each may come just before a wait, too
END: Final = 0  # no signal's number
BYTES: Final = 512


@contextmanager
def interrupted_waits(numbers: Collection[int]) -> Iterator[None]:
    """Have waits of the main thread interrupted after these signals, whichever thread gets them.

    Does nothing in another thread, and nothing where SIGURG or Python's wakeup descriptor is in use
    already.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(WAKE_SIGNAL) != signal.SIG_DFL or _has_wakeup_fd():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    words = (reading, numbers)
    waker = threading.Thread(target=_wake_main_thread, args=words, name="waker", daemon=True)
    waker.start()
    signal.signal(WAKE_SIGNAL, _do_nothing)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        now = signal.set_wakeup_fd(-1)
        if now not in {writing, -1}:  # of an event loop that was started meanwhile
            signal.set_wakeup_fd(now)
        if waker.is_alive():  # not in a process forked from this one, which shares the pipe
            os.write(writing, bytes([END]))
            waker.join()
        signal.signal(WAKE_SIGNAL, signal.SIG_DFL)
        os.close(writing)
        os.close(reading)


def _has_wakeup_fd() -> bool:
    """Whether Python writes the numbers of signals to a descriptor already."""
    now = signal.set_wakeup_fd(-1)
    if now != -1:
        signal.set_wakeup_fd(now)
    return now != -1


def _wake_main_thread(reading: int, numbers: Collection[int]) -> None:
    """Interrupt the main thread after each of these signals, until END is written.

    reading   descriptor from which the numbers of signals are read
    """
    main = threading.main_thread().ident
    assert main is not None
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    due: list[float] = []
    while True:
        wait = max(0.0, due[0] - time.monotonic()) * 1000 if due else None
        if not poll.poll(wait):
            due.pop(0)
            signal.pthread_kill(main, WAKE_SIGNAL)
            continue
        arrived = os.read(reading, BYTES)
        if END in arrived:
            return
        if not set(numbers).isdisjoint(arrived):
            now = time.monotonic()
            due = [now + seconds for seconds in AFTER_SECONDS]


def _do_nothing(_number: int, _frame: object) -> None:
    """Handle a signal that only has to interrupt a wait."""
