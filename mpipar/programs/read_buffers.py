"""Memory that blocks are read into, used again when the blocks have left rank 0.

New memory costs several times what it takes to read a block into memory that was used before,
because the kernel clears each page. For large blocks it lies in pages of 2 MiB where the kernel has
such: a process of the same host gets a block four times as fast from these.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HUGE_PAGE, PAGE = 1 << 21, 1 << 12
MOST_FREE: Final = 64 << 20
"""Bytes that are kept while nothing uses them,"""
FEWEST_KEPT: Final = 2
"""but so many pieces, however large."""


class _Piece(np.ndarray):
    """A piece of memory, as what every array in it has as its last base.

    It dies with the last of them. A plain array would be left out of that chain.
    """


class ReadBuffers:
    """Pieces of memory, each of which comes back by itself when no array in it is used any more."""

    def __init__(self, most_free: int = MOST_FREE) -> None:
        self._most_free = most_free
        # Without a lock: a piece may come back in any thread, at any line of this class.
        self._free: deque[mmap.mmap] = deque()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes of any content."""
        memory = self._taken(size)
        piece = _Piece((size,), np.uint8, memory, _start(memory))
        weakref.finalize(piece, self._give_back, memory).atexit = False
        plain: NDArray[np.uint8] = piece.view(np.ndarray)
        return plain

    def free_bytes(self) -> int:
        """Return how many bytes are kept while nothing uses them."""
        return sum(map(len, tuple(self._free)))

    def _taken(self, size: int) -> mmap.mmap:
        wanted = _length(size)
        others: list[mmap.mmap] = []
        memory = None
        with suppress(IndexError):  # none is free
            while memory is None:
                found = self._free.pop()  # the last that came back: it may be in a cache
                if wanted <= len(found) <= 2 * wanted:
                    memory = found
                else:
                    others.append(found)
        self._free.extend(others if memory else others[:FEWEST_KEPT])
        return memory or _new_memory(wanted)

    def _give_back(self, memory: mmap.mmap) -> None:
        few = len(self._free) < FEWEST_KEPT
        if few or self.free_bytes() + len(memory) <= self._most_free:
            self._free.append(memory)


def _new_memory(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= 2 * HUGE_PAGE:
        with suppress(OSError):  # a kernel without such pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _length(size: int) -> int:
    """Return how long a piece must be; huge pages waste no more than half of what they take."""
    if size < HUGE_PAGE // 2:
        return max(1, -(-size // PAGE)) * PAGE
    return (-(-size // HUGE_PAGE) + 1) * HUGE_PAGE  # it may have to begin later


def _start(memory: Any) -> int:
    """Return where in a piece the first huge page can begin; 0 if it has none."""
    if len(memory) < 2 * HUGE_PAGE:
        return 0
    return -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE
