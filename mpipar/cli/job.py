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

__all__ = ["RankZeroProgram", "run_job"]


@dataclass(frozen=True)
class RankZeroProgram:
    """What rank 0 is to run, from settings that have been checked."""

    parallel: str | None
    threads: int  # compute threads of each worker
    verbose: int
    run: Callable[[Launch, View], None]


def run_job(request: Request, read: Callable[[Request], RankZeroProgram]) -> int:
    """Run the program on rank 0, work for it on the other ranks; return the exit code.

    read   reads the settings, so that only rank 0 does it
    """
    environment, arguments = request.environment, request.arguments
    if environment.is_alone:
        program = read(request)
        job = launch.start(
            environment, program.parallel, threads=program.threads, arguments=arguments
        )
        return run_rank_zero(job, lambda: _run_program(program, job))
    # Only rank 0 may open a settings file, and an error in that file must not leave the other ranks
    # waiting for rank 0: so start MPI first.
    job = launch.start(environment, request.flags.get("parallel"), threads=1, arguments=arguments)
    if job.rank > 0:
        return job.serve()
    return run_rank_zero(job, lambda: _read_and_run(request, read, job))


def _read_and_run(request: Request, read: Callable[[Request], RankZeroProgram], job: Launch) -> int:
    program = read(request)
    job.confirm(program.parallel)
    return _run_program(program, job)


def _run_program(program: RankZeroProgram, job: Launch) -> int:
    with open_view(program.verbose) as view:
        view.say(job.description)
        if job.note:
            view.say(f"note: {job.note}")
        program.run(job, view)
    return 0
