"""A small refinement that has ended well, made once per test session, for tests of results."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from mpipar.results.opening import open_run
from mpipar.results.refinement import Refinement
from tests.support.refine_input import Input, make_input
from tests.support.refine_runs import run_here

if TYPE_CHECKING:
    from pathlib import Path

PARTICLES: Final = 60
BOX: Final = 20
ITERATIONS: Final = 4  # three soft ones, and a search


@functools.cache
def finished_run(base: Path) -> tuple[Input, Path]:
    """Make the input and refine it in this process; return the input and the run's folder."""
    made = make_input(base / "finished" / "input", PARTICLES, BOX)
    path = base / "finished" / "refine_01"
    done = run_here(made.words("--path", path, iterations=ITERATIONS), path.parent)
    assert done.returncode == 0, done.stderr
    return made, path


def look(path: Path) -> Refinement:
    """Open a refinement."""
    run = open_run(path)
    assert isinstance(run, Refinement)
    return run
