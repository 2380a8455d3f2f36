"""Memory that blocks are read into, used again when the blocks have left rank 0.

New memory costs several times what it takes to read a block into memory that was used before,
because the kernel clears each page.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_FREE: Final = 64 << 20
"""Bytes that are kept while nothing uses them."""


class _Lease(np.ndarray):
    """What every array in a piece of memory has as its last base: it dies with the last of them.

    A plain array would be left out of that chain, and only arrays can be referred to weakly.
    """


class ReadBuffers:
    """Pieces of memory, each of which comes back by itself when no array in it is used any more."""

    def __init__(self, most_free: int = MOST_FREE) -> None:
        self._most_free = most_free
        self._free: list[bytearray] = []
        self._lock = threading.RLock()  # a piece may come back at any line of the same thread

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return `size` bytes of any content."""
        memory = self._taken(size)
        lease = _Lease((size,), np.uint8, memory)
        weakref.finalize(lease, self._give_back, memory).atexit = False
        return lease.view(np.ndarray)

    def free_bytes(self) -> int:
        """Return how many bytes are kept while nothing uses them."""
        with self._lock:
            return sum(map(len, self._free))

    def _taken(self, size: int) -> bytearray:
        with self._lock:
            for number, memory in enumerate(self._free):
                if size <= len(memory) <= 2 * size:
                    return self._free.pop(number)
        return bytearray(size)

    def _give_back(self, memory: bytearray) -> None:
        with self._lock:
            self._free.append(memory)
            while sum(map(len, self._free)) > self._most_free:
                self._free.pop(0)
