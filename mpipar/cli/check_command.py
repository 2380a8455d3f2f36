"""`mpipar check`."""

from __future__ import annotations

import sys

from mpipar.cli.request import Request, Subcommand
from mpipar.errors import CorruptStoreError
from mpipar.settings import CheckSettings

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Print what is wrong with a run's folder, one line each; return the exit code."""
    from mpipar import store

    path = request.read(CheckSettings).path
    problems = store.check(path)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    sys.stdout.write(f"{path}: {f'{len(problems)} problems' if problems else 'sound'}\n")
    return CorruptStoreError.exit_code if problems else 0


COMMAND = Subcommand(CheckSettings, run)
