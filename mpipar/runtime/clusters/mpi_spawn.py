"""Replacing a lost worker by MPI_Comm_spawn, where MPI tolerates faults.

    rank 0 --Spawn--> supervisor (no MPI) --fork--> the new worker --MPI_Init, Hello--> rank 0

MPI_Comm_spawn returns when MPI has started in the new process, so it would wait ten minutes, and
rank 0 with it, for one that dies before. Therefore MPI sees a supervisor, a process of few lines
that forks the worker; should that die too early, the supervisor starts MPI in its place, and
leaves. What is left, the death of that supervisor, or of the worker in the few milliseconds when it
joins rank 0, is bounded: after MPIPAR_PATIENCE the job ends, and can be resumed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from mpi4py import MPI

from mpipar.runtime.process.environment import calm_process, patience
from mpipar.runtime.process.exits import end_job, insist_on_end, leave
from mpipar.runtime.transports.mpi_transport import MpiTransport

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Rank, ToMaster, ToWorker

SUPERVISOR: Final = Path(__file__).with_name("mpi_spawn_main.py")
REQUEUE_EXIT: Final = 75
INHERITED: Final = ("MPI4PY_", "MPIPAR_", "OMP_", "OPENBLAS_", "MKL_", "NUMBA_", "OMPI_MCA_btl")


def spawn_worker(transport: MpiTransport[ToMaster], host: str) -> Rank | None:
    """Start a worker on a host; its number, or None if that cannot be done. Takes about 0.3 s."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    settings.setdefault("MPIPAR_PATIENCE", str(patience()))
    words = json.dumps([transport.size, sys.path, settings])
    where = MPI.Info.Create({"host": host, "PMIX_MAPBY": "slot:OVERSUBSCRIBE"})
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    bound = threading.Timer(patience(), _end_hung_job, [host])
    bound.daemon = True
    bound.start()
    try:
        link = MPI.COMM_SELF.Spawn(sys.executable, [str(SUPERVISOR), words], 1, where)
    except MPI.Exception as error:
        sys.stderr.write(f"mpipar: no worker can be started on {host}: {error}\n")
        return None
    finally:
        bound.cancel()
        where.Free()
    return transport.adopt(link)


def _end_hung_job(host: str) -> NoReturn:
    """Rank 0 is stuck in MPI_Comm_spawn: nothing can free it, so the job is to be run again."""
    sys.stderr.write(
        f"mpipar: a worker that was to be started on {host} died while MPI started in it, and MPI "
        "does not give up on it; resume the run (--replace-lost is what needs this)\n"
    )
    end_job()
    insist_on_end()
    leave(REQUEUE_EXIT)


def spawned_transport(rank: Rank, begun: int) -> MpiTransport[ToWorker]:
    """The transport of a worker that was spawned; its supervisor hears of it through a pipe."""
    os.write(begun, b"1")
    os.close(begun)
    calm_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return MpiTransport(MPI.Comm.Get_parent(), spawned_as=rank, fault_tolerant=True)
