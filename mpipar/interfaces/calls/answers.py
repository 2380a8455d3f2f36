"""What may become of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from mpipar.runtime.stage import GivenUpTask

__all__ = ["Answer", "GaveUp", "Raised", "Returned", "SetupRaised", "WorkersGone"]


class Returned(NamedTuple):
    """The function returned."""

    value: Any


class Raised(NamedTuple):
    """The function raised; or its arguments, result or exception could not be pickled or read."""

    exception: BaseException
    traceback: str  # as the worker would have printed it
    where: str  # host and process


class SetupRaised(NamedTuple):
    """The setup of the context raised on the worker that the call was given to."""

    exception: BaseException
    traceback: str
    where: str


class GaveUp(NamedTuple):
    """The call could not be brought to an end: it took down too many workers, or took too long."""

    failure: GivenUpTask


class WorkersGone(NamedTuple):
    """The workers are gone."""

    error: BaseException


Answer: TypeAlias = Returned | Raised | SetupRaised | GaveUp | WorkersGone
