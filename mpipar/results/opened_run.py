"""A run's folder, opened for looking: what it is, how it stands, and where it comes from."""

from __future__ import annotations

import datetime as dt
import html
from typing import TYPE_CHECKING, Any

from mpipar import store
from mpipar.results.frames import frame_of

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from mpipar.store.project import Project

__all__ = ["OpenedRun"]


class OpenedRun:
    """A run's folder, open for reading; nothing is ever written, and nobody is waited for.

    path       the folder
    kind       the command that made it: "refine" or "run"
    settings   options of that command by name, as plain values
    created    when the run began, in UTC

    What a run commits later is seen by the next look: nothing needs to be opened again.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self.path: Path = project.path
        self.kind: str = project.kind
        self.settings: dict[str, Any] = dict(project.settings)
        self.created = dt.datetime.fromtimestamp(project.created, dt.timezone.utc)

    @property
    def state(self) -> str:
        """How the latest run on the folder stands, in words: it goes on, has ended, was killed."""
        return store.latest_run(self.path)

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What verdict.json says, see FORMAT.md: `verdict` is done, requeue or failed."""
        return store.read_verdict(self.path)

    @property
    def status(self) -> dict[str, Any] | None:
        """What status.json says of the run's progress; None if it cannot be read."""
        return store.read_status(self.path)

    @property
    def writers(self) -> pd.DataFrame:
        """Who has written to the folder, one row each: epoch, host, process, job, started."""
        rows = [
            {
                "epoch": claim.epoch,
                "host": claim.host,
                "process": claim.process,
                "job": claim.batch.job if claim.batch else "",
                "started": claim.started,
            }
            for claim in store.writers(self.path)
        ]
        return frame_of(rows, columns=["epoch", "host", "process", "job", "started"])

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the results come from: what made them, when, on which hosts, with what settings."""
        return {
            "kind": self.kind,
            "format": self._project.format,
            "created": self.created.isoformat(timespec="seconds"),
            "settings": self.settings,
            "writers": self.writers.to_dict("records"),
        }

    def check(self) -> list[str]:
        """Return what is wrong with the folder, one line each, as `mpipar check` does."""
        return store.check(self.path)

    def __repr__(self) -> str:
        return f"{self._headline()}\n{self.state}\n{self._table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        head = html.escape(self._headline())
        table = self._table().to_html(index=False, border=0)
        return f"<p><b>{head}</b><br>{html.escape(self.state)}</p>{table}"

    def _headline(self) -> str:
        return f"{self.path}: mpipar {self.kind}, begun {self.created:%Y-%m-%d %H:%M} UTC"

    def _table(self) -> pd.DataFrame:
        """Return what the representation shows."""
        return self.writers
