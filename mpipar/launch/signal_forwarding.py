"""The process that the user started, while mpirun or srun runs the ranks below it.

    ^C, kill, job script --> this process --SIGUSR1--> mpirun --SIGUSR1--> rank 0: ends the run
                                  '----- note: "SIGTERM" -->  <-- note: "code 75" ----'

Open MPI's mpirun kills all ranks half a second after SIGINT or SIGTERM; SIGUSR1 every launcher
passes on. And a launcher may end with a code that is not rank 0's (0 after a lost node), so rank 0
tells its own. The note is a file: it works where rank 0 is on this host, as it is but under srun
from elsewhere; there the launcher's code and SIGUSR1 have to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mpipar.errors import CancelledError, RequeueError, StoppedError, UnavailableError
from mpipar.runtime.process.environment import grace
from mpipar.runtime.process.launcher_variables import RELAUNCHED
from mpipar.runtime.process.signal_wakeup import nudged
from mpipar.runtime.process.signals import ECHO_SECONDS, SIGNALS
from mpipar.system import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["meant", "ordered", "supervise", "tell_begin", "tell_end"]

BEGUN, CODE = "begun", "code"
AFTER_GRACE: Final = 20.0  # seconds for rank 0 to write its verdict and to see the workers off
BY_FORCE: Final = 10.0  # seconds from SIGTERM to SIGKILL
ORDERS_TO_RANKS: Final = 2  # a good end, an end at once; the third is for the launcher
OWN_CODES: Final = range(64, 75)  # of errors that no signal causes


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher to its end; return the exit code of rank 0, as far as that can be known."""
    sys.stdout.flush()
    sys.stderr.flush()
    with _note() as note, _ForwardedSignals(note) as orders:
        try:
            launcher = subprocess.Popen(
                command,
                env={**environment, RELAUNCHED: str(note)},
                # Beside a shell that reads the same terminal, its input would be taken away.
                stdin=subprocess.DEVNULL if os.isatty(0) else None,
                start_new_session=True,  # the terminal's ^C is for this process alone
                preexec_fn=_ends_with_its_parent(),  # noqa: PLW1509 - no threads here
            )
        except OSError as error:
            raise UnavailableError(f"{command[0]} cannot be run: {error.strerror}") from error
        orders.start(launcher)
        with nudged((*SIGNALS, signal.SIGALRM)):  # only now: it is a thread
            code = launcher.wait()
        return _judge(code, note.read_text(encoding="utf-8").splitlines(), orders.first)


class _ForwardedSignals:
    """Signals on their way to the ranks; rougher ones when the launcher does not end."""

    def __init__(self, note: Path) -> None:
        self.first: signal.Signals | None = None
        self._note = note
        self._launcher: subprocess.Popen[bytes] | None = None
        self._heard = 0
        self._at = 0.0
        self._late = False
        self._grace = grace()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, launcher: subprocess.Popen[bytes]) -> None:
        """There is a launcher now; tell it what was heard before."""
        self._launcher = launcher
        if self.first is not None:
            self._tell(signal.SIGUSR1)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._heard and now - self._at < ECHO_SECONDS:
            return
        if self.first is None:
            self.first = signal.Signals(number)
            _add(self._note, self.first.name)
        self._heard += 1
        self._at = now
        signal.setitimer(signal.ITIMER_REAL, self._grace + AFTER_GRACE, BY_FORCE)
        self._tell(signal.SIGUSR1 if self._heard <= ORDERS_TO_RANKS else signal.SIGTERM)

    def _press(self, _number: int, _frame: object) -> None:
        self._tell(signal.SIGKILL if self._late else signal.SIGTERM)
        self._late = True

    def _tell(self, number: int) -> None:
        if self._launcher is not None:
            self._launcher.send_signal(number)


# The note


@contextmanager
def _note() -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix="mpipar-note-")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def tell_begin() -> None:
    """On rank 0: it has begun, so an end without a word is no good end."""
    _add(_own_note(), BEGUN)


def tell_end(code: int) -> None:
    """On rank 0: the exit code, of which a launcher may yet make another."""
    _add(_own_note(), f"{CODE} {code}")


def meant(heard: signal.Signals) -> signal.Signals:
    """On rank 0: the signal that this one, passed on by the launcher, was in the beginning."""
    return ordered() or heard


def ordered() -> signal.Signals | None:
    """On rank 0: the signal that asked for the end, also if no launcher passed it on so early."""
    with suppress(OSError):
        for line in _own_note().read_text(encoding="utf-8").splitlines():
            if line in signal.Signals.__members__:
                return signal.Signals[line]
    return None


def _own_note() -> Path:
    return Path(os.environ.get(RELAUNCHED, ""))


def _add(note: Path, line: str) -> None:
    """Add a line to the note, if it is on this host."""
    with suppress(OSError):
        if note.is_file():
            with note.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _judge(code: int, note: Sequence[str], stopped_by: signal.Signals | None) -> int:
    """The exit code of this process, from the launcher's, rank 0's and the signal."""
    told = [line.removeprefix(f"{CODE} ") for line in note if line.startswith(CODE)]
    if told:
        return int(told[-1])
    if stopped_by is not None and code not in OWN_CODES:
        kind = CancelledError if stopped_by == signal.SIGINT else StoppedError
        raise kind(f"stopped by {stopped_by.name}")
    if BEGUN in note and code == 0:
        raise RequeueError(
            "the launcher ended well, but rank 0 has not come to its end: a node was lost, or rank "
            "0 was killed; resume the run"
        )
    return 128 - code if code < 0 else code


def _ends_with_its_parent() -> Callable[[], None]:
    """What makes Linux end the launcher when this process is killed; for between fork and exec."""
    process = os.getpid()

    def arrange() -> None:
        if not end_with_parent(process, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange
