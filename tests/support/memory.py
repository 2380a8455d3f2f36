"""Where memory comes from and how much of it there is, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def inode_of(array: NDArray[Any]) -> int:
    """Return the inode of the file that an array's memory is mapped from; 0 for private memory."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return int(line.split()[4])
    raise AssertionError("not mapped")


def proportional_bytes(process: int) -> int:
    """Return a process's share of memory: pages that n processes map count 1/n for each (PSS)."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Pss in smaps_rollup")


def available_bytes() -> int:
    """Return how much memory this machine can give away without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no MemAvailable in meminfo")
