"""Commands that compute: rank 0 runs the program, the other ranks are its workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar import launch
from mpipar.cli.outcome import run_rank_zero
from mpipar.views import open_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.cli.request import Request
    from mpipar.launch import Launch
    from mpipar.views import View

__all__ = ["Job", "run_job"]


@dataclass(frozen=True)
class Job:
    """What rank 0 is to run, from settings that have been checked."""

    parallel: str | None
    threads: int  # compute threads of each worker
    verbose: int
    program: Callable[[Launch, View], None]


def run_job(request: Request, read: Callable[[Request], Job]) -> int:
    """Run the program on rank 0, work for it on the other ranks; return the exit code.

    read   reads the settings, so that only rank 0 does it
    """
    environment, arguments = request.environment, request.arguments
    if environment.is_alone:
        job = read(request)
        here = launch.start(environment, job.parallel, threads=job.threads, arguments=arguments)
        return run_rank_zero(here, lambda: _perform(job, here))
    # Only rank 0 may open a settings file, and an error in that file must not leave the other ranks
    # waiting for rank 0: so start MPI first.
    here = launch.start(environment, request.flags.get("parallel"), threads=1, arguments=arguments)
    if here.rank > 0:
        return here.serve()
    return run_rank_zero(here, lambda: _read_and_perform(request, read, here))


def _read_and_perform(request: Request, read: Callable[[Request], Job], here: Launch) -> int:
    job = read(request)
    here.confirm(job.parallel)
    return _perform(job, here)


def _perform(job: Job, here: Launch) -> int:
    with open_view(job.verbose) as view:
        view.say(here.description)
        if here.note:
            view.say(f"note: {here.note}")
        job.program(here, view)
    return 0
