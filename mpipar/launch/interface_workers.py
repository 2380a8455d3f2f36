"""How Executor, joblib and IMP get their workers: those of the job, or started for them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from mpipar.errors import LaunchError
from mpipar.interfaces.calls import registry
from mpipar.launch.launch_environment import LaunchEnvironment
from mpipar.launch.parallel import Parallel
from mpipar.launch.start import Launch
from mpipar.runtime.reports import CANNOT_REPLACE

if TYPE_CHECKING:
    from mpipar.runtime.pool import Pool
    from mpipar.settings import ExecSettings

__all__ = ["use_own_workers", "use_workers_of"]

CACHE_BYTES: Final = 1 << 30  # for the setups of calls, on each worker


def use_own_workers() -> None:
    """Let interfaces open workers of this process, unless `use_workers_of` was called before."""
    if not registry.is_installed():
        registry.install(_open_own, lambda text, workers: _resolve_own(text, workers, None))


def use_workers_of(job: Launch, settings: ExecSettings) -> None:
    """Let interfaces use the workers of this job.

    A job of one process has as many workers as an executor wants, unless the settings have a
    `--parallel`.
    """

    def resolve_in_job(text: str | None, workers: int | None) -> str:
        del workers
        job.confirm(text)
        return str(job.parallel)

    def open_in_job(text: str) -> Pool:
        del text
        pool = _open_pool(job)
        if settings.replace_lost and not pool.replace_lost():
            sys.stderr.write(f"mpipar: note: {CANNOT_REPLACE}\n")
        return pool

    def resolve_alone(text: str | None, workers: int | None) -> str:
        return _resolve_own(text, workers, settings.parallel and str(job.parallel))

    if job.parallel.kind == "mpi":
        registry.install(open_in_job, resolve_in_job, isolate=settings.isolate)
    else:
        registry.install(_open_own, resolve_alone, isolate=settings.isolate)


def _resolve_own(text: str | None, workers: int | None, default: str | None) -> str:
    """Return the `--parallel` of a process that is alone. Raises UsageError, LaunchError."""
    around = LaunchEnvironment.read()
    if not around.is_alone:
        raise LaunchError(
            f"several processes were started ({around.evidence}), and each would have workers of "
            "its own; start the script with: mpirun -n N python -m mpipar exec script.py"
        )
    chosen = text or default or f"thread:{workers or len(os.sched_getaffinity(0))}"
    parallel = Parallel.parse(chosen)
    if parallel.kind == "mpi":
        raise LaunchError(
            f"an executor cannot start mpirun itself (parallel={chosen!r}); start the script with: "
            f"python -m mpipar exec --parallel={chosen} script.py"
        )
    return str(parallel)


def _open_own(text: str) -> Pool:
    return _open_pool(Launch(Parallel.parse(text)))


def _open_pool(job: Launch) -> Pool:
    return job.open_pool(threads=1, cache_bytes=CACHE_BYTES)
