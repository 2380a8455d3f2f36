"""Commands that compute: rank 0 runs the program, the other ranks serve it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar import launch
from mpipar.cli.outcome import conduct
from mpipar.views import open_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.cli.request import Request
    from mpipar.launch import Launch
    from mpipar.views import View

__all__ = ["Job", "run_job"]


@dataclass(frozen=True)
class Job:
    """What rank 0 is to do, from settings that have been read and found right."""

    parallel: str | None
    threads: int  # compute threads of each worker
    verbose: int
    program: Callable[[Launch, View], None]


def run_job(request: Request, read: Callable[[], Job]) -> int:
    """Run the program on rank 0, serve on the others."""
    around, words = request.around, request.words
    if around.is_alone:
        job = read()
        here = launch.start(around, job.parallel, threads=job.threads, arguments=words)
        return conduct(here, lambda: _perform(job, here))
    # Of several ranks only rank 0 may open a settings file, and what it finds wrong there must not
    # leave the others waiting: so join the world first.
    here = launch.start(around, request.flags.get("parallel"), threads=1, arguments=words)
    return here.serve() if here.rank > 0 else conduct(here, lambda: _read_late(read, here))


def _read_late(read: Callable[[], Job], here: Launch) -> int:
    job = read()
    here.confirm(job.parallel)
    return _perform(job, here)


def _perform(job: Job, here: Launch) -> int:
    with open_view(job.verbose) as view:
        view.say(here.description)
        if here.note:
            view.say(f"note: {here.note}")
        job.program(here, view)
    return 0
