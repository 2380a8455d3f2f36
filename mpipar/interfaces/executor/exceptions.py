"""The exceptions that a caller sees of calls that failed."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

# The standard library's own, private as it is: programs look for this class in `__cause__`.
from concurrent.futures.process import _RemoteTraceback
from typing import TYPE_CHECKING

from mpipar.errors import TaskFailedError
from mpipar.interfaces.calls.answers import GivenUp, Raised, SetupRaised, WorkersGone

if TYPE_CHECKING:
    from mpipar.interfaces.calls.answers import CallFailure

__all__ = ["BrokenWorkersError", "exception_of"]


class BrokenWorkersError(BrokenExecutor):
    """This executor can call nothing any more: its initializer raised, or the workers are gone."""


def exception_of(failure: CallFailure) -> BaseException:
    """Return what to raise for a failed call."""
    match failure:
        case Raised(exception, traceback, _):
            return _with_cause(exception, traceback)
        case SetupRaised(exception, traceback, where):
            text = f"the initializer raised {type(exception).__name__} on {where}: {exception}"
            return _with_cause(BrokenWorkersError(text), traceback)
        case GivenUp(task):
            ranks = ", ".join(map(str, task.ranks))
            text = f"the call could not be finished, on ranks {ranks}: {task.kind}: "
            return TaskFailedError(f"{text}{task.text}\n{task.traceback}".rstrip())
        case WorkersGone(error):
            broken = BrokenWorkersError(str(error))
            broken.__cause__ = error
            return broken


def _with_cause(exception: BaseException, traceback: str) -> BaseException:
    if traceback:
        exception.__cause__ = _RemoteTraceback(traceback)  # type: ignore[arg-type]  # it is a text
    return exception
