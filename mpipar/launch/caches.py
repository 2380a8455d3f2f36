"""Environment that must be right before numpy, numba and matplotlib are first imported.

Compiled kernels are kept on the node's own disk: a cache on a shared file system is raced for by
every rank of a job, and another node's CPU may not run what this one compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mpipar import __version__

__all__ = ["prepare_process"]

# Blocks, not matrix products, are what runs in parallel; and BLAS reserves memory per thread.
SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_process() -> None:
    """Set cache folders and BLAS threads in the environment, except where the user has."""
    for name in SINGLE_THREADED:
        os.environ.setdefault(name, "1")
    if "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(_cache_folder(f"numba-{_compiler_key()}"))
    if "MPLCONFIGDIR" not in os.environ and not os.access(Path("~").expanduser(), os.W_OK):
        os.environ["MPLCONFIGDIR"] = str(_cache_folder("matplotlib"))


def _cache_folder(name: str) -> Path:
    """A folder of this user alone on the node's disk; a passing one if others took the name."""
    folder = _node_disk() / f"mpipar-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_private(folder):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
            return folder / name
    except OSError:
        pass
    # Code is loaded from this folder, so one that another user could have filled is never used.
    passing = tempfile.mkdtemp(prefix="mpipar-")
    atexit.register(shutil.rmtree, passing, ignore_errors=True)
    return Path(passing)


def _node_disk() -> Path:
    """The node's temporary folder; not a batch job's own one, which goes when the job ends."""
    common = Path("/tmp")
    in_job = {"SLURM_JOB_ID", "JOB_ID"} & os.environ.keys()
    return common if in_job and os.access(common, os.W_OK) else Path(tempfile.gettempdir())


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not stat.S_IMODE(found.st_mode) & 0o077
    )


def _compiler_key() -> str:
    """Short name of all that machine code depends on: versions and CPU."""
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = "none"
    parts = (__version__, sys.version, numba, platform.machine(), _cpu())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """Model and instruction sets of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
