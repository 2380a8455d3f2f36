"""An exception as text, which is what is sent between processes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaughtError:
    """An exception as text."""

    kind: str  # the name of its class
    text: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> CaughtError:
        """Describe an exception, with its traceback."""
        try:
            text = str(error)
        except Exception as broken:  # also the exception class of a user can be wrong
            text = f"its message cannot be had: {type(broken).__name__}"
        return cls(type(error).__name__, text, "".join(traceback.format_exception(error)))


class StartFailedError(Exception):
    """A stage did not start in a child process: another try would do no better."""

    def __init__(self, caught: CaughtError) -> None:
        super().__init__(f"{caught.kind}: {caught.text}")
        self.caught = caught
