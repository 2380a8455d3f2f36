"""`mpipar refine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.cli.job import Job, run_job
from mpipar.cli.request import Request, Subcommand
from mpipar.settings import RefineSettings

if TYPE_CHECKING:
    from mpipar.launch import Launch
    from mpipar.views import View

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Refine on rank 0, serve on the others."""
    return run_job(request, _job)


def _job(request: Request) -> Job:
    settings = request.read(RefineSettings)

    def program(here: Launch, view: View) -> None:
        from mpipar.programs import refine

        refine.run(settings, here.open_pool, view)

    return Job(settings.parallel, settings.threads, settings.verbose, program)


COMMAND = Subcommand(RefineSettings, run, is_parallel=True)
