"""Replacing a lost worker by MPI_Comm_spawn, where MPI tolerates faults.

    rank 0 --Spawn--> supervisor (no MPI) --fork--> the new worker --MPI_Init, Hello--> rank 0

MPI_Comm_spawn returns when MPI has started in the new process. If that process dies before,
MPI_Comm_spawn waits ten minutes, and rank 0 with it. Therefore MPI spawns a supervisor, a process
of few lines (`mpi_spawn_main.py`) that forks the worker; if the worker dies too early, the
supervisor starts MPI itself, and ends. Two deaths are left: of the supervisor while MPI starts, and
of the worker in the few milliseconds in which it joins rank 0. For these there is a time limit:
after MPIPAR_PATIENCE the job ends, and can be resumed.
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

from mpipar.runtime.process.environment import patience, tune_process
from mpipar.runtime.process.exits import end_job, exit_now, force_end_later
from mpipar.runtime.transports.mpi_transport import MpiTransport

if TYPE_CHECKING:
    from mpipar.runtime.machines.messages import Rank, ToMaster, ToWorker

SUPERVISOR: Final = Path(__file__).with_name("mpi_spawn_main.py")
REQUEUE_EXIT: Final = 75
INHERITED: Final = ("MPI4PY_", "MPIPAR_", "OMP_", "OPENBLAS_", "MKL_", "NUMBA_", "OMPI_MCA_btl")


def spawn_worker(transport: MpiTransport[ToMaster], host: str) -> Rank | None:
    """Start a worker on a host; return its rank, or None if that fails. Takes about 0.3 s."""
    settings = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    settings.setdefault("MPIPAR_PATIENCE", str(patience()))
    words = json.dumps([transport.size, sys.path, settings])
    where = MPI.Info.Create({"host": host, "PMIX_MAPBY": "slot:OVERSUBSCRIBE"})
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    limit = threading.Timer(patience(), _end_hung_job, [host])
    limit.daemon = True
    limit.start()
    try:
        link = MPI.COMM_SELF.Spawn(sys.executable, [str(SUPERVISOR), words], 1, where)
    except MPI.Exception as error:
        sys.stderr.write(f"mpipar: no worker can be started on {host}: {error}\n")
        return None
    finally:
        limit.cancel()
        where.Free()
    return transport.add_spawned(link)


def _end_hung_job(host: str) -> NoReturn:
    """End a job whose rank 0 hangs in MPI_Comm_spawn, with the exit code for running it again."""
    sys.stderr.write(
        f"mpipar: a worker that was to be started on {host} died while MPI started in it, and MPI "
        "does not give up on it; resume the run (--replace-lost is what needs this)\n"
    )
    end_job()
    force_end_later()
    exit_now(REQUEUE_EXIT)


def spawned_transport(rank: Rank, begun: int) -> MpiTransport[ToWorker]:
    """Return the transport of a worker that was spawned, after MPI has started in it.

    begun   descriptor of a pipe, by which the worker tells its supervisor that MPI has started
    """
    os.write(begun, b"1")
    os.close(begun)
    tune_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return MpiTransport(MPI.Comm.Get_parent(), spawned_as=rank, fault_tolerant=True)
