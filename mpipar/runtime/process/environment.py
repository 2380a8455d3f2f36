"""Settings that the runtime reads from environment variables, and limits that it sets."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

from threadpoolctl import threadpool_limits

from mpipar.errors import UsageError
from mpipar.runtime.machines.messages import Knobs

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Limits of the threads that a library for matrix products starts."""
PATIENCE_SECONDS: Final = 120.0
SWITCH_SECONDS: Final = 5e-4
GRACE_SECONDS: Final = 3.0
MALLOC: Final = {-3: 32 << 20, -1: 256 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD


def tune_process() -> None:
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
