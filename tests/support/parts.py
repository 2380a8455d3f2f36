"""`python -m tests.support.parts ACT refine ...`: mpipar's command line around a small program.

The program stands where programs.refine stands; ACT says what it does. All else is real.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import mpipar.programs
from mpipar.cli.main import main
from mpipar.errors import InputError
from mpipar.runtime.stage import Stage, Task


class Square(Stage):
    """A task's result is its payload squared."""

    def run(self, task: Task, block: Any, state: Any) -> int:
        del block, state
        return int(task.payload) ** 2


def compute(settings: Any, open_pool: Any, view: Any) -> None:
    """Use the pool as a program does."""
    with open_pool(settings.threads, settings.cache << 20) as pool:
        outcome = pool.run(Square(), {}, [Task(n, None, n) for n in range(10)])
        view.say(f"results {outcome.results} by {pool.workers} workers")
    view.say(f"mpi4py loaded: {'mpi4py.MPI' in sys.modules}")


def refuse(settings: Any, open_pool: Any, view: Any) -> None:
    """Find the input wrong before any pool is opened."""
    raise InputError(f"{settings.input}: no particles")


def fail(settings: Any, open_pool: Any, view: Any) -> None:
    """Be a bug before any pool is opened."""
    raise ZeroDivisionError("a bug")


def fail_late(settings: Any, open_pool: Any, view: Any) -> None:
    """Be a bug while the pool is open, and forget to close it."""
    open_pool(1, 1)
    raise ZeroDivisionError("a bug")


if __name__ == "__main__":
    act = {"compute": compute, "refuse": refuse, "fail": fail, "fail_late": fail_late}[sys.argv[1]]
    program = ModuleType("mpipar.programs.refine")
    program.run = act  # type: ignore[attr-defined]
    sys.modules[program.__name__] = program
    mpipar.programs.refine = program
    sys.exit(main(sys.argv[2:]))
