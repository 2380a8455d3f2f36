"""`mpipar prune`."""

from __future__ import annotations

import sys
from typing import Final

from mpipar.cli.request import Request, Subcommand
from mpipar.errors import counted
from mpipar.folder_settings import PruneSettings

__all__ = ["COMMAND"]

MEGABYTE: Final = 1_000_000


def run(request: Request) -> int:
    """Give iterations up, and print which, and how much space that has freed."""
    from mpipar.programs.pruning import prune_run

    settings = request.read(PruneSettings)
    gone = prune_run(settings.path, settings.keep, settings.keep_every, _say)
    numbers = ", ".join(str(info.number) for info in gone)
    freed = sum(info.size for info in gone) / MEGABYTE
    what = f"{counted(len(gone), 'iteration')} given up ({numbers}), {freed:.1f} MB freed"
    sys.stdout.write(f"{settings.path}: {what if gone else 'nothing to prune'}\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


COMMAND = Subcommand(PruneSettings, run)
