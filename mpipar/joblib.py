"""The job's workers as a backend of joblib: `joblib.parallel_config(backend="mpipar")`.

Importing this module registers the backend. See docs/executor.md.
"""

from __future__ import annotations

from joblib import register_parallel_backend

from mpipar.interfaces.executor.joblib_backend import JoblibBackend
from mpipar.launch import interface_workers as _interface_workers

__all__ = ["JoblibBackend"]

register_parallel_backend("mpipar", JoblibBackend)
_interface_workers.use_own_workers()
