"""The file server on rank 0: which block to read next, and which ranks wait for it.

    BlockRequest --> wanted (by block) --next_read()--> reading --loaded()--> BlockReply to all
                                                            +--unreadable()--> error

An I/O thread does the reads. Requests for one block are merged into one read. Reads go through the
blocks in order of their numbers, and then again from the first; few are under way at once.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from mpipar.runtime.machines.block_cache import bytes_to_send
from mpipar.runtime.machines.messages import BlockReply, BlockRequest, Rank, Send

if TYPE_CHECKING:
    from mpipar.runtime.stage import Block


class FileServer:
    """The queue of reads from one source of blocks, which has a number, its generation."""

    def __init__(self, most_reads: int = 2) -> None:
        self.generation = 0
        self.home: dict[int, Rank] = {}  # block -> the worker that used it last
        self.blocks_served = 0
        self.bytes_served = 0
        self._most_reads = most_reads
        self._wanted: list[int] = []  # sorted
        self._reading: set[int] = set()
        self._waiting: dict[int, list[Rank]] = {}
        self._last_read = 0

    def renew(self) -> None:
        """There is a new source of blocks: drop all that is known of the old one."""
        self.generation += 1
        self.home.clear()
        self.drop_requests()
        self._reading.clear()
        self._last_read = 0

    def drop_requests(self) -> None:
        """Drop all requests: the run is over."""
        self._wanted.clear()
        self._waiting.clear()

    def request(self, source: Rank, message: BlockRequest) -> None:
        """A worker asks for a block."""
        if message.generation != self.generation:
            return
        block = message.block
        if block not in self._waiting and block not in self._reading:
            insort(self._wanted, block)
        waiting = self._waiting.setdefault(block, [])
        if source not in waiting:
            waiting.append(source)

    def next_read(self) -> int | None:
        """Return the block to read now; None if there is none, or enough reads are under way."""
        if not self._wanted or len(self._reading) >= self._most_reads:
            return None
        position = bisect_left(self._wanted, self._last_read) % len(self._wanted)
        block = self._wanted.pop(position)
        self._reading.add(block)
        self._last_read = block
        return block

    def loaded(self, generation: int, block: int, arrays: Block) -> list[Send]:
        """A block has been read: send it to all ranks that wait for it."""
        if generation != self.generation:
            return []
        self._reading.discard(block)
        ranks = self._waiting.pop(block, [])
        self.blocks_served += len(ranks)
        self.bytes_served += len(ranks) * bytes_to_send(arrays)
        reply = BlockReply(generation, block, arrays)
        return [Send(rank, reply) for rank in ranks]

    def unreadable(self, generation: int, block: int) -> bool:
        """A read has failed: return whether a rank waits for the block."""
        if generation != self.generation:
            return False
        self._reading.discard(block)
        return bool(self._waiting.pop(block, []))

    def rank_lost(self, rank: Rank) -> None:
        """A rank is lost: drop its requests, and expect no block in its cache."""
        self.home = {block: user for block, user in self.home.items() if user != rank}
        for block, waiting in list(self._waiting.items()):
            if rank in waiting:
                waiting.remove(rank)
            if not waiting:
                del self._waiting[block]
                if block in self._wanted:
                    self._wanted.remove(block)
