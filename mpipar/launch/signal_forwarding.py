"""The process that the user started, while mpirun or srun runs the ranks below it.

    ^C, kill, job script --> this process --SIGUSR1--> mpirun --SIGUSR1--> rank 0: ends the run
                                  '----- note: "SIGTERM" -->  <-- note: "code 75" ----'

Open MPI's mpirun kills all ranks half a second after SIGINT or SIGTERM; but every launcher passes
SIGUSR1 on. And a launcher may end with another exit code than rank 0 (0 after a lost node), so
rank 0 writes its own into a file, the note. This works where rank 0 is on this host. Under srun it
may be on another one; there only the launcher's exit code and SIGUSR1 are used.
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
from mpipar.runtime.process.signal_wakeup import interrupted_waits
from mpipar.runtime.process.signals import ECHO_SECONDS, SIGNALS
from mpipar.system import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["note_begin", "note_end", "original_signal", "requested_end", "supervise"]

BEGUN, CODE = "begun", "code"
AFTER_GRACE: Final = 20.0  # seconds for rank 0 to write its verdict and to stop the workers
BY_FORCE: Final = 10.0  # seconds from SIGTERM to SIGKILL
SIGNALS_TO_RANKS: Final = 2  # to end the run well, then at once; the third goes to the launcher
OWN_CODES: Final = range(64, 75)  # exit codes of errors that no signal causes


def supervise(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a launcher to its end; return the exit code of rank 0, or else of the launcher.

    Raises UnavailableError if it cannot be run, StoppedError or CancelledError after a signal, and
    RequeueError if rank 0 was lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with _note() as note, _ForwardedSignals(note) as signals:
        try:
            launcher = subprocess.Popen(
                command,
                env={**environment, RELAUNCHED: str(note)},
                # Else the launcher would take input away from a shell that reads the same terminal.
                stdin=subprocess.DEVNULL if os.isatty(0) else None,
                start_new_session=True,  # the terminal's ^C is for this process alone
                preexec_fn=_end_with_this_process(),  # noqa: PLW1509 - no threads here
            )
        except OSError as error:
            raise UnavailableError(f"{command[0]} cannot be run: {error.strerror}") from error
        signals.start(launcher)
        with interrupted_waits((*SIGNALS, signal.SIGALRM)):  # after the fork: it starts a thread
            code = launcher.wait()
        return _judge(code, note.read_text(encoding="utf-8").splitlines(), signals.first_signal)


class _ForwardedSignals:
    """Forwards signals to the launcher: SIGUSR1 first, SIGTERM and SIGKILL if it does not end."""

    def __init__(self, note: Path) -> None:
        self.first_signal: signal.Signals | None = None
        self._note = note
        self._launcher: subprocess.Popen[bytes] | None = None
        self._count = 0
        self._latest = 0.0
        self._has_terminated = False
        self._grace = grace()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._escalate)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, launcher: subprocess.Popen[bytes]) -> None:
        """Begin to forward to this launcher, also a signal that has arrived before."""
        self._launcher = launcher
        if self.first_signal is not None:
            self._tell(signal.SIGUSR1)

    def _on_signal(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._count and now - self._latest < ECHO_SECONDS:
            return
        if self.first_signal is None:
            self.first_signal = signal.Signals(number)
            _add(self._note, self.first_signal.name)
        self._count += 1
        self._latest = now
        signal.setitimer(signal.ITIMER_REAL, self._grace + AFTER_GRACE, BY_FORCE)
        self._tell(signal.SIGUSR1 if self._count <= SIGNALS_TO_RANKS else signal.SIGTERM)

    def _escalate(self, _number: int, _frame: object) -> None:
        self._tell(signal.SIGKILL if self._has_terminated else signal.SIGTERM)
        self._has_terminated = True

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


def note_begin() -> None:
    """Note on rank 0 that it has begun; then an end without a noted exit code is a failure."""
    _add(_own_note(), BEGUN)


def note_end(code: int) -> None:
    """Note the exit code of rank 0, because a launcher may end with another one."""
    _add(_own_note(), f"{CODE} {code}")


def original_signal(arrived: signal.Signals) -> signal.Signals:
    """Return on rank 0 which signal the user sent, where the launcher passed on another one."""
    return requested_end() or arrived


def requested_end() -> signal.Signals | None:
    """Return on rank 0 the noted signal, also one that came before the launcher could forward."""
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
    """Decide on the exit code of this process.

    code         exit code of the launcher
    note         lines that rank 0 has written
    stopped_by   first signal that was forwarded
    """
    codes = [line.removeprefix(f"{CODE} ") for line in note if line.startswith(CODE)]
    if codes:
        return int(codes[-1])
    if stopped_by is not None and code not in OWN_CODES:
        kind = CancelledError if stopped_by == signal.SIGINT else StoppedError
        raise kind(f"stopped by {stopped_by.name}")
    if BEGUN in note and code == 0:
        raise RequeueError(
            "the launcher ended well, but rank 0 has not come to its end: a node was lost, or rank "
            "0 was killed; resume the run"
        )
    return 128 - code if code < 0 else code


def _end_with_this_process() -> Callable[[], None]:
    """Return a function for a child, before exec: it ends when this process is killed (Linux)."""
    process = os.getpid()

    def end_with_it() -> None:
        if not end_with_parent(process, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)

    return end_with_it
