"""A main thread that waits hears of signals, also of those that did not end its wait.

    signal --> C's handler --notes it; a byte--> nudger --SIGURG, after some time--> main thread

Python runs its handlers in the main thread, between two of its steps. One that waits for a lock or
a process takes no step until a signal interrupts the wait; one that arrives just before the wait
(no check is made between letting go of the interpreter and waiting), or that another thread gets,
does not. The handler would then run when the wait ends, which may be never.
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

__all__ = ["nudged"]

NUDGE: Final = signal.SIGURG  # passed over by who has no handler of it, so it never does harm
AFTER_SECONDS: Final = (0.01, 0.1, 1.0)  # a nudge may come just before a wait, too
END: Final = 0  # no signal's number
BYTES: Final = 512


@contextmanager
def nudged(numbers: Collection[int]) -> Iterator[None]:
    """Have the main thread's waits interrupted after these signals, whoever got them.

    Does nothing but in the main thread, and nothing where another one uses what it takes: SIGURG
    and Python's wakeup descriptor.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(NUDGE) != signal.SIG_DFL or _is_woken():
        yield
        return
    heard, waker = os.pipe()
    os.set_blocking(waker, False)
    nudger = threading.Thread(target=_nudge, args=(heard, numbers), name="nudger", daemon=True)
    nudger.start()
    signal.signal(NUDGE, _pass_over)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        yield
    finally:
        now = signal.set_wakeup_fd(-1)
        if now not in {waker, -1}:  # an event loop's, which has come since
            signal.set_wakeup_fd(now)
        if nudger.is_alive():  # not in a process forked from this one, which shares the pipe
            os.write(waker, bytes([END]))
            nudger.join()
        signal.signal(NUDGE, signal.SIG_DFL)
        os.close(waker)
        os.close(heard)


def _is_woken() -> bool:
    """Whether somebody hears of signals by the wakeup descriptor."""
    now = signal.set_wakeup_fd(-1)
    if now != -1:
        signal.set_wakeup_fd(now)
    return now != -1


def _nudge(heard: int, numbers: Collection[int]) -> None:
    """Be the nudger, until END is written.

    heard     where the numbers of signals are read
    """
    main = threading.main_thread().ident
    assert main is not None
    poll = select.poll()
    poll.register(heard, select.POLLIN)
    due: list[float] = []
    while True:
        wait = max(0.0, due[0] - time.monotonic()) * 1000 if due else None
        if not poll.poll(wait):
            due.pop(0)
            signal.pthread_kill(main, NUDGE)
            continue
        arrived = os.read(heard, BYTES)
        if END in arrived:
            return
        if not set(numbers).isdisjoint(arrived):
            now = time.monotonic()
            due = [now + seconds for seconds in AFTER_SECONDS]


def _pass_over(_number: int, _frame: object) -> None:
    """Nothing is to be done: that Python comes to run this is all."""
