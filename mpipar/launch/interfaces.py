"""How `mpipar.Executor` and its kin come by their workers."""

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

__all__ = ["offer_own_workers", "offer_workers_of"]

CACHE_BYTES: Final = 1 << 30  # for the setups of contexts, on each worker


def offer_own_workers() -> None:
    """Let interfaces open workers of this process, unless it is known already whose they use."""
    if not registry.is_installed():
        registry.install(_open, lambda text, workers: _resolve(text, workers, None))


def offer_workers_of(here: Launch, settings: ExecSettings) -> None:
    """Let interfaces use the workers of this job.

    Without a `--parallel` in the settings one process has as many as an executor wants.
    """
    asked, isolate = settings.parallel, settings.isolate

    def resolve_in_world(text: str | None, workers: int | None) -> str:
        del workers
        here.confirm(text)
        return str(here.parallel)

    def open_world(text: str) -> Pool:
        del text
        return _open_world(here, replace_lost=settings.replace_lost)

    if here.parallel.kind == "mpi":
        registry.install(open_world, resolve_in_world, isolate=isolate)
    else:
        bound = None if asked is None else str(here.parallel)
        registry.install(
            _open, lambda text, workers: _resolve(text, workers, bound), isolate=isolate
        )


def _open_world(here: Launch, *, replace_lost: bool) -> Pool:
    pool = here.open_pool(threads=1, cache_bytes=CACHE_BYTES)
    if replace_lost and not pool.replace_lost():
        sys.stderr.write(f"mpipar: note: {CANNOT_REPLACE}\n")
    return pool


def _resolve(text: str | None, workers: int | None, bound: str | None) -> str:
    """What is to be opened in a process that is alone. Raises UsageError, LaunchError."""
    around = LaunchEnvironment.read()
    if not around.is_alone:
        raise LaunchError(
            f"several processes were started ({around.evidence}), and each would have workers of "
            "its own; start the script with: mpirun -n N python -m mpipar exec script.py"
        )
    chosen = text or bound or f"thread:{workers or len(os.sched_getaffinity(0))}"
    parallel = Parallel.parse(chosen)
    if parallel.kind == "mpi":
        raise LaunchError(
            f"an executor cannot start mpirun itself (parallel={chosen!r}); start the script with: "
            f"python -m mpipar exec --parallel={chosen} script.py"
        )
    return str(parallel)


def _open(text: str) -> Pool:
    return Launch(Parallel.parse(text)).open_pool(threads=1, cache_bytes=CACHE_BYTES)
