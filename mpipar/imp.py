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
from mpipar.launch import interface_workers as _interface_workers

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

_interface_workers.use_own_workers()
