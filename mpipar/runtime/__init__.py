"""Who computes where: a master, its workers, the messages between them. No word of cryo-EM."""

import os as _os

from mpipar.runtime.process.launcher_variables import (
    wants_fault_tolerance as _wants_fault_tolerance,
)

if _wants_fault_tolerance():
    # Read by mpi4py when it is imported. Where a rank may have died, MPI_Finalize can hang; and
    # Open MPI's TCP, told of several threads, locks itself out when it closes a dead connection.
    _os.environ.setdefault("MPI4PY_RC_FINALIZE", "0")
    _os.environ.setdefault("MPI4PY_RC_THREAD_LEVEL", "serialized")

# Read by Open MPI. Else the first message to a rank whose node is cut off waits for that node, and
# its sender with it, because only then is the address asked for.
_os.environ.setdefault("OMPI_MCA_mpi_add_procs_cutoff", "1024")
