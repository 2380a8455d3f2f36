"""`mpipar check`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mpipar.cli.request import Request, Subcommand
from mpipar.errors import CorruptStoreError, MpiparError
from mpipar.folder_settings import CheckSettings

if TYPE_CHECKING:
    from pathlib import Path

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
    _say(f"{path}: {store.latest_run(path)}")
    if problems and not settings.repair:
        _say_what_repair_would_do(path)
    return CorruptStoreError.exit_code if problems else 0


def _say_what_repair_would_do(path: Path) -> None:
    from mpipar import store

    try:
        kept = store.salvage(path)
    except MpiparError as error:
        _say(f"nothing can be repaired: {error}")
    else:
        _say(f"`mpipar check --repair {path}` would bring back {kept}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


COMMAND = Subcommand(CheckSettings, run)
