"""How a command ends: errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.errors import ADVICE, LESS_MEMORY, MissingInputError, MpiparError, ProtocolError
from mpipar.launch.signal_forwarding import original_signal
from mpipar.runtime.process.signals import Meaning, handled, settle
from mpipar.version import __version__

if TYPE_CHECKING:
    from mpipar.launch import Launch

__all__ = ["attempt", "run_rank_zero"]

Handling = Callable[[Meaning], AbstractContextManager[None]]
INTERRUPTED: Final = 130
BUG: Final = 70
FAILED: Final = 74
FOLDER_GONE: Final = "the current folder has been removed or made anew: change into it again (cd)"
PLEASE_REPORT: Final = f"this is a bug in mpipar {__version__}; please report the lines above"


def attempt(action: Callable[[], int], rank: int) -> int:
    """Run an action; print any error; return the exit code.

    An error that users can correct is printed once, by rank 0. The other ranks then return 0: a
    launcher ends the whole job at the first other code, perhaps before rank 0 has printed.
    """
    try:
        code = action()
        sys.stdout.flush()
    except MpiparError as error:
        if rank > 0:
            return 0
        _print_error(f"mpipar: {error}")
        if isinstance(error, ProtocolError):
            _print_error(PLEASE_REPORT)
        code = error.exit_code
    except KeyboardInterrupt:
        if rank > 0:
            return 0
        _print_error("mpipar: interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has ended, e.g. `| head`: nothing can be written, even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (OSError, MemoryError) as error:
        message, code = _outside_cause(error)
        _print_error(message or f"{traceback.format_exc()}{PLEASE_REPORT}")
    except Exception:
        _print_error(f"{traceback.format_exc()}{PLEASE_REPORT}")
        code = BUG
    return code


def _outside_cause(error: OSError | MemoryError) -> tuple[str, int]:
    """Return message and exit code of what the machine refused; '' if that is not known.

    Most places know better what they were doing, and raise an error of `mpipar.errors` themselves.
    """
    if isinstance(error, MemoryError):
        return (
            f"mpipar: out of memory: {str(error) or 'no more could be had'}; {LESS_MEMORY}",
            FAILED,
        )
    reason = error.strerror or str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name]
    if names and isinstance(error.filename, str | bytes | os.PathLike):
        advice = ADVICE.get(error.errno or 0, "make sure that it is there and may be used")
        return f"mpipar: {' to '.join(names)}: {reason}; {advice}", FAILED
    if isinstance(error, FileNotFoundError) and _folder_is_gone():
        return f"mpipar: {FOLDER_GONE}", MissingInputError.exit_code
    if error.errno in ADVICE:
        return f"mpipar: {reason}; {ADVICE[error.errno]}", FAILED
    return "", BUG


def _folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def run_rank_zero(job: Launch, action: Callable[[], int], handling: Handling = handled) -> int:
    """Run the action on rank 0, print any error, and only then let the other ranks end.

    handling   how signals end the action: in good order, or at once where a user's own code runs
    """

    def whole() -> int:
        job.begin()
        return action()

    with handling(original_signal):
        code = attempt(whole, rank=0)
        settle()
        job.finish(code)
    return code


def _print_error(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
