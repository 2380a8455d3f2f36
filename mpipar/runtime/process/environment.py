"""What the runtime takes from its process: patience and test knobs; and what it sets there."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from typing import TYPE_CHECKING

from threadpoolctl import threadpool_limits

from mpipar.errors import UsageError
from mpipar.runtime.machines.messages import Knobs

if TYPE_CHECKING:
    from collections.abc import Mapping

PATIENCE_SECONDS = 120.0
SWITCH_SECONDS = 5e-4
GRACE_SECONDS = 3.0
LAUNCHER = re.compile(
    r"(OMPI_(?!ALLOW_RUN_AS_ROOT|MCA_(pml|btl)$)|OPAL_USER_PARAMS|PRTE_|PMIX?_|PMI2_|MPI_LOCALN?RANK"
    r"|MPIPAR_RELAUNCHED$|HYD[IT]_|I_MPI_HYDRA|PALS_|ALPS_APP|MV2_COMM_WORLD|FLUX_(TASK|PMI)|SLURM_(PROCID$|LOCALID$"
    r"|NODEID$|GTIDS$|TASK_PID$|STEP|NPROCS$|NTASKS$|PMI|SRUN_|LAUNCH_NODE|MPI_TYPE$))"
)
"""Variables by which a launcher tells a process its rank and where the others are."""
MALLOC = {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"  # set for its ranks by `mpirun --with-ft ulfm`


def calm_process() -> None:
    """Make this process fit for compute threads beside a communication loop.

    BLAS runs on one thread, so that matrix products do not depend on the number of cores; threads
    change places often enough for the loop to answer a steal while Python code computes.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_memory()
    single_threaded_blas()


def keep_memory() -> None:
    """Have freed memory used again instead of given back to the system.

    By default the C library gets every array of more than 128 KiB fresh from the system, page by
    page, which costs more than to copy it. Does nothing where the C library is not GNU's.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in MALLOC.items():
        tune(parameter, value)


def single_threaded_blas() -> None:
    """Limit every BLAS and OpenMP library that is loaded by now, for the life of the process."""
    threadpool_limits(limits=1)


def wants_fault_tolerance(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this rank was started so that Open MPI goes on when a rank dies."""
    return env.get(FAULT_TOLERANCE, "").lower() in {"1", "true", "yes", "enabled"}


def without_launcher(env: Mapping[str, str]) -> dict[str, str]:
    """Return what a process gets that is no rank: MPI in it finds that it is alone.

    What configures an MPI stays (OMPI_ALLOW_RUN_AS_ROOT, OMPI_MCA_pml, OMPI_MCA_btl).
    """
    ours = ("MPI4PY_RC_FINALIZE", "MPI4PY_RC_THREAD_LEVEL") if wants_fault_tolerance(env) else ()
    return {
        name: value for name, value in env.items() if name not in ours and not LAUNCHER.match(name)
    }


def patience() -> float:
    """Return how long to wait for a rank that should answer, in seconds (MPIPAR_PATIENCE)."""
    return _seconds("MPIPAR_PATIENCE", PATIENCE_SECONDS)


def grace() -> float:
    """Return how long a run that is to stop may take to a safe point, in seconds (MPIPAR_GRACE)."""
    return _seconds("MPIPAR_GRACE", GRACE_SECONDS)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{name} must be a number of seconds above 0, not {text!r}")
    return seconds


def knobs() -> Knobs:
    """Return MPIPAR_SLOW ("rank:factor,.."), MPIPAR_SHUFFLE (a seed), MPIPAR_NODE_MEMORY (off)."""
    slow, seed = os.environ.get("MPIPAR_SLOW", ""), os.environ.get("MPIPAR_SHUFFLE", "")
    try:
        pairs = [item.split(":") for item in slow.split(",") if item.strip()]
        factors = tuple((int(rank), float(factor)) for rank, factor in pairs)
        shuffle = int(seed) if seed else None
    except ValueError:
        raise UsageError(
            f"MPIPAR_SLOW must look like 2:4,3:1.5 and MPIPAR_SHUFFLE like 17, "
            f"not {slow!r} and {seed!r}"
        ) from None
    return Knobs(factors, shuffle, node_memory())


def node_memory() -> bool:
    """Return whether ranks of one host shall map the same large arrays (MPIPAR_NODE_MEMORY)."""
    text = os.environ.get("MPIPAR_NODE_MEMORY", "on")
    if text not in {"on", "off"}:
        raise UsageError(f"MPIPAR_NODE_MEMORY must be on or off, not {text!r}")
    return text == "on"
