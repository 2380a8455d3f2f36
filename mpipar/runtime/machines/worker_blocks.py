"""A worker's blocks: those that are here, and those that are on their way.

    wanted --ask--> fetching --BlockReply--> cache, and workers that want what rank 0 was asked for
              rank 0 is asked after a BlockMiss, and for a peer that is lost or does not answer

So rank 0 sends a block once, also if its task is stolen while the block is on its way.

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
        self._wanted_by: dict[int, list[Rank]] = {}  # blocks on their way here from rank 0

    def has_or_awaits(self, block: int) -> bool:
        """Whether a block is here, or on its way here from rank 0."""
        return block in self.cache or self.fetching.get(block) == MASTER

    def renew(self, generation: int) -> None:
        """Drop all blocks if a run begins whose source is of another generation."""
        if generation != self.generation:
            self.generation = generation
            self.cache.clear()
            self.drop_requests()

    def drop_requests(self) -> None:
        """Await no blocks any more, and owe none to others: the run is over."""
        self.fetching.clear()
        self._wanted_by.clear()

    def ask(self, block: int, rank: Rank) -> Send:
        """Fetch a block from a rank, or from rank 0 if that one is lost."""
        if rank in self._gone:
            rank = MASTER
        self.fetching[block] = rank
        return Send(rank, BlockRequest(self.generation, block))

    def answer(self, source: Rank, message: BlockRequest) -> list[Send]:
        """Send another worker a block, now or when it comes; BlockMiss if it is not here any more.

        Only what rank 0 was asked for is awaited for another: no two workers await each other's.
        """
        generation, block = message.generation, message.block
        current = generation == self.generation
        arrays = self.cache.get(block) if current else None
        if arrays is not None:
            return [Send(source, BlockReply(generation, block, arrays))]
        if not current or self.fetching.get(block) != MASTER:
            return [Send(source, BlockMiss(generation, block))]
        wanted_by = self._wanted_by.setdefault(block, [])
        if source not in wanted_by:
            wanted_by.append(source)
        return []

    def arrived(self, message: BlockReply) -> list[Send]:
        """Pass a block on to the workers that have asked for it meanwhile."""
        self.fetching.pop(message.block, None)
        return [Send(rank, message) for rank in self._wanted_by.pop(message.block, [])]

    def missed(self, message: BlockMiss) -> list[Send]:
        """Fetch a block from rank 0 that another worker has not any more."""
        if message.generation != self.generation or message.block not in self.fetching:
            return []
        return [self.ask(message.block, MASTER)]

    def rank_lost(self, rank: Rank) -> list[Send]:
        """Fetch from rank 0 the blocks that a lost rank was asked for."""
        self._gone.add(rank)
        for wanted_by in self._wanted_by.values():
            if rank in wanted_by:
                wanted_by.remove(rank)
        return [self.ask(block, MASTER) for block, asked in self.fetching.items() if asked == rank]

    def awaited_of_peers(self) -> Iterator[PeerWait]:
        """Return the blocks that other workers have been asked for."""
        for block, rank in self.fetching.items():
            if rank != MASTER:
                yield PeerWait("block", rank, (block,))
