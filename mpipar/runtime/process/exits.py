"""Ends of processes: of this one without MPI_Finalize, of other ranks, and of the launcher."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mpipar.runtime.machines.messages import Hello, Rank


FORCE_END: Final = """
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


_exit_process = os._exit


def die_of_exit_codes() -> None:
    """Have this process end by SIGKILL where a task would end it with an exit code.

    An mpirun that tolerates faults goes on without a rank that a signal has ended, but not without
    one that has ended with an exit code other than 0: then it waits for the others to end, too.
    This covers os._exit, and exit(3) of C and all that uses it, such as STOP in Fortran.
    """
    own = os.getpid()

    def end(status: int) -> NoReturn:
        if status and os.getpid() == own:
            crash()
        _exit_process(status)

    os._exit = end
    with suppress(OSError, AttributeError):  # where the C library has other names
        library = ctypes.CDLL(None)
        # raise(SIGKILL) as one of the functions that exit(3) calls: no Python code, which could not
        # run any more. The address of `raise` is taken from the library; the argument is a pointer.
        kill = ctypes.cast(getattr(library, "raise"), ctypes.c_void_p)
        library.__cxa_atexit(kill, ctypes.c_void_p(signal.SIGKILL), None)


POOL_SECONDS: Final = 2.0


def end_pools() -> None:
    """End the pools of processes and threads that tasks have left open, as Python does at its end.

    For a process that ends without Python's own end; mpirun would wait for what is left.
    """
    thread = threading.Thread(target=_end_pools, name="end-pools", daemon=True)
    thread.start()
    thread.join(POOL_SECONDS)


def _end_pools() -> None:
    # concurrent.futures and joblib have registered here what ends their pools; private as it is
    for function in reversed(getattr(threading, "_threading_atexits", [])):
        with suppress(Exception):
            function()
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:
        with suppress(Exception):
            multiprocessing._exit_function()


def flush_output() -> None:
    """Flush stdout and stderr."""
    sys.stdout.flush()
    sys.stderr.flush()


def exit_now(code: int) -> NoReturn:
    """End this process at once, without MPI_Finalize and without what is registered at exit."""
    flush_output()
    _exit_process(code)


def crash() -> NoReturn:
    """End this process by SIGKILL: an exit code would hang an mpirun that tolerates faults."""
    flush_output()
    os.kill(os.getpid(), signal.SIGKILL)
    _exit_process(1)


def kill_processes(processes: Iterable[int]) -> None:
    """Kill processes of this host."""
    for process in processes:
        if process != os.getpid():  # a rank may be a thread of this process
            with suppress(OSError):  # it is gone, or another user's
                os.kill(process, signal.SIGKILL)


def kill_ranks(ranks: Iterable[Rank], hosts: Mapping[Rank, Hello]) -> None:
    """Kill ranks of this host one by one; for a rank of another host, end the whole job.

    hosts   the Hello of each rank that has said one
    """
    own_host, elsewhere = socket.gethostname(), False
    for rank in ranks:
        hello = hosts.get(rank)
        if hello is None or hello.host != own_host:
            elsewhere = True
            continue
        kill_processes([hello.process])
    if elsewhere:
        end_job()
        force_end_later()


def end_job() -> None:
    """Have mpirun or its daemon, which started this process, end all ranks."""
    launcher = os.getppid()
    if launcher > 1:
        with suppress(OSError):
            os.kill(launcher, signal.SIGTERM)


def force_end_later(seconds: float = 2.0) -> None:
    """Leave a process behind that ends mpirun if it has not ended by itself after some seconds.

    An mpirun that was told to end waits for all nodes: for ever, if a node is cut off.
    """
    command = [sys.executable, "-I", "-S", "-c", FORCE_END, str(os.getppid()), str(seconds)]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
