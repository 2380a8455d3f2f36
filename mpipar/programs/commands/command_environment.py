"""What a command finds in its environment: what its worker was started with, less the launcher.

A command that uses MPI itself, or calls mpirun, would take the launcher's variables for its own:
it would believe to be a rank of a world that it is not in, refuse to start another one, or start
its ranks on all nodes of the job, where other commands are running.
"""

from __future__ import annotations

import os
from pathlib import Path

from mpipar.runtime.process.environment import THREAD_VARIABLES
from mpipar.runtime.process.launcher_variables import without_launcher

__all__ = ["inherited"]


def inherited() -> dict[str, str]:
    """What a command has from its worker: the environment in which that was started.

    Not what mpipar and its libraries have added since, which is for them alone. But one command has
    one core if the user says nothing else, as the worker itself.
    """
    try:
        started = Path("/proc/self/environ").read_bytes()
    except OSError:
        started = b"\0".join(os.fsencode(f"{n}={v}") for n, v in os.environ.items())
    pairs = (item.partition(b"=") for item in started.split(b"\0") if b"=" in item)
    found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
    return {**dict.fromkeys(THREAD_VARIABLES, "1"), **without_launcher(found)}
