"""What is installed here: mpirun and what it is able to do, and other programs."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

MPIRUN: Final = Path(sys.prefix) / "bin" / "mpirun"


@functools.cache
def mpirun() -> tuple[str, ...]:
    """The mpirun of this environment, with what lets it start more ranks than cores."""
    told = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True, check=False)
    return (str(MPIRUN), *(["--oversubscribe"] if "Open MPI" in told.stdout else []))


def missing_programs(*programs: str) -> list[str]:
    """Which of these programs are not installed."""
    return [program for program in programs if shutil.which(program) is None]


@functools.cache
def tolerates_faults() -> bool:
    """Whether this environment's MPI is an Open MPI that goes on without a lost rank."""
    info = MPIRUN.with_name("ompi_info")
    if not info.exists():
        return False
    told = subprocess.run([info], capture_output=True, text=True, check=False).stdout
    return "FT MPI support: yes" in told
