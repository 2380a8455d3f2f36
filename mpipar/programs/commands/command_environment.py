"""The environment of a command: its worker's, without the variables of the launcher.

A command that uses MPI itself, or calls mpirun, would take the launcher's variables for its own: it
would believe to be a rank of a job that it does not belong to, refuse to start another job, or
start ranks on all nodes, where other commands are running.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mpipar.runtime.process.environment import THREAD_VARIABLES
from mpipar.runtime.process.launcher_variables import SESSION_BASE, without_launcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["inherited", "own_session_folder"]


def inherited() -> dict[str, str]:
    """Return the environment that this process was started with, less the launcher's variables.

    Variables that mpipar and its libraries have set since then are for this process alone, and left
    out. A command has one thread, as its worker has, if the user has not set another number.
    """
    try:
        started = Path("/proc/self/environ").read_bytes()
    except OSError:
        started = b"\0".join(os.fsencode(f"{n}={v}") for n, v in os.environ.items())
    pairs = (item.partition(b"=") for item in started.split(b"\0") if b"=" in item)
    found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs if name}
    return {**dict.fromkeys(THREAD_VARIABLES, "1"), **without_launcher(found)}


@contextmanager
def own_session_folder(environment: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Lend a command a folder for an mpirun that it may start; yield its environment with that.

    At a time-out an mpirun may be killed, and what it leaves would stop another command's mpirun
    that is given the same process number. Where no folder can be made, a command has none.
    """
    base = environment.get(SESSION_BASE) or environment.get("TMPDIR") or None
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="mpipar-session-", dir=base, ignore_cleanup_errors=True
        )
    except OSError:
        yield environment
        return
    with folder as name:
        yield {**environment, SESSION_BASE: str(Path(name).absolute())}
