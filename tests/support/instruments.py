"""Instruments: code that each process of a job runs before anything else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tests.support.jobs import Job, wait_until

if TYPE_CHECKING:
    from pathlib import Path

OPENED: Final = """
import os, sys
rank = os.environ.get("OMPI_COMM_WORLD_RANK", "alone")
log = os.open(os.path.join(os.environ["MPIPAR_TEST_OPENED"], rank),
              os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir", "mmap.__new__") and arguments:
        os.write(log, f"{event} {arguments[0]}\\n".encode())
sys.addaudithook(hook)
"""
"""Notes what each rank opens, one line a file, in the folder MPIPAR_TEST_OPENED."""
SYNCED: Final = """
import os, re, threading
count, main = 0, threading.main_thread()
target, wanted = os.environ["MPIPAR_TEST_SYNC"].split("@")
here = os.environ["MPIPAR_TEST_SYNCED"]
def watched(sync):
    def watching(fd):
        global count
        path = os.readlink(f"/proc/self/fd/{fd}")
        if threading.current_thread() is main and re.search(target, path):
            count += 1
            if str(count) == wanted:
                open(here + ".reached", "x").close()
                with open(here + ".fifo") as fifo:
                    fifo.read()
        sync(fd)
    return watching
if os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0":
    os.fsync, os.fdatasync = watched(os.fsync), watched(os.fdatasync)
"""
"""Before its n-th sync of a file whose path matches the target, rank 0 waits for a pipe's end."""


def instrument(folder: Path, code: str) -> str:
    """PYTHONPATH entry that makes every process run this code first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


class Pause:
    """What makes a job wait before one of rank 0's syncs until it is let go."""

    def __init__(self, folder: Path, target: str, number: int) -> None:
        """Wait before the `number`-th sync of a file or folder whose path matches `target`."""
        here = folder / "synced"
        self.environment = {
            "PYTHONPATH": instrument(folder / "instrument", SYNCED),
            "MPIPAR_TEST_SYNC": f"{target}@{number}",
            "MPIPAR_TEST_SYNCED": str(here),
        }
        self._reached, self._fifo = here.with_suffix(".reached"), here.with_suffix(".fifo")
        os.mkfifo(self._fifo)

    def wait(self, job: Job) -> None:
        """Return when the job has come to the sync."""
        wait_until(self._reached.exists, job)

    def let_go(self) -> None:
        """Let the job go on."""
        with self._fifo.open("w"):
            pass
