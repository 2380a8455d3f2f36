"""`mpipar.open`: a run's folder, opened for looking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mpipar.results.command_run import CommandRun
from mpipar.results.opened_run import OpenedRun
from mpipar.results.refinement import Refinement
from mpipar.store.project import Project

if TYPE_CHECKING:
    import os

__all__ = ["open_run"]

_KINDS: dict[str, type[OpenedRun]] = {"refine": Refinement, "run": CommandRun}


def open_run(folder: str | os.PathLike[str]) -> OpenedRun:
    """Open the folder of a run for looking at it, on any host, also while the run goes on.

    folder    such as refine_01
    returns   a Refinement for `mpipar refine`, a CommandRun for `mpipar run`
    raises    MissingInputError if there is no such run; StoreError if it cannot be read, or needs a
              later version of mpipar

    Nothing is written, and no lock is taken. `run.latest.map` is the newest map,
    `run.latest.poses` the particles with RELION's column names (docs/looking.md).
    """
    project = Project.open(Path(folder), writer=False)
    return _KINDS.get(project.kind, OpenedRun)(project)
