"""A time limit on the start of MPI under fault tolerance.

MPI_Init waits for all ranks. Under an mpirun that tolerates faults it waits for ever for a rank
that has ended before. No Python thread or signal handler runs meanwhile, so a second process, the
watcher, ends the launcher.
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

WATCHERS: Final = 2  # ranks that have a watcher; one of them may be the rank that has ended
LATER: Final = 5.0  # seconds that the second one waits longer
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
    """End the job, with a message, if what is done inside takes longer than MPIPAR_PATIENCE."""
    if rank >= WATCHERS or not wants_fault_tolerance():
        yield
        return
    seconds = patience() + rank * LATER
    command = [sys.executable, "-I", "-S", "-c", WATCH, str(seconds), str(os.getppid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        yield
        watcher.communicate()  # closes its input, which ends it
