"""What may become of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from mpipar.runtime.stage import Failure

__all__ = ["Answer", "Broken", "Failed", "Raised", "Returned", "SetupRaised"]


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


class Failed(NamedTuple):
    """The call could not be brought to an end: it took down too many workers, or took too long."""

    failure: Failure


class Broken(NamedTuple):
    """The workers are gone."""

    error: BaseException


Answer: TypeAlias = Returned | Raised | SetupRaised | Failed | Broken
