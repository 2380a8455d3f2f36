"""`--parallel=mpi:N` in a single process: it starts mpirun or srun, and waits for its end."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from mpipar.errors import LaunchError, counted
from mpipar.launch.launchers import find_launcher, is_own_mpi
from mpipar.launch.signal_forwarding import supervise
from mpipar.runtime.process.launcher_variables import GRID_ENGINE_HOSTS, RELAUNCHED, SESSION_BASE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mpipar.launch.launch_environment import LaunchEnvironment
    from mpipar.launch.launchers import Launcher
    from mpipar.launch.parallel import Parallel

__all__ = ["FAULT_TOLERANT", "crowding_note", "relaunch", "tune_own_mpi"]

# For Open MPI from this environment: without these, every start probes fabrics for more than a
# second, and fault tolerance is dependable on this transport only. A site's MPI knows its fabric.
TRANSPORT: Final = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "self,sm,tcp"}
FAULT_TOLERANT: Final = ("--with-ft", "ulfm")
# For that Open MPI's mpirun: a job goes on also when a rank is lost that was spawned. Never for a
# rank, since an mpirun in a task would have it too, and wait for the others when a rank crashes.
RECOVERABLE: Final = {"PRTE_MCA_state_base_recoverable": "1"}

# Open MPI 5 knows nothing of Grid Engine: it must be told how to start its daemons on other hosts.
GRID_ENGINE: Final = ("--prtemca", "plm_ssh_agent", "qrsh -inherit -nostdin -V")


def tune_own_mpi() -> None:
    """Choose Open MPI's transport, if it is the one of this environment. Before it is loaded."""
    if is_own_mpi():
        for name, value in TRANSPORT.items():
            os.environ.setdefault(name, value)


def relaunch(asked: Parallel, arguments: Sequence[str], around: LaunchEnvironment) -> NoReturn:
    """Run the same command as ranks of a launcher, and exit with the code of rank 0."""
    if RELAUNCHED in os.environ:
        raise LaunchError(
            f"started again with --parallel={asked}, but the new process is no part of an MPI "
            "world: mpirun and the MPI library that mpi4py loads do not belong together"
        )
    launcher = find_launcher(around)
    command = launch_command(launcher, asked, arguments, around)
    sys.stderr.write(crowding_note(command, asked, around))
    with tempfile.TemporaryDirectory(prefix="mpipar-session-", ignore_cleanup_errors=True) as base:
        environment = {SESSION_BASE: base, **launch_environment(launcher, os.environ)}
        code = supervise(command, environment)
    sys.exit(code)


def launch_command(
    launcher: Launcher, asked: Parallel, arguments: Sequence[str], around: LaunchEnvironment
) -> list[str]:
    """Return the command line that starts the ranks."""
    ranks = asked.count or 1
    command = [str(launcher.program), *launcher.options]
    if launcher.is_srun:
        command += _srun_options(os.environ)
    elif launcher.is_open_mpi:
        command += _open_mpi_options(launcher, ranks, around)
    # Ranks must know what only a settings file may say, which they do not read. A flag wins later.
    first, *others = arguments
    itself = [sys.executable, "-m", "mpipar", first, f"--parallel={asked}", *others]
    return [*command, "-n", str(ranks), *itself]


def crowding_note(command: Sequence[str], asked: Parallel, around: LaunchEnvironment) -> str:
    """Return a line if the ranks are more than a batch job has places for; "" if they are not."""
    places = max(around.tasks, around.slots)
    if "--oversubscribe" not in command or not (around.in_slurm or around.slots > 1):
        return ""
    return (
        f"note: {asked.count} ranks share the {counted(places, 'place')} of this job, so they are "
        f"slower than {counted(places, 'rank')}; ask for more tasks, or start fewer ranks\n"
    )


def _srun_options(environ: Mapping[str, str]) -> list[str]:
    options = ["--kill-on-bad-exit=1"]
    threads = environ.get("SLURM_CPUS_PER_TASK")  # which srun itself no longer obeys
    return [*options, f"--cpus-per-task={threads}"] if threads else options


def _open_mpi_options(launcher: Launcher, ranks: int, around: LaunchEnvironment) -> list[str]:
    # Bound to a core, a rank's threads would get in each other's way.
    options = [] if "--bind-to" in launcher.options else ["--bind-to", "none"]
    if launcher.tolerates_faults and FAULT_TOLERANT[0] not in launcher.options:
        options += FAULT_TOLERANT
    hosts = os.environ.get(GRID_ENGINE_HOSTS)
    if hosts:
        options += ["--hostfile", _open_mpi_hosts(Path(hosts)), *GRID_ENGINE]
    if ranks > max(around.tasks, around.slots, _cores() if around.slots == 1 else 1):
        options.append("--oversubscribe")
    return options


def launch_environment(launcher: Launcher, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the launcher: the user's, completed where nothing is set."""
    environment = dict(environ)
    if launcher.is_open_mpi and is_own_mpi():
        environment = {**TRANSPORT, **RECOVERABLE, **environment}
    if launcher.is_open_mpi and os.geteuid() == 0:
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return environment


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _open_mpi_hosts(grid_engine: Path) -> str:
    """Write Grid Engine's list of hosts in the form of Open MPI; return the name of the file."""
    rows = [line.split() for line in grid_engine.read_text(encoding="utf-8").splitlines()]
    with tempfile.NamedTemporaryFile("w", prefix="mpipar-hosts-", delete=False) as file:
        file.writelines(f"{row[0]} slots={row[1]}\n" for row in rows if len(row) > 1)
    return file.name
