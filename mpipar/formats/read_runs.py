"""Which images of a file are read together: near ones in one read, each to its own place.

A read for each image costs a call here, and on a network disk the way to the server and back. So
what lies between two images that are wanted is read along if it is short, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LONGEST_GAP: Final = 1 << 16  # bytes that are read along
LARGEST_READ: Final = 1 << 26  # bytes of one read; Linux itself stops at 2 GiB
MOST_PARTS: Final = 1000  # of one read; Linux itself stops at 1,024
_gap = bytearray(LONGEST_GAP)  # what is read along; never looked at


@dataclass(slots=True)
class ReadRun:
    """One read of neighbouring bytes, from image `first` on."""

    first: int
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Where in memory each part goes, from and to; (-1, size) of what is dropped."""
    size: int = 0

    def views(self, memory: memoryview) -> list[memoryview]:
        """Return the parts of memory that are to be filled in this order."""
        gap = memoryview(_gap)
        return [memory[start:end] if start >= 0 else gap[:end] for start, end in self.parts]

    def add(self, gap: int, start: int, size: int) -> None:
        """Add an image that goes to `start`, behind `gap` bytes that are dropped."""
        if gap:
            self.parts.append((-1, gap))
        if self.parts and not gap and self.parts[-1][1] == start:
            self.parts[-1] = (self.parts[-1][0], start + size)
        else:
            self.parts.append((start, start + size))
        self.size += gap + size


def plan_reads(
    wanted: Sequence[tuple[int, int]], size: int
) -> tuple[list[ReadRun], list[tuple[int, int]]]:
    """Return the reads that bring images to memory, and what to copy there for repeated images.

    wanted    number of each image in the file, ascending, and where in memory it begins
    size      bytes of an image
    returns   also pairs: where an image has been read to, and where it is wanted as well
    """
    runs: list[ReadRun] = []
    copies: list[tuple[int, int]] = []
    last, home = -1, 0
    for number, start in wanted:
        if number == last:
            copies.append((home, start))
            continue
        gap = (number - last - 1) * size
        run = runs[-1] if runs and gap <= LONGEST_GAP else None
        if run is None or run.size + gap + size > LARGEST_READ or len(run.parts) >= MOST_PARTS:
            run = ReadRun(number)
            runs.append(run)
            gap = 0
        run.add(gap, start, size)
        last, home = number, start
    return runs, copies
