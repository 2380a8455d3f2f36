"""Memory that blocks are read into, used again when the blocks have left rank 0.

New memory costs several times what it takes to read a block into memory that was used before,
because the kernel clears each page. It lies in pages of 2 MiB where the kernel has such: a process
of the same host gets a block four times as fast from these.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HUGE_PAGE: Final = 1 << 21
MOST_FREE: Final = 64 << 20
"""Bytes that are kept while nothing uses them."""


class _Piece(np.ndarray):
    """A piece of memory, as what every array in it has as its last base.

    It dies with the last of them. A plain array would be left out of that chain.
    """


class ReadBuffers:
    """Pieces of memory, each of which comes back by itself when no array in it is used any more."""

    def __init__(self, most_free: int = MOST_FREE) -> None:
        self._most_free = most_free
        self._free: list[mmap.mmap] = []
        self._lock = threading.RLock()  # a piece may come back at any line of the same thread

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes of any content."""
        memory = self._taken(size)
        piece = _Piece((size,), np.uint8, memory, _to_huge_page(memory))
        weakref.finalize(piece, self._give_back, memory).atexit = False
        plain: NDArray[np.uint8] = piece.view(np.ndarray)
        return plain

    def free_bytes(self) -> int:
        """Return how many bytes are kept while nothing uses them."""
        with self._lock:
            return sum(map(len, self._free))

    def _taken(self, size: int) -> mmap.mmap:
        wanted = (max(1, -(-size // HUGE_PAGE)) + 1) * HUGE_PAGE  # it may have to begin later
        with self._lock:
            for place in reversed(range(len(self._free))):  # the last used may be in a cache
                if wanted <= len(self._free[place]) <= 2 * wanted:
                    return self._free.pop(place)
        memory = mmap.mmap(-1, wanted, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without such pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _give_back(self, memory: mmap.mmap) -> None:
        with self._lock:
            self._free.append(memory)
            while sum(map(len, self._free)) > self._most_free:
                self._free.pop(0)


def _to_huge_page(memory: Any) -> int:
    """Return where in memory the first huge page can begin."""
    return -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_PAGE
