"""Rank 0 as file server: which blocks to read next, and who waits for them.

    BlockRequest --> wanted (by block) --next_read()--> reading --loaded()--> BlockReply to all
                                                            +--unreadable()--> error

Pure: reads are done elsewhere, by an I/O thread. Requests for one block are merged into one read,
reads go upwards through the blocks like a lift, and few are under way at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from mpipar.runtime.machines.block_cache import size_of
from mpipar.runtime.machines.messages import BlockReply, BlockRequest, Rank, Send

if TYPE_CHECKING:
    from mpipar.runtime.stage import Block


class FileServer:
    """The queue of block reads of one generation of the source."""

    def __init__(self, at_once: int = 2) -> None:
        self.generation = 0
        self.home: dict[int, Rank] = {}  # block -> the worker that used it last
        self.blocks_served = 0
        self.bytes_served = 0
        self._at_once = at_once
        self._wanted: list[int] = []  # sorted
        self._reading: set[int] = set()
        self._waiting: dict[int, list[Rank]] = {}
        self._lift = 0

    def renew(self) -> None:
        """Begin a new generation: forget all about the blocks of the old source."""
        self.generation += 1
        self.home.clear()
        self.drop_requests()
        self._reading.clear()
        self._lift = 0

    def drop_requests(self) -> None:
        """Nobody waits any more: the run is over."""
        self._wanted.clear()
        self._waiting.clear()

    def request(self, source: Rank, message: BlockRequest) -> None:
        """Note that a worker wants a block."""
        if message.generation != self.generation:
            return
        block = message.block
        if block not in self._waiting and block not in self._reading:
            insort(self._wanted, block)
        waiting = self._waiting.setdefault(block, [])
        if source not in waiting:
            waiting.append(source)

    def next_read(self) -> int | None:
        """Return the block to read now, or None if there is none or enough are under way."""
        if not self._wanted or len(self._reading) >= self._at_once:
            return None
        position = bisect_left(self._wanted, self._lift) % len(self._wanted)
        block = self._wanted.pop(position)
        self._reading.add(block)
        self._lift = block
        return block

    def loaded(self, generation: int, block: int, arrays: Block) -> list[Send]:
        """A read is done: answer all who wait."""
        if generation != self.generation:
            return []
        self._reading.discard(block)
        ranks = self._waiting.pop(block, [])
        self.blocks_served += len(ranks)
        self.bytes_served += len(ranks) * size_of(arrays)
        reply = BlockReply(generation, block, arrays)
        return [Send(rank, reply) for rank in ranks]

    def unreadable(self, generation: int, block: int) -> bool:
        """A read failed: return whether anybody was waiting for it."""
        if generation != self.generation:
            return False
        self._reading.discard(block)
        return bool(self._waiting.pop(block, []))

    def rank_lost(self, rank: Rank) -> None:
        """Answer a lost rank no more, and look for no block there."""
        self.home = {block: user for block, user in self.home.items() if user != rank}
        for block, waiting in list(self._waiting.items()):
            if rank in waiting:
                waiting.remove(rank)
            if not waiting:
                del self._waiting[block]
                if block in self._wanted:
                    self._wanted.remove(block)
