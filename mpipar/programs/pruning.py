"""Which iterations of a refinement are kept, and giving the others up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mpipar.errors import InputError
from mpipar.store import read_verdict
from mpipar.store.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mpipar.store.schema import CommitInfo

__all__ = ["KEEP_ALL", "KEEP_EVERY", "prune_run", "superfluous"]

KEEP_ALL: Final = "all"
KEEP_EVERY: Final = 10
"""A running refinement keeps the last iterations, and all whose number is a multiple of this."""


def superfluous(numbers: Sequence[int], keep: int, every: int | None) -> set[int]:
    """Return the commits that a rule does not keep; never the first or the latest.

    numbers   of all commits, in order
    keep      how many of the last ones stay
    every     multiples of this stay; None: no others
    """
    inner = numbers[1:-1]
    last = {*numbers[-max(keep, 1) :]}
    return {n for n in inner if n not in last and (every is None or n % every)}


def prune_run(
    path: Path, keep: int, every: int | None, say: Callable[[str], None]
) -> list[CommitInfo]:
    """Prune a refinement that nobody writes to; return the iterations that were given up.

    say      is called if it takes long to find out whether the last writer still lives
    raises   ProjectLockedError if the run goes on; InputError if it is no refinement
    """
    reader = Project.open(path, writer=False)
    if reader.kind != "refine":
        raise InputError(f"{path}: was made by `mpipar {reader.kind}`, and has no iterations")
    if not superfluous([info.number for info in reader.commits()], keep, every):
        return []
    ended = read_verdict(path)
    with Project.open(path, writer=True, say=say) as project:
        try:
            numbers = [info.number for info in project.commits()]
            return project.prune(superfluous(numbers, keep, every))
        finally:
            if ended is not None:
                project.verdict(ended["verdict"], ended["reason"])
