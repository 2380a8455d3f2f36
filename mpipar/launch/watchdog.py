"""A bound on the start of MPI under fault tolerance.

MPI_Init waits for all ranks. An mpirun that tolerates faults lets it wait for ever for one that has
ended before, and no thread or signal handler of ours runs meanwhile; so another process watches.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mpipar.runtime.process.environment import patience
from mpipar.runtime.process.launcher_variables import wants_fault_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["bounded_start"]

WATCHERS: Final = 2  # ranks that have one: the second watches in case it is the first that ended
LATER: Final = 5.0  # seconds that it waits longer
WATCH: Final = """
import os, select, signal, sys
seconds, launcher = float(sys.argv[1]), int(sys.argv[2])
if not select.select([0], [], [], seconds)[0]:
    sys.stderr.write(
        f"mpipar: MPI has not started on all ranks within {seconds:.0f} s: one of them has ended "
        "before (look above for why), or its node is slow (MPIPAR_PATIENCE=seconds gives it more "
        "time)\\n"
    )
    sys.stderr.flush()
    os.kill(launcher, signal.SIGTERM)
"""


@contextmanager
def bounded_start(rank: int) -> Iterator[None]:
    """End the job, with a word to the user, if what is done inside takes too long."""
    if rank >= WATCHERS or not wants_fault_tolerance():
        yield
        return
    seconds = patience() + rank * LATER
    command = [sys.executable, "-I", "-S", "-c", WATCH, str(seconds), str(os.getppid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        yield
        watcher.communicate()  # the end of its input ends it
