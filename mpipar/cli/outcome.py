"""How a command ends: errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from mpipar.errors import MpiparError, ProtocolError
from mpipar.launch.signal_forwarding import original_signal
from mpipar.runtime.process.signals import Meaning, handled, settle
from mpipar.version import __version__

if TYPE_CHECKING:
    from mpipar.launch import Launch

__all__ = ["attempt", "run_rank_zero"]

Handling = Callable[[Meaning], AbstractContextManager[None]]
INTERRUPTED: Final = 130
BUG: Final = 70
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
    except Exception:
        _print_error(f"{traceback.format_exc()}{PLEASE_REPORT}")
        code = BUG
    return code


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
