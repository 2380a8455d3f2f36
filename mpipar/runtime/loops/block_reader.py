"""Rank 0's I/O thread: reads blocks from the source so that the master's loop never waits."""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpipar.runtime.stage import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from mpipar.runtime.stage import Block, BlockSource


@dataclass(frozen=True, slots=True)
class BlockLoaded:
    """A block has been read."""

    generation: int
    block: int
    arrays: Block


@dataclass(frozen=True, slots=True)
class BlockUnreadable:
    """A block could not be read."""

    generation: int
    block: int
    error: BaseException


class BlockReader:
    """One thread that reads blocks in the order of the requests.

    `wake` is called from this thread when a block has been read, or cannot be read.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._orders: queue.SimpleQueue[tuple[BlockSource, int, int] | None] = queue.SimpleQueue()
        self._events: deque[BlockLoaded | BlockUnreadable] = deque()
        self._thread = threading.Thread(target=self._work, name="block-reader", daemon=True)
        self._thread.start()

    def read(self, source: BlockSource, generation: int, block: int) -> None:
        """Request a block; it is returned later by `events`."""
        self._orders.put((source, generation, block))

    def events(self) -> list[BlockLoaded | BlockUnreadable]:
        """Return what has been read since the last call."""
        return [self._events.popleft() for _ in range(len(self._events))]

    def close(self, patience: float) -> None:
        """End the thread, unless it hangs in a read."""
        self._orders.put(None)
        self._thread.join(patience)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            source, generation, block = order
            try:
                arrays = frozen(source.read(block))
            except BaseException as error:  # Pool.run raises it, whatever it is
                self._events.append(BlockUnreadable(generation, block, error))
            else:
                self._events.append(BlockLoaded(generation, block, arrays))
                del arrays
            self._wake()
