"""An exception as text: exceptions do not travel between processes."""

from __future__ import annotations

import traceback
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CaughtError:
    """An exception as text."""

    kind: str
    text: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> CaughtError:
        """Describe an exception, with its traceback."""
        try:
            text = str(error)
        except Exception as broken:  # a user's exception may be as wrong as his task
            text = f"its message cannot be had: {type(broken).__name__}"
        return cls(type(error).__name__, text, "".join(traceback.format_exception(error)))


class StartFailedError(Exception):
    """The stage did not start in the child: another try would do no better."""

    def __init__(self, trouble: CaughtError) -> None:
        super().__init__(f"{trouble.kind}: {trouble.text}")
        self.trouble = trouble
