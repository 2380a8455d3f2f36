"""Makes the job's workers a backend of joblib: `joblib.parallel_config(backend="mpipar")`.

It is enough to import this module. See docs/executor.md.
"""

from __future__ import annotations

from joblib import register_parallel_backend

from mpipar.interfaces.executor.joblib_backend import JoblibBackend
from mpipar.launch import interfaces as _interfaces

__all__ = ["JoblibBackend"]

register_parallel_backend("mpipar", JoblibBackend)
_interfaces.offer_own_workers()
