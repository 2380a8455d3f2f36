"""Errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from mpipar.errors import MpiparError, ProtocolError
from mpipar.launch.signal_forwarding import meant
from mpipar.runtime.process.signals import Meaning, handled, settle
from mpipar.version import __version__

if TYPE_CHECKING:
    from mpipar.launch import Launch

__all__ = ["attempt", "conduct"]

Handling = Callable[[Meaning], AbstractContextManager[None]]
INTERRUPTED: Final = 130
BUG: Final = 70
PLEASE_REPORT: Final = f"this is a bug in mpipar {__version__}; please report the lines above"


def attempt(action: Callable[[], int], rank: int) -> int:
    """Run something to its exit code, whatever happens in it.

    What users can mend is said once, by rank 0. The other ranks then leave with 0: a launcher ends
    the whole job at the first other code, perhaps before rank 0 has said why.
    """
    try:
        code = action()
        sys.stdout.flush()
    except MpiparError as error:
        if rank > 0:
            return 0
        _complain(f"mpipar: {error}")
        if isinstance(error, ProtocolError):
            _complain(PLEASE_REPORT)
        code = error.exit_code
    except KeyboardInterrupt:
        if rank > 0:
            return 0
        _complain("mpipar: interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, e.g. `| head`. Nothing more can be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:
        _complain(f"{traceback.format_exc()}{PLEASE_REPORT}")
        code = BUG
    return code


def conduct(here: Launch, action: Callable[[], int], handling: Handling = handled) -> int:
    """Run rank 0's part, say what went wrong in it, and only then let the other ranks go.

    handling   how signals end it: in good order, or at once where a user's own code runs
    """

    def whole() -> int:
        here.begin()
        return action()

    with handling(meant):
        code = attempt(whole, rank=0)
        settle()
        here.finish(code)
    return code


def _complain(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
