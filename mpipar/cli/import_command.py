"""`mpipar import`."""

from __future__ import annotations

import sys

from mpipar.cli.request import Request, Subcommand
from mpipar.settings import ImportSettings

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Copy particles into a folder, and print where they are."""
    from mpipar.programs.particle_import import import_particles

    settings = request.read(ImportSettings)
    folder = settings.to.absolute()
    import_particles(settings.path, folder, settings.type, _say)
    sys.stdout.write(f"{folder / 'particles.star'}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


COMMAND = Subcommand(ImportSettings, run)
