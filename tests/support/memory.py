"""Where memory comes from and how much of it there is, as the kernel tells it."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.jobs import patience

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.support.jobs import Job


def inode_of(array: NDArray[Any]) -> int:
    """Return the inode of the file that an array's memory is mapped from; 0 for private memory."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return int(line.split()[4])
    raise AssertionError("not mapped")


def proportional_bytes(process: int) -> int:
    """Return a process's share of memory: pages that n processes map count 1/n for each (PSS).

    A process that has ended has none.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def available_bytes() -> int:
    """Return how much memory this machine can give away without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no MemAvailable in meminfo")


def peak_memory(job: Job, limit: float) -> tuple[subprocess.CompletedProcess[str], int]:
    """Wait for the end of a job; also return the most bytes that its processes shared and had.

    Proportional set sizes, summed: memory that processes share counts once.
    """
    until, peak = time.monotonic() + limit, 0
    out, err = (stream.read for stream in (job.process.stdout, job.process.stderr) if stream)
    with patience(limit):
        while job.process.poll() is None:
            assert time.monotonic() < until, "the job takes too long"
            peak = max(peak, sum(map(proportional_bytes, job.pids())))
            time.sleep(0.2)
    return subprocess.CompletedProcess(job.process.args, job.process.returncode, out(), err()), peak
