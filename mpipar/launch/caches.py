"""Folders for caches and temporary files, to be set before numba and matplotlib are imported.

Compiled kernels are kept on the node's own disk. On a shared file system all ranks of a job would
write the same cache at once, and another node's CPU may not run what this one has compiled.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mpipar.errors import OutputError
from mpipar.runtime.process.environment import THREAD_VARIABLES
from mpipar.version import __version__

__all__ = ["make_scratch", "prepare_process", "use_scratch"]


def prepare_process() -> None:
    """Set cache folders and BLAS threads in the environment, except where the user has."""
    # Blocks, not matrix products, are what runs in parallel; and BLAS reserves memory per thread.
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    if "NUMBA_CACHE_DIR" not in os.environ:
        os.environ["NUMBA_CACHE_DIR"] = str(_cache_folder(_numba_name()))
    if "MPLCONFIGDIR" not in os.environ and not os.access(Path("~").expanduser(), os.W_OK):
        os.environ["MPLCONFIGDIR"] = str(_cache_folder("matplotlib"))


def use_scratch(scratch: Path) -> None:
    """Keep temporary files and compiled kernels of this process and its children in `scratch`.

    To be called before numba is imported. A cache of kernels that the user has chosen stays.

    raises   OutputError if the folder cannot be made or written
    """
    kernels = make_scratch(scratch)
    os.environ["TMPDIR"] = str(kernels.parent)
    tempfile.tempdir = None  # looked up again at its next use
    if Path(os.environ.get("NUMBA_CACHE_DIR", _numba_name())).name == _numba_name():
        os.environ["NUMBA_CACHE_DIR"] = str(kernels)


def make_scratch(scratch: Path) -> Path:
    """Make this user's folder in `scratch`, and return the one for kernels in it."""
    folder = scratch / _user_name()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (_is_private(folder) and os.access(folder, os.W_OK)):
            raise OutputError(
                f"--parallel: {folder} is not a folder of yours alone; choose another scratch "
                f"folder than {scratch}"
            )
        kernels = folder / _numba_name()
        kernels.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"--parallel: the scratch folder {error.filename or folder} cannot be made on "
            f"{socket.gethostname()}: {error.strerror}; choose one that every node can have"
        ) from error
    return kernels


def _user_name() -> str:
    return f"mpipar-{os.getuid()}"


def _numba_name() -> str:
    return f"numba-{_compiler_key()}"


def _cache_folder(name: str) -> Path:
    """A private folder on the node's disk; a temporary one if another user has taken the name."""
    folder = _node_disk() / _user_name()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_private(folder):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
            return folder / name
    except OSError:
        pass
    # Code is loaded from this folder, so one that another user could have filled is never used.
    temporary = tempfile.mkdtemp(prefix="mpipar-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


def _node_disk() -> Path:
    """The node's temporary folder, not that of a batch job, which is deleted with the job."""
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


@cache
def _compiler_key() -> str:
    """A short name for what machine code depends on: versions and the CPU."""
    try:
        numba = version("numba")
    except PackageNotFoundError:
        numba = "none"
    parts = (__version__, sys.version, numba, platform.machine(), _cpu())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    """Model and instruction sets of the CPU, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
