"""A run of `mpipar run`, opened for looking: its commands and how they ended."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from mpipar.programs.commands.try_log import CommandOutcome, TryLog
from mpipar.results.frames import frame_of
from mpipar.results.opened_run import OpenedRun

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CommandRun"]


class CommandRun(OpenedRun):
    """A list of commands that `mpipar run` has run, or is running."""

    @property
    def tries(self) -> pd.DataFrame:
        """Every try of a command that has ended, one row each, oldest first.

        Columns: `line` of the command file, `number` of the try, `code`, `signal`, `reason`,
        `host`, `rank`, `seconds`, `began` (seconds since 1970), `log` (a path in the folder).
        """
        outcomes = TryLog(self._project).outcomes()
        rows = [{**asdict(outcome), "log": outcome.log} for outcome in outcomes]
        names = [field.name for field in fields(CommandOutcome) if field.name not in _INNER]
        return frame_of(rows, columns=[*names, "log"])

    def _table(self) -> pd.DataFrame:
        shown: pd.DataFrame = self.tries.tail(_SHOWN)
        return shown


_INNER = {"key", "log_name"}
_SHOWN = 10
