"""How a process leaves without its MPI, and how it makes others leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mpipar.runtime.machines.messages import Hello, Rank


INSIST: Final = """
import os, signal, sys, time
launcher, seconds = int(sys.argv[1]), float(sys.argv[2])
try:
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + seconds
        while launcher > 1 and time.monotonic() < until:
            os.kill(launcher, 0)  # raises when it is gone
            time.sleep(0.1)
        if launcher > 1:
            os.kill(launcher, number)
except OSError:
    pass
"""


def flush_output() -> None:
    """Write out what has been said."""
    sys.stdout.flush()
    sys.stderr.flush()


def leave(code: int) -> NoReturn:
    """End this process at once."""
    flush_output()
    os._exit(code)


def give_up() -> NoReturn:
    """End this process as a crash would: an exit with a code wedges an mpirun with tolerance."""
    flush_output()
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)


def kill_processes(processes: Iterable[int]) -> None:
    """Kill processes of this host."""
    for process in processes:
        if process != os.getpid():  # of which a rank may be a thread
            with suppress(OSError):  # it is gone, or somebody else's
                os.kill(process, signal.SIGKILL)


def kill_ranks(ranks: Iterable[Rank], crew: Mapping[Rank, Hello]) -> None:
    """End ranks by force: those of this host one by one, but if others are left, the whole job."""
    here, everywhere = socket.gethostname(), False
    for rank in ranks:
        hello = crew.get(rank)
        if hello is None or hello.host != here:
            everywhere = True
            continue
        kill_processes([hello.process])
    if everywhere:
        end_job()
        insist_on_end()


def end_job() -> None:
    """Tell what started this process, mpirun or its daemon, to end all ranks."""
    launcher = os.getppid()
    if launcher > 1:
        with suppress(OSError):
            os.kill(launcher, signal.SIGTERM)


def insist_on_end(seconds: float = 2.0) -> None:
    """Leave a process behind that ends what started this one, should it not end by itself soon.

    An mpirun that was told to end waits for all nodes: for ever, if one is cut off.
    """
    command = [sys.executable, "-I", "-S", "-c", INSIST, str(os.getppid()), str(seconds)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
