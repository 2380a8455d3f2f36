"""What must be in the environment before mpi4py is first imported in a process."""

from __future__ import annotations

import os
from typing import Final

from mpipar.runtime.process.launcher_variables import (
    FAULT_TOLERANT_MPI4PY,
    wants_fault_tolerance,
)

__all__ = ["prepare_mpi"]

# Read by Open MPI. Without it the address of a rank is asked for with the first message to that
# rank; the sender then waits for ever for a node that is cut off.
ADDRESSES_AT_START: Final = {"OMPI_MCA_mpi_add_procs_cutoff": "1024"}


def prepare_mpi() -> None:
    """Set what mpi4py and its library read when they are loaded, except where the user has.

    Where a rank may have died, MPI_Finalize can hang; and Open MPI's TCP, told of several threads,
    locks itself out when it closes a dead connection.
    """
    chosen = FAULT_TOLERANT_MPI4PY if wants_fault_tolerance(os.environ) else {}
    for name, value in {**ADDRESSES_AT_START, **chosen}.items():
        os.environ.setdefault(name, value)
