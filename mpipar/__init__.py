"""Cryo-EM refinement on shared computing clusters, as one MPI job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.version import __version__

if TYPE_CHECKING:
    from mpipar.interfaces.executor.executor import Executor
    from mpipar.results.opening import open_run

    open = open_run  # noqa: A001 - its name is `mpipar.open`

# without `open`: `from mpipar import *` shall not hide Python's own
__all__ = ["Executor", "__version__"]


def __getattr__(name: str) -> object:
    """Return `Executor` or `open`, imported only when asked for: most commands need neither."""
    if name == "open":
        from mpipar.results.opening import open_run

        globals()[name] = open_run
        return open_run
    if name != "Executor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpipar.interfaces.executor import executor
    from mpipar.launch import interface_workers

    interface_workers.use_own_workers()
    globals()[name] = executor.Executor
    return executor.Executor
