"""A worker's blocks: those that are here, and those that are on their way.

    wanted --ask--> fetching --BlockReply--> cache
              rank 0 is asked after a BlockMiss, and for a peer that is lost or does not answer

Pure: it returns what to send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.runtime.machines.block_cache import BlockCache
from mpipar.runtime.machines.messages import MASTER, BlockMiss, BlockReply, BlockRequest, Send
from mpipar.runtime.machines.peer_timeouts import PeerWait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mpipar.runtime.machines.messages import Rank


class WorkerBlocks:
    """The blocks of one generation of the source, as far as one worker has or awaits them."""

    def __init__(self, cache_bytes: int) -> None:
        self.cache = BlockCache(cache_bytes)
        self.generation = 0
        self.fetching: dict[int, Rank] = {}  # block -> the rank that was asked for it
        self._gone: set[Rank] = set()

    def renew(self, generation: int) -> None:
        """Drop all blocks if a run begins whose source is of another generation."""
        if generation != self.generation:
            self.generation = generation
            self.cache.clear()
            self.fetching.clear()

    def ask(self, block: int, rank: Rank) -> Send:
        """Fetch a block from a rank, or from rank 0 if that one is lost."""
        if rank in self._gone:
            rank = MASTER
        self.fetching[block] = rank
        return Send(rank, BlockRequest(self.generation, block))

    def answer(self, source: Rank, message: BlockRequest) -> Send:
        """Send another worker a block, or BlockMiss if the block is not here any more."""
        arrays = self.cache.get(message.block) if message.generation == self.generation else None
        if arrays is None:
            return Send(source, BlockMiss(message.generation, message.block))
        return Send(source, BlockReply(message.generation, message.block, arrays))

    def missed(self, message: BlockMiss) -> list[Send]:
        """Fetch a block from rank 0 that another worker has not any more."""
        if message.generation != self.generation or message.block not in self.fetching:
            return []
        return [self.ask(message.block, MASTER)]

    def rank_lost(self, rank: Rank) -> list[Send]:
        """Fetch from rank 0 the blocks that a lost rank was asked for."""
        self._gone.add(rank)
        return [self.ask(block, MASTER) for block, asked in self.fetching.items() if asked == rank]

    def awaited_of_peers(self) -> Iterator[PeerWait]:
        """Return the blocks that other workers have been asked for."""
        for block, rank in self.fetching.items():
            if rank != MASTER:
                yield PeerWait("block", rank, (block,))
