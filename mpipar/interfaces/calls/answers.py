"""What becomes of a call: its value, or why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from mpipar.runtime.stage import GivenUpTask

__all__ = ["Answer", "CallFailure", "GivenUp", "Raised", "Returned", "SetupRaised", "WorkersGone"]


class Returned(NamedTuple):
    """The function returned."""

    value: Any


class Raised(NamedTuple):
    """The function raised; or its arguments, result or exception could not be pickled or read."""

    exception: BaseException
    traceback: str  # as the worker would have printed it
    where: str  # host and process


class SetupRaised(NamedTuple):
    """The setup of the queue raised on the worker that was to make the call."""

    exception: BaseException
    traceback: str
    where: str


class GivenUp(NamedTuple):
    """The call was given up: it took down too many workers, or took too long."""

    failure: GivenUpTask


class WorkersGone(NamedTuple):
    """No worker will make the call: all are lost or closed, or its queue has failed."""

    error: BaseException


CallFailure: TypeAlias = Raised | SetupRaised | GivenUp | WorkersGone
Answer: TypeAlias = Returned | CallFailure
