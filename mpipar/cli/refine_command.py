"""`mpipar refine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.cli.job import RankZeroProgram, run_job
from mpipar.cli.request import Request, Subcommand
from mpipar.settings import RefineSettings

if TYPE_CHECKING:
    from mpipar.launch import Launch
    from mpipar.views import View

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Refine on rank 0, serve on the others."""
    return run_job(request, _program)


def _program(request: Request) -> RankZeroProgram:
    settings = request.read(RefineSettings)

    def run_program(job: Launch, view: View) -> None:
        from mpipar.programs import refine

        refine.run(settings, job.open_pool, view)

    return RankZeroProgram(settings.parallel, settings.threads, settings.verbose, run_program)


COMMAND = Subcommand(RefineSettings, run, is_parallel=True)
