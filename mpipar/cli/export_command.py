"""`mpipar export`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpipar.cli.request import Request, Subcommand
from mpipar.folder_settings import ExportSettings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Write the files of an iteration into a new folder, and print their names."""
    from mpipar.results.exporting import export_iteration

    settings = request.read(ExportSettings)
    folder, notes = export_iteration(settings.path, settings.iteration, settings.to)
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
    sys.stdout.write(f"{folder}: {', '.join(_names(folder))}\n")
    return 0


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


COMMAND = Subcommand(ExportSettings, run)
