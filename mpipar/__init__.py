"""Cryo-EM refinement on shared computing clusters, as one MPI job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.version import __version__

if TYPE_CHECKING:
    from mpipar.interfaces.executor.executor import Executor

__all__ = ["Executor", "__version__"]


def __getattr__(name: str) -> object:
    """Return `Executor`, which is imported only when it is asked for: most commands never do."""
    if name != "Executor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpipar.interfaces.executor import executor
    from mpipar.launch import interface_workers

    interface_workers.use_own_workers()
    globals()[name] = executor.Executor
    return executor.Executor
