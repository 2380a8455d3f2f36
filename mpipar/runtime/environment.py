"""What the runtime takes from its process: patience and test knobs; and what it sets there."""

from __future__ import annotations

import os
import sys

from threadpoolctl import threadpool_limits

from mpipar.errors import UsageError
from mpipar.runtime.messages import Knobs

PATIENCE_SECONDS = 120.0
SWITCH_SECONDS = 5e-4
FAULT_TOLERANCE = "OMPI_MCA_mpi_ft_enable"  # set for its ranks by `mpirun --with-ft ulfm`


def calm_process() -> None:
    """Make this process fit for compute threads beside a communication loop.

    BLAS runs on one thread, so that matrix products do not depend on the number of cores; threads
    change places often enough for the loop to answer a steal while Python code computes.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    single_threaded_blas()


def single_threaded_blas() -> None:
    """Limit every BLAS and OpenMP library that is loaded by now, for the life of the process."""
    threadpool_limits(limits=1)


def wants_fault_tolerance() -> bool:
    """Whether this rank was started so that Open MPI goes on when a rank dies."""
    return os.environ.get(FAULT_TOLERANCE, "").lower() in {"1", "true", "yes", "enabled"}


def patience() -> float:
    """Return how long to wait for a rank that should answer, in seconds (MPIPAR_PATIENCE)."""
    text = os.environ.get("MPIPAR_PATIENCE", "")
    try:
        seconds = float(text) if text else PATIENCE_SECONDS
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise UsageError(f"MPIPAR_PATIENCE must be a number of seconds above 0, not {text!r}")
    return seconds


def knobs() -> Knobs:
    """Return the test knobs MPIPAR_SLOW ("rank:factor,..") and MPIPAR_SHUFFLE (a seed)."""
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
    return Knobs(factors, shuffle)
