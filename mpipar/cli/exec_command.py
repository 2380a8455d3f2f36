"""`mpipar exec`: a Python script whose calls run on the workers of the job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar import launch
from mpipar.cli.outcome import run_rank_zero
from mpipar.cli.request import Request, Subcommand
from mpipar.cli.script import file_program, module_program, run_program
from mpipar.errors import UsageError
from mpipar.runtime.process.signals import raised_at_once
from mpipar.settings import ExecSettings

if TYPE_CHECKING:
    from mpipar.launch import Launch

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Run the script on rank 0, and its calls on the other ranks; return the exit code."""
    if not request.rest:
        raise UsageError("`mpipar exec` needs a script to run (`mpipar exec --help`)")
    settings = request.read(ExecSettings)
    job = launch.start(
        request.environment, settings.parallel, threads=1, arguments=request.arguments
    )
    if job.rank > 0:
        return job.serve()
    return run_rank_zero(job, lambda: _run_script(request, settings, job), raised_at_once)


def _run_script(request: Request, settings: ExecSettings, job: Launch) -> int:
    from mpipar.interfaces.calls.registry import close_all
    from mpipar.launch.interface_workers import use_workers_of

    name, *arguments = request.rest
    if name == "-" and job.parallel.kind == "mpi":
        raise UsageError(
            "mpirun does not pass on the end of stdin, so a script cannot be read from there: "
            "write it into a file, or use --parallel=thread:N"
        )
    program = module_program(name) if settings.module else file_program(name)
    use_workers_of(job, settings)
    try:
        return run_program(program, arguments, lambda: close_all(drop=True))
    finally:
        close_all()


COMMAND = Subcommand(ExecSettings, run, is_parallel=True)
