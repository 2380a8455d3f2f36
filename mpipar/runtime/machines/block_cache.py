"""The cache of blocks on a worker: up to a number of bytes, least recently used dropped first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mpipar.runtime.stage import StoredBlock

if TYPE_CHECKING:
    from collections.abc import Collection

    from mpipar.runtime.stage import Block


def size_of(arrays: Block) -> int:
    """Return the bytes of a block's arrays."""
    if isinstance(arrays, StoredBlock):
        return arrays.nbytes
    return sum(array.nbytes for array in arrays.values())


def bytes_to_send(arrays: Block) -> int:
    """Return the bytes that it takes to send a block now."""
    if isinstance(arrays, StoredBlock):
        return arrays.stored_bytes
    return size_of(arrays)


class BlockCache:
    """Blocks by number. Blocks that the next tasks need stay even if they exceed the limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, block: int) -> Block | None:
        """Return a block and mark it as used; None if it is not here."""
        if block not in self._blocks:
            return None
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def put(self, block: int, arrays: Block, keep: Collection[int] = ()) -> None:
        """Add a block, then drop the oldest until the limit holds, but none of `keep`."""
        self._drop(block)
        self._blocks[block] = arrays
        self.bytes += size_of(arrays)
        if self.bytes > self.limit:
            self._shrink(keep)

    def _shrink(self, keep: Collection[int]) -> None:
        for old in list(self._blocks):
            if self.bytes <= self.limit:
                return
            if old not in keep:
                self._drop(old)

    def _drop(self, block: int) -> None:
        arrays = self._blocks.pop(block, None)
        if arrays is not None:
            self.bytes -= size_of(arrays)

    def clear(self) -> None:
        """Drop all blocks: the source of blocks has changed."""
        self._blocks.clear()
        self.bytes = 0
