"""`mpipar run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.cli.job import RankZeroProgram, run_job
from mpipar.cli.request import Request, Subcommand
from mpipar.settings import RunSettings

if TYPE_CHECKING:
    from mpipar.launch import Launch
    from mpipar.views import View

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Hand out commands on rank 0, run them on the others."""
    return run_job(request, _program)


def _program(request: Request) -> RankZeroProgram:
    settings = request.read(RunSettings)

    def run_program(job: Launch, view: View) -> None:
        from mpipar.programs.commands import run as commands

        commands.run(settings, job.open_pool, view)

    return RankZeroProgram(settings.parallel, settings.per_worker, settings.verbose, run_program)


COMMAND = Subcommand(RunSettings, run, is_parallel=True)
