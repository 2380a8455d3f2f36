"""Answers as exceptions: what a caller sees of a call that did not return."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor

# The standard library's own, private as it is: programs look for this class in `__cause__`.
from concurrent.futures.process import _RemoteTraceback
from typing import TYPE_CHECKING

from mpipar.errors import TaskFailedError
from mpipar.interfaces.calls.answers import GaveUp, Raised, Returned, SetupRaised, WorkersGone

if TYPE_CHECKING:
    from mpipar.interfaces.calls.answers import Answer

__all__ = ["BrokenWorkersError", "exception_of"]


class BrokenWorkersError(BrokenExecutor):
    """This executor can call nothing any more: its initializer raised, or the workers are gone."""


def exception_of(answer: Answer) -> BaseException:
    """Return what to raise for an answer that is no result."""
    match answer:
        case Raised(exception, traceback, _):
            return _caused(exception, traceback)
        case SetupRaised(exception, traceback, where):
            text = f"the initializer raised {type(exception).__name__} on {where}: {exception}"
            return _caused(BrokenWorkersError(text), traceback)
        case GaveUp(failure):
            ranks = ", ".join(map(str, failure.ranks))
            text = f"the call could not be finished, on ranks {ranks}: {failure.kind}: "
            return TaskFailedError(f"{text}{failure.text}\n{failure.traceback}".rstrip())
        case WorkersGone(error):
            broken = BrokenWorkersError(str(error))
            broken.__cause__ = error
            return broken
        case Returned():
            raise ValueError("a result is no exception")


def _caused(exception: BaseException, traceback: str) -> BaseException:
    if traceback:
        exception.__cause__ = _RemoteTraceback(traceback)  # type: ignore[arg-type]  # it is a text
    return exception
