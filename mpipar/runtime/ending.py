"""How a process leaves without its MPI, and how it makes others leave."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mpipar.runtime.messages import Hello, Rank


def flush_output() -> None:
    """Write out what has been said."""
    sys.stdout.flush()
    sys.stderr.flush()


def leave(code: int) -> NoReturn:
    """End this process at once."""
    flush_output()
    os._exit(code)


def give_up() -> None:
    """End this process as a crash would: an exit with a code wedges an mpirun with tolerance."""
    flush_output()
    os.kill(os.getpid(), signal.SIGKILL)


def kill_ranks(ranks: Iterable[Rank], crew: Mapping[Rank, Hello]) -> None:
    """End ranks by force: those of this host one by one, but if others are left, the whole job."""
    here, everywhere = socket.gethostname(), False
    for rank in ranks:
        hello = crew.get(rank)
        if hello is None or hello.host != here:
            everywhere = True
            continue
        with suppress(ProcessLookupError):
            os.kill(hello.process, signal.SIGKILL)
    if everywhere:
        end_job()


def end_job() -> None:
    """Tell what started this process, mpirun or its daemon, to end all ranks."""
    launcher = os.getppid()
    if launcher > 1:
        with suppress(OSError):
            os.kill(launcher, signal.SIGTERM)
