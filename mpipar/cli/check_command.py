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

    settings = request.read(CheckSettings)
    path = settings.path
    problems = store.check(path)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    if problems and settings.repair:
        sys.stdout.write(store.repair(path, _say) + "\n")
        problems = store.check(path)
        for problem in problems:
            sys.stdout.write(f"still: {problem}\n")
    number = f"{len(problems)} problem{'s'[: len(problems) != 1]}"
    sys.stdout.write(f"{path}: {number if problems else 'sound'}\n")
    sys.stderr.write(f"{path}: {store.latest_run(path)}\n")
    if problems and not settings.repair:
        kept = store.salvage(path)
        sys.stderr.write(f"`mpipar check --repair {path}` would bring back {kept}\n")
    return CorruptStoreError.exit_code if problems else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


COMMAND = Subcommand(CheckSettings, run)
