"""`mpipar unlock`."""

from __future__ import annotations

import sys

from mpipar.cli.request import Request, Subcommand
from mpipar.folder_settings import UnlockSettings

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Unlock the folder of a writer that the user knows to be dead, and print what was done."""
    from mpipar import store

    settings = request.read(UnlockSettings)
    sys.stdout.write(store.unlock(settings.path, force=settings.force) + "\n")
    return 0


COMMAND = Subcommand(UnlockSettings, run)
