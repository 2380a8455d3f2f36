"""IMP.parallel's interface: `import mpipar.imp as parallel`. See docs/imp.md."""

from __future__ import annotations

from mpipar.interfaces.imp_parallel.manager import (
    Context,
    Error,
    LocalSlave,
    LocalWorker,
    Manager,
    NetworkError,
    NoMoreSlavesError,
    NoMoreWorkersError,
    RemoteError,
    SGEPESlaveArray,
    SGEPEWorkerArray,
    SGEQsubSlaveArray,
    SGEQsubWorkerArray,
    Slave,
    SlaveArray,
    Worker,
    WorkerArray,
    _SGEPEWorker,
)
from mpipar.launch import interfaces as _interfaces

__all__ = [
    "Context",
    "Error",
    "LocalSlave",
    "LocalWorker",
    "Manager",
    "NetworkError",
    "NoMoreSlavesError",
    "NoMoreWorkersError",
    "RemoteError",
    "SGEPESlaveArray",
    "SGEPEWorkerArray",
    "SGEQsubSlaveArray",
    "SGEQsubWorkerArray",
    "Slave",
    "SlaveArray",
    "Worker",
    "WorkerArray",
    "_SGEPEWorker",
]

_interfaces.offer_own_workers()
